"""``session attach`` and ``session detach``."""

from __future__ import annotations

from agentd.cli.context import Context
from agentd.cli.errors import EXIT_OK, NotFoundError, UsageError
from agentd.cli.listing import session_id
from agentd.cli.plain import to_plain
from agentd.cli.sessions import parse_labels
from agentd.proto.corral.v1 import corral_pb2 as pb


def attach(context: Context) -> int:
    args = context.args
    containers = bool(args.container or args.label or args.network or args.compose)
    if (args.pid is not None) == containers:
        raise UsageError(
            "name a process or containers" if not containers else "--pid does not go with containers",
            remedy="--pid PID, or some of --container NAME, --label K=V, --network N, --compose PROJECT",
        )
    if args.follow and not containers:
        raise UsageError("--follow goes with containers", remedy="leave it out")
    request = pb.AttachRequest(
        tenant=args.tenant, name=args.name, labels=parse_labels(args.session_label), rules=args.rules
    )
    if args.pid is not None:
        request.pid = _pid(args.pid)
    else:
        request.containers.CopyFrom(
            pb.ContainerSelector(
                name=args.container,
                labels=args.label,
                network=args.network,
                compose_project=args.compose,
                follow=args.follow,
            )
        )
    with context.connect() as api:
        sessions = api.attach(request)
    if context.json:
        context.emit([to_plain(session) for session in sessions])
        return EXIT_OK
    for session in sessions:
        what = f"container {session.container[:12]}" if session.container else f"process {args.pid}"
        context.say(f"{session.id}  {session.name}  {what}, rules {session.rules}")
    if not sessions:
        context.say("no container matches now" + ("; those that start will be attached" if args.follow else ""))
    return EXIT_OK


def detach(context: Context) -> int:
    with context.connect() as api:
        try:
            target = session_id(api.snapshot(), context.args.target)
        except NotFoundError:
            target = context.args.target  # a container's name, which the daemon knows
        sessions = api.detach(target)
    if context.json:
        context.emit({"sessions": [*sessions]})
        return EXIT_OK
    if not sessions:
        context.say(f"{target}: containers that start are no longer attached for it; sessions that there are go on")
    for one in sessions:
        context.say(f"{one}: no further call is recognised; it closes when those that run have ended")
    return EXIT_OK


def _pid(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) > 0):
        raise UsageError(f"--pid {text[:40]!r} is no number of a process", remedy="see: pgrep -a NAME")
    return int(text)
