"""The demo's agents: what each runs, in which order, what it declares, and what is known beforehand about its calls.

An agent is a list of rounds, as a language model makes them: the calls of one round run side by side, the next round
begins when all of them have ended.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from agentd.demo.workloads import SUITES, Workloads

MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call. ``memory`` is (typical, peak) in MiB, as declared; ``known_*`` bytes that the call must at least move.

    ``overreaches``: it needs more memory than it declares, so it is expected to be braked, and it may die of it.
    """

    tool: str
    call_class: str
    argv: tuple[str, ...]
    memory: tuple[int, int] | None = None
    cpu: float | None = None
    duration: float | None = None  # seconds, declared
    cwd: Path | None = None
    overreaches: bool = False
    needs_memory: int = 0  # bytes that it surely touches
    known_read: int = 0
    known_received: int = 0

    def options(self) -> list[str]:
        """The intent as options of corral-exec."""
        options = ["--tool", self.tool, "--class", self.call_class]
        if self.memory:
            options += ["--memory", "{}M:{}M".format(*self.memory)]
        if self.cpu is not None:
            options += ["--cpu", f"{self.cpu:g}"]
        if self.duration is not None:
            options += ["--duration", f"{self.duration:g}s"]
        return options

    def without_limits(self) -> ToolCall:
        """The same call, asking for nothing that has to be enforced: for hosts that can only observe."""
        return replace(self, memory=None, cpu=None, overreaches=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    tenant: str
    session: str
    rounds: tuple[tuple[ToolCall, ...], ...]

    def calls(self) -> list[ToolCall]:
        return [call for calls in self.rounds for call in calls]


# [tenants.NAME] of the demo's configuration. A call of greedy can be raised past what it declared, but not far.
TENANTS: Final[dict[str, dict[str, str | int]]] = {
    "acme": {"priority": 10},
    "beta": {"priority": 50},
    "greedy": {"priority": 90, "memory_max": "320M"},
}

# (tenant, session) of the agents, in the order of cast().
SESSIONS: Final = (("acme", "refactor"), ("acme", "review"), ("beta", "ci"), ("greedy", "crunch"))


def cast(workloads: Workloads, port: int, *, enforced: bool) -> tuple[Agent, ...]:
    """All agents. ``port`` is the file server's. Not ``enforced``: no call declares a limit."""
    w = workloads
    agents = (
        Agent(
            tenant="acme",
            session="refactor",
            rounds=(
                (_clone(w, "refactor"),),
                (_search(w, r"async def __a(enter|exit)__"), _search(w, r"class \w+\(Exception\)")),
                (_compile(w, "refactor"),),
                (_pytest("jsonschema"), _data(w, "refactor", 96, declared=(96, 192))),
                (_wheel(w, "refactor"),),
            ),
        ),
        Agent(
            tenant="acme",
            session="review",
            rounds=(
                (_clone(w, "review"), _fetch(w, "review", port)),
                (_typecheck(w, "review"),),
                (_data(w, "review", 160, declared=(128, 256)), _search(w, r"raise NotImplementedError")),
                (_pytest("referencing"),),
            ),
        ),
        Agent(
            tenant="beta",
            session="ci",
            rounds=(
                (_clone(w, "ci"),),
                (_compile(w, "ci"), _fetch(w, "ci", port)),
                (_wheel(w, "ci"),),
                (_pytest("jsonschema", quiet=True), _data(w, "ci", 128, declared=(96, 224))),
                (_search(w, r"def __init_subclass__"),),
            ),
        ),
        Agent(
            tenant="greedy",
            session="crunch",
            rounds=(
                (_fetch(w, "crunch", port),),
                (_data(w, "crunch", 176, declared=(64, 128), overreaches=True),),
                (_data(w, "crunch", 400, declared=(64, 128), overreaches=True),),
                (_search(w, r"import (array|mmap)"), _clone(w, "crunch")),
            ),
        ),
    )
    if enforced:
        return agents
    return tuple(
        replace(agent, rounds=tuple(tuple(c.without_limits() for c in calls) for calls in agent.rounds))
        for agent in agents
    )


def refused_call() -> ToolCall:
    """Asks for a limit: a host that can only observe must refuse it."""
    return ToolCall(tool="true", call_class="test", argv=("/bin/true",), memory=(16, 32))


def _python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, *arguments)


def _clone(w: Workloads, session: str) -> ToolCall:
    # --no-local: objects go through the transport, as from a server, instead of being hard-linked
    argv = ("git", "clone", "--quiet", "--no-local", str(w.repository), str(w.home(session) / "out" / "clone"))
    return ToolCall(tool="git", call_class="git", argv=argv, memory=(64, 192), duration=3)


def _search(w: Workloads, pattern: str) -> ToolCall:
    excluded = [f"--exclude-dir={name}" for name in ("site-packages", "dist-packages", "test")]
    argv = ("grep", "-rnE", "--include=*.py", *excluded, pattern, str(w.source_tree))
    return ToolCall(tool="grep", call_class="search", argv=argv, memory=(16, 128), known_read=w.source_bytes)


def _compile(w: Workloads, session: str) -> ToolCall:
    argv = ("make", "-j4", "check")
    return ToolCall(
        tool="make", call_class="build", argv=argv, cwd=w.home(session) / "c", memory=(256, 768), cpu=2, duration=15
    )


def _pytest(package: str, *, quiet: bool = False) -> ToolCall:
    modules = [f"{package}.tests.test_{name}" for name in SUITES[package]]
    # -c /dev/null: a configuration of its own, not that of the checkout in which .venv happens to lie
    options = ("-qq" if quiet else "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir=/")
    argv = _python("-m", "pytest", *options, "--pyargs", *modules)
    return ToolCall(tool="pytest", call_class="test", argv=argv, memory=(128, 384), duration=10)


def _typecheck(w: Workloads, session: str) -> ToolCall:
    argv = _python("-m", "mypy", "--cache-dir=/dev/null", "--strict", "-p", "controller.model")
    return ToolCall(
        tool="mypy", call_class="lint", argv=argv, cwd=w.home(session) / "package", memory=(256, 768), duration=15
    )


def _wheel(w: Workloads, session: str) -> ToolCall:
    home = w.home(session)
    # the backend is in the environment already: no isolation, no index, so no network
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir")
    argv = _python("-m", "pip", "wheel", *options, "--wheel-dir", str(home / "out"), str(home / "package"))
    return ToolCall(tool="pip", call_class="build", argv=argv, memory=(128, 384), duration=8)


_FETCH: Final = """\
import shutil, sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
with opener.open(sys.argv[1], timeout=30) as source, open(sys.argv[2], "wb") as target:
    shutil.copyfileobj(source, target, 1 << 18)
"""


def _fetch(w: Workloads, session: str, port: int) -> ToolCall:
    url = f"http://127.0.0.1:{port}/{w.fetch.name}"
    argv = _python("-c", _FETCH, url, str(w.home(session) / "out" / w.fetch.name))
    return ToolCall(tool="fetch", call_class="data", argv=argv, memory=(64, 192), known_received=w.fetch_bytes)


def _data(
    w: Workloads, session: str, megabytes: int, *, declared: tuple[int, int], overreaches: bool = False
) -> ToolCall:
    argv = _python(
        *("-m", "agentd.demo.datajob", f"--megabytes={megabytes}", "--step=16", "--pause=0.04"),
        f"--out={w.home(session)}/out/data-{megabytes}.csv",
    )
    return ToolCall(
        tool="python",
        call_class="data",
        argv=argv,
        memory=declared,
        overreaches=overreaches,
        needs_memory=megabytes * MIB,
    )
