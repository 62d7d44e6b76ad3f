"""``session open``, ``session exec`` and ``session close``."""

from __future__ import annotations

import shlex

from agentd.cli.context import Context
from agentd.cli.errors import EXIT_OK, UsageError
from agentd.cli.launcher import become
from agentd.cli.listing import session_id
from agentd.cli.plain import Plain

MAX_LABELS = 32


def open_(context: Context) -> int:
    """Through the broker, which knows our uid; through the API where that was asked for, or labels are given (the
    broker's message has none)."""
    args = context.args
    labels = parse_labels(args.label)
    tenant, name = args.tenant or "", args.name or ""
    if labels or args.api:
        with context.connect() as api:
            reply = api.open_session(tenant, name, labels)
        session, token = reply.session.id, reply.token
    else:
        if not tenant:
            raise UsageError("no tenant was named", remedy="give --tenant T; see: corral tenant list")
        from agentd.cli import broker

        session, token = broker.open_session(broker.socket_path(args.socket, context.environment), tenant, name)
    if args.shell:
        return _shell(context, session, token)
    if context.json:
        shown: dict[str, Plain] = {"session": session, "token": token, "tenant": tenant, "name": name}
        context.emit(shown)
    else:
        context.say(f"export CORRAL_SESSION={shlex.quote(session)} CORRAL_TOKEN={shlex.quote(token)}")
    return EXIT_OK


def _shell(context: Context, session: str, token: str) -> int:
    from agentd.cli import broker

    broker.enter(broker.socket_path(context.args.socket, context.environment), token=token)
    shell = context.environment.get("SHELL") or "/bin/sh"
    context.note(f"session {session}: this shell and its children are its agent; leave with exit")
    become([shell], {**context.environment, "CORRAL_SESSION": session, "CORRAL_TOKEN": token})


def exec_(context: Context) -> int:
    from agentd.cli import broker

    args = context.args
    argv: list[str] = args.argv[1:] if args.argv[:1] == ["--"] else args.argv
    if not argv:
        raise UsageError("no command", remedy="corral session exec [--session S] -- COMMAND")
    inherited = context.environment.get("CORRAL_SESSION") or None
    session = args.session or inherited
    token = context.environment.get("CORRAL_TOKEN") or None
    if session is None and token is None:
        raise UsageError(
            "no session was named", remedy='give --session, or: eval "$(corral session open --tenant NAME)"'
        )
    # A token is the stronger proof, but it is of the session in the environment: for another one our uid must do.
    other = args.session is not None and args.session != inherited
    path = broker.socket_path(args.socket, context.environment)
    if token is not None and not other:
        broker.enter(path, token=token)
    else:
        broker.enter(path, session=session)
    environment = dict(context.environment)
    if session:
        environment["CORRAL_SESSION"] = session
    become(argv, environment)


def close(context: Context) -> int:
    args = context.args
    named = args.session or context.environment.get("CORRAL_SESSION") or ""
    token = context.environment.get("CORRAL_TOKEN", "") if not args.session else ""
    if not (named or token):
        raise UsageError("no session was named", remedy="name it, or set CORRAL_SESSION; see: corral session list")
    with context.connect(token=token) as api:
        # With its own token an agent closes its own session and sees no other; an operator may use names and pieces.
        found = named if token else session_id(api.snapshot(), named)
        api.close_session(found, kill=args.kill)
    if context.json:
        context.emit({"session": found, "closed": True})
    else:
        context.say(f"closed session {found}")
    return EXIT_OK


def parse_labels(given: list[str]) -> dict[str, str]:
    if len(given) > MAX_LABELS:
        raise UsageError(f"{len(given)} labels", remedy=f"give at most {MAX_LABELS}")
    labels: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise UsageError(f"--label {text!r} is not key=value")
        if key in labels:
            raise UsageError(f"--label {key} was given twice")
        labels[key] = value
    return labels
