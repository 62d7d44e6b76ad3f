"""Runs a plan: one session, one framework process in its agent leaf, one corral-exec child for each tool interval.

An agent waits for its tools: where a call has not ended when it had in the recording (it waited, was held, was slow),
the agent's clock stands there until it has. What the agent did next it does next, and not beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agentd.cli.errors import CliError
from controller.simulate.plan import MB, Plan, PlannedCall, Schedule

MAX_STDERR: Final = 8192  # bytes of a child's words that are kept
READY_WITHIN: Final = 30.0  # seconds for the framework to be in its leaf and ready
HEADROOM: Final = 1.25  # of a declared peak over the planned one: chunks, page tables and the program itself
PROGRAM_BYTES: Final = 8 * MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What a replay needs from its host. ``launcher`` None: bare, without Corral."""

    replayer: Path
    launcher: Path | None
    folder: Path  # for schedules and reports
    environment: Mapping[str, str]
    declare_peak: bool = False


@dataclass(slots=True, kw_only=True)
class Result:
    """One process. ``status`` as subprocess gives it (negative: a signal); times in seconds."""

    label: str
    call_class: str = ""
    planned_seconds: float
    planned_peak: int
    late: float = 0.0  # started after its moment of the agent's clock
    wall: float = 0.0
    status: int | None = None
    complete: bool = False  # followed its schedule to the end
    peak_bytes: int = 0
    cpu_usec: int = 0
    latencies: list[int] = field(default_factory=list)  # nanoseconds, one a chunk
    words: str = ""  # what it, or its launcher, said on stderr


@dataclass(slots=True, kw_only=True)
class Played:
    plan: Plan
    session: str
    tenant: str
    wall: float
    framework: Result | None
    calls: list[Result]


@dataclass(slots=True)
class AgentClock:
    """What an agent's clock shows, for whoever wants to know on the way. ``zero`` None: it has not begun."""

    zero: float | None = None  # the moment (monotonic) at which it showed 0, had it never stood
    stands_at: float | None = None
    began: float | None = None  # the moment at which it began
    ready: Callable[[], Awaitable[None]] | None = None  # called when it could begin; it begins when that is done

    def shows(self, now: float) -> float:
        """Seconds of the plan that are done."""
        if self.stands_at is not None:
            return self.stands_at
        return now - self.zero if self.zero is not None else 0.0


async def play(
    plan: Plan, stage: Stage, *, tag: str, session: str, token: str, tenant: str, clock: AgentClock | None = None
) -> Played:
    """Raises CliError when the framework cannot be started. A call that fails is a result, not an error.

    When this is cancelled, every process that it started is ended before it returns.
    """
    clock = clock if clock is not None else AgentClock()
    environment = dict(stage.environment)
    if session:
        environment |= {"CORRAL_SESSION": session, "CORRAL_TOKEN": token}
    framework: asyncio.subprocess.Process | None = None
    framework_result: Result | None = None
    report = stage.folder / f"{tag}-framework.csv"
    try:
        if plan.framework is not None:
            framework = await _start_framework(stage, report, environment, session)
            framework_result = Result(
                label="framework", planned_seconds=plan.framework.end, planned_peak=plan.framework.peak_bytes
            )
            if clock.ready is not None:
                await clock.ready()
            await _begin(framework, plan, plan.framework)
        start = time.monotonic()
        async with asyncio.TaskGroup() as group:
            if framework is not None and framework_result is not None:
                group.create_task(_finish(framework, framework_result, start))
            calls = await _go_through(
                plan, framework, group, lambda call, due: _call(call, stage, tag, due, environment), clock
            )
        wall = time.monotonic() - start
    finally:
        if framework is not None:
            await _end(framework)
            await _close_stdin(framework)
    if framework_result is not None:
        _read_report(report, framework_result)
    return Played(
        plan=plan,
        session=session,
        tenant=tenant,
        wall=wall,
        framework=framework_result,
        calls=calls,
    )


async def _start_framework(
    stage: Stage, report: Path, environment: Mapping[str, str], session: str
) -> asyncio.subprocess.Process:
    """The framework waits in its leaf for its schedule, so that its clock starts when the calls' does."""
    argv = [str(stage.replayer), "--announce", "--steered", "--schedule", "-", "--report", str(report)]
    if session:
        argv = [sys.executable, "-m", "agentd.cli", "session", "exec", "--session", session, "--", *argv]
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None  # noqa: S101  # a pipe
    assert process.stderr is not None  # noqa: S101  # a pipe
    try:
        async with asyncio.timeout(READY_WITHIN):
            ready = await process.stdout.readline()
            if ready.strip() == b"ready":
                return process
            words = _text(await process.stderr.read(MAX_STDERR))
    except BaseException as err:
        await _end(process)
        if isinstance(err, TimeoutError):
            raise CliError(
                f"the framework was not ready within {READY_WITHIN:.0f} s", remedy="is the host overloaded?"
            ) from None
        raise
    await _end(process)
    raise CliError(f"the framework did not start: {words or 'it said nothing'}")


async def _begin(framework: asyncio.subprocess.Process, plan: Plan, schedule: Schedule) -> None:
    await _tell(framework, schedule.text() + _go(0.0, min((_end_of(call) for call in plan.calls), default=None)))


