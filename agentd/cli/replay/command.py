"""The command ``replay``."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agentd.cli.context import Context
from agentd.cli.errors import EXIT_FAILED, EXIT_OK, CliError, UsageError
from agentd.cli.launcher import find_program
from agentd.cli.replay import report
from agentd.cli.replay.player import Played, Stage, play
from agentd.cli.replay.trace import read_trace
from agentd.proto.corral.v1 import corral_pb2 as pb
from controller.simulate.plan import MB, Plan, plan

MAX_TRACES: Final = 256


def replay(context: Context) -> int:
    """Exit 0 when every framework and every call followed its schedule to the end, else 1."""
    args = context.args
    plans = _plans(context)
    tenants = _tenants(args.tenant, len(plans))
    if not (args.tenant or args.bare):
        raise UsageError("no tenant was named", remedy="give --tenant T (see: corral tenant list), or --bare")
    with _folder(args.keep) as folder:
        stage = Stage(
            replayer=find_program("corral-replay", context.environment),
            launcher=None if args.bare else find_program("corral-exec", context.environment),
            folder=folder,
            environment=_environment(context),
            declare_peak=args.declare == "peak",
        )
        sessions = [("", "")] * len(plans) if args.bare else _open_sessions(context, plans, tenants)
        try:
            played = asyncio.run(_play_all(plans, stage, sessions, tenants))
        finally:
            reasons = None if args.bare else _close_sessions(context, [session for session, _ in sessions])
    if context.json:
        context.emit(report.plain(played, reasons))
    else:
        context.table(report.COLUMNS, report.rows(played))
        for session, counts in (reasons or {}).items():
            context.say(f"{session}: {', '.join(f'{n}× {code}' for code, n in sorted(counts.items())) or 'no calls'}")
        for line in report.complaints(played):
            context.note(line)
    everything = [result for one in played for result in [*one.calls, *([one.framework] if one.framework else [])]]
    return EXIT_OK if all(report.verdict(result) == "ok" for result in everything) else EXIT_FAILED


def _plans(context: Context) -> list[Plan]:
    args = context.args
    if len(args.traces) > MAX_TRACES:
        raise UsageError(f"{len(args.traces)} traces", remedy=f"replay at most {MAX_TRACES} at once")
    speed = _number("--speed", args.speed, 0.1, 1000)
    scale = _number("--scale", args.scale, 0.001, 1000)
    base = _number("--base", args.base, 0, 1e6)
    return [
        plan(
            read_trace(Path(path)),
            speed=speed,
            scale=scale,
            base_bytes=round(base * MB),
            only_tools=args.only_tools,
            most_calls=args.limit_tools,
        )
        for path in args.traces
    ]


def _number(option: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text.removesuffix("x"))
    except ValueError:
        value = float("nan")
    if not low <= value <= high:  # NaN as well
        raise UsageError(f"{option} {text!r} is out of range", remedy=f"{low:g} to {high:g}")
    return value


def _tenants(given: list[str], count: int) -> list[str]:
    if len(given) > 1 and len(given) != count:
        raise UsageError(f"{len(given)} tenants for {count} traces", remedy="give one for all, or one for each")
    return given if len(given) == count else (given or [""]) * count


@contextmanager
def _folder(keep: str | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="corral-replay-") as name:
            yield Path(name)
        return
    folder = Path(keep)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise CliError(f"--keep {keep}: {err.strerror}", remedy="name a directory that can be written") from None
    yield folder


def _environment(context: Context) -> dict[str, str]:
    """Without what an outer session left in it: each trace gets its own."""
    from agentd.cli.broker import socket_path

    environment = {k: v for k, v in context.environment.items() if k not in ("CORRAL_SESSION", "CORRAL_TOKEN")}
    return environment | {"CORRAL_SOCKET": socket_path(context.args.socket, context.environment)}


def _open_sessions(context: Context, plans: list[Plan], tenants: list[str]) -> list[tuple[str, str]]:
    from agentd.cli import broker

    path = broker.socket_path(context.args.socket, context.environment)
    opened: list[tuple[str, str]] = []
    try:
        for one, tenant in zip(plans, tenants, strict=True):
            opened.append(broker.open_session(path, tenant, f"replay {one.name}"[:128]))
    except CliError:
        _close_sessions(context, [session for session, _ in opened])
        raise
    return opened


def _close_sessions(context: Context, sessions: list[str]) -> dict[str, dict[str, int]] | None:
    """Close them, and read from the ledger how their calls ended. None, with a note, where the API cannot be reached:
    the broker alone is enough to replay."""
    if not sessions:
        return None
    reasons: dict[str, dict[str, int]] = {}
    try:
        with context.connect() as api:
            for session in sessions:
                reply = api.history(pb.HistoryRequest(session_id=session, limit=10_000))
                reasons[session] = dict(Counter(call.outcome.reason or "not ended" for call in reply.calls))
                api.close_session(session, kill=True)
    except CliError as err:
        context.note(f"corral replay: the sessions stay open and the ledger was not read: {err}")
        return None
    return reasons


async def _play_all(
    plans: list[Plan], stage: Stage, sessions: list[tuple[str, str]], tenants: list[str]
) -> list[Played]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(play(one, stage, tag=f"{number:03d}", session=session, token=token, tenant=tenant))
                for number, (one, (session, token), tenant) in enumerate(zip(plans, sessions, tenants, strict=True))
            ]
    except* CliError as several:
        first: BaseException = several
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        failure = first
    else:
        return [task.result() for task in tasks]
    raise failure
