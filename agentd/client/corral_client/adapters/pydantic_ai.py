"""A shell for agents of pydantic-ai whose every command is a tool call of Corral. Needs ``corral-client[pydantic-ai]``.

    from pydantic_ai import Agent
    from corral_client.adapters.pydantic_ai import shell_toolset

    async with await aio.open_session("acme", "fix-1234") as session:
        agent = Agent(model, toolsets=[shell_toolset(session, memory="300M:2G")])
        await agent.run("make the tests pass")

The model gets one tool, ``run_command``. It may declare what a command needs, and it reads what Corral did to it, and
why, with the command's own output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, Unpack

from corral_client import aio
from corral_client.errors import CallTimeout, CorralError
from corral_client.intent import Declared, Intent
from corral_client.launcher import Fail, Word
from corral_client.process import CompletedProcess
from corral_client.session import Session

try:
    from pydantic_ai.toolsets import FunctionToolset
except ImportError as err:
    raise ImportError("this adapter needs pydantic-ai: pip install 'corral-client[pydantic-ai]'") from err

MAX_OUTPUT: Final = 30_000  # characters of each stream that the model is shown; of more, beginning and end
DEFAULT_TIMEOUT: Final = 600.0  # seconds


def shell_toolset(
    session: Session | None = None,
    *,
    shell: str = "bash",
    cwd: Word | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    fail: Fail | None = None,
    **declared: Unpack[Declared],
) -> FunctionToolset[Any]:
    """A toolset with ``run_command``. What is declared here holds for every command that declares nothing itself.

    ``session``: whose calls they are; else that of the environment. ``timeout``: the longest that a model may ask for,
    in seconds. ``fail``: as for ``corral_client.call``.
    """
    base = Intent.of(None, declared)

    async def run_command(  # noqa: PLR0917 - the parameters of the model's tool
        command: str,
        call_class: str = "",
        memory_typical_mib: int | None = None,
        memory_peak_mib: int | None = None,
        timeout_seconds: float | None = None,
        on_pressure: Literal["wait", "degrade", "fail_fast"] = "wait",
    ) -> str:
        """Run a shell command and return its exit status and output.

        Declare memory for anything heavy: it is stopped at the peak that you declare, or at a default.

        Args:
            command: the command, for bash
            call_class: what kind of work it is: test, build, install, git, search, data
            memory_typical_mib: where its memory will mostly stay
            memory_peak_mib: what its memory may burst to
            timeout_seconds: it is ended after that
            on_pressure: when the host is full: wait for room, take less, or fail at once
        """
        own: Declared = {"on_pressure": on_pressure} if on_pressure != base.on_pressure else {}
        if call_class:
            own["call_class"] = call_class
        if memory_peak_mib is not None or memory_typical_mib is not None:
            own["memory"] = _memory(memory_typical_mib, memory_peak_mib)
        try:
            done = await aio.run(
                [shell, "-c", command],
                capture_output=True,
                cwd=cwd,
                env=env,
                timeout=min(timeout, timeout_seconds or timeout),
                session=session,
                fail=fail,
                intent=Intent.of(base, {"tool": "run_command", **own} if not base.tool else own),
            )
        except CallTimeout as late:
            return f"The command was ended after {late.timeout:g} s, its timeout. Give a longer one, or split the work."
        except CorralError as err:
            # refused, no daemon: for the model to act on, not for the program to die of
            return f"The command did not run. {err}"
        return _shown(done)

    return FunctionToolset[Any]([run_command])


def _memory(typical: int | None, peak: int | None) -> str:
    return f"{'' if typical is None else f'{typical}M'}{'' if peak is None else f':{peak}M'}"


def _shown(done: CompletedProcess[bytes]) -> str:
    how = f"exit status {done.returncode}" if done.returncode >= 0 else f"killed by signal {-done.returncode}"
    # corral-exec prints the paragraph on stderr, too: once is enough
    message = done.outcome.message
    stderr = _cut(done.stderr)
    if message and (at := stderr.rfind("corral: ")) >= 0:
        stderr = stderr[:at]
    parts = [f"[{how}]"]
    parts += [f"[corral, {done.outcome.reason}] {message}"] if message else []
    parts += [f"[corral] {note}" for note in done.outcome.notes]
    parts += [f"[stdout]\n{_cut(done.stdout)}"] if done.stdout else []
    parts += [f"[stderr]\n{stderr}"] if stderr.strip() else []
    return "\n".join(parts)


def _cut(data: bytes) -> str:
    text = data.decode("utf-8", "replace")
    if len(text) <= MAX_OUTPUT:
        return text
    half = MAX_OUTPUT // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