def _end_of(call: PlannedCall) -> float:
    return call.start + call.schedule.end


def _go(at: float, until: float | None) -> str:
    """For a framework: its clock shows ``at``, and may go on to ``until`` (None: to the end)."""
    return "" if until is None else f"go {round(at * 1e6)} {round(max(at, until) * 1e6)}\n"


async def _tell(framework: asyncio.subprocess.Process | None, text: str) -> None:
    if framework is None or framework.returncode is not None:
        return
    assert framework.stdin is not None  # noqa: S101  # a pipe
    # A framework that died meanwhile shows in its status.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        framework.stdin.write(text.encode("ascii"))
        await framework.stdin.drain()


async def _close_stdin(framework: asyncio.subprocess.Process) -> None:
    """Where it died with words of ours unread, somebody must hear so, or the event loop complains."""
    if framework.stdin is not None:
        framework.stdin.close()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await framework.stdin.wait_closed()


async def _go_through(
    plan: Plan,
    framework: asyncio.subprocess.Process | None,
    group: asyncio.TaskGroup,
    begin: Callable[[PlannedCall, float], Coroutine[None, None, Result]],
    clock: AgentClock,
) -> list[Result]:
    """Begins each call at its moment of the agent's clock, which stands at the planned end of a call that still runs.
    ``begin`` gets the call and the moment (monotonic) at which it is due."""
    edges = [(_end_of(call), False, call.number, call) for call in plan.calls]
    edges += [(call.start, True, call.number, call) for call in plan.calls]
    ends = sorted(_end_of(call) for call in plan.calls)
    tasks: dict[int, asyncio.Task[Result]] = {}
    clock.zero = clock.began = zero = time.monotonic()
    for at, begins, number, call in sorted(edges, key=lambda edge: edge[:3]):
        await asyncio.sleep(max(0.0, zero + at - time.monotonic()))
        if begins:
            tasks[number] = group.create_task(begin(call, zero + at))
            continue
        if not tasks[number].done():
            clock.stands_at = at
            await asyncio.wait([tasks[number]])
            clock.zero = zero = time.monotonic() - at
            clock.stands_at = None
        ends.pop(0)
        await _tell(framework, _go(time.monotonic() - zero, ends[0] if ends else None))
    if framework is not None and framework.stdin is not None:
        framework.stdin.close()
    return [await tasks[call.number] for call in plan.calls]


async def _finish(framework: asyncio.subprocess.Process, result: Result, start: float) -> None:
    assert framework.stderr is not None  # noqa: S101  # a pipe
    words = await framework.stderr.read()
    result.status = await framework.wait()
    result.wall = time.monotonic() - start
    result.words = _text(words)


async def _call(call: PlannedCall, stage: Stage, tag: str, due: float, environment: Mapping[str, str]) -> Result:
    result = Result(
        label=call.tool,
        call_class=call.call_class,
        planned_seconds=call.schedule.end,
        planned_peak=call.schedule.peak_bytes,
    )
    schedule = stage.folder / f"{tag}-{call.number:05d}.schedule"
    report = stage.folder / f"{tag}-{call.number:05d}.csv"
    schedule.write_text(call.schedule.text(), encoding="ascii")
    began = time.monotonic()
    result.late = began - due
    argv = [*launcher_arguments(call, stage), str(stage.replayer), "--schedule", str(schedule), "--report", str(report)]
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
    except OSError as err:  # EAGAIN at a limit of processes: this call's result, and no end of the others
        result.words = f"{argv[0]}: {err.strerror}"
        return result
    try:
        _, words = await process.communicate()
    finally:
        await _end(process)
    result.wall = time.monotonic() - began
    result.status = process.returncode
    result.words = _text(words)
    _read_report(report, result)
    return result


def launcher_arguments(call: PlannedCall, stage: Stage) -> list[str]:
    """``corral-exec`` with what the call declares; nothing when the replay is bare."""
    if stage.launcher is None:
        return []
    argv = [str(stage.launcher), "--tool", call.tool, "--class", call.call_class]
    if stage.declare_peak:
        peak = round(call.schedule.peak_bytes * HEADROOM) + PROGRAM_BYTES
        argv += ["--memory", f"{peak // 2}:{peak}", "--duration", f"{call.schedule.end:.3f}s"]
    return [*argv, "--"]


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM first: corral-exec passes it on to its child. A call that is held by the freezer cannot answer."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), 2.0)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _read_report(path: Path, result: Result) -> None:
    """What the process measured, also when it was killed on the way: then without the end, and maybe half a line."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except FileNotFoundError:
        return  # it never started: the status says why
    for line in lines:
        if line.startswith("# end "):
            pairs = dict(part.partition("=")[::2] for part in line[len("# end ") :].split())
            result.complete = True
            result.peak_bytes = int(pairs["peak_bytes"])
            result.cpu_usec = int(pairs["cpu_usec"])
            continue
        parts = line.split(",")
        if len(parts) == 3 and all(part.isdecimal() for part in parts):
            result.latencies.append(int(parts[2]))


def _text(data: bytes | None) -> str:
    return " ".join((data or b"")[:MAX_STDERR].decode("utf-8", "replace").split())
