"""What the agents of the bench ``kv`` do: prompts that grow, and recorded agents' tool calls between the turns."""

from __future__ import annotations

import os
import random
from collections import defaultdict, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from tests.bench.harness import BenchError
from tests.bench.result import REPOSITORY

TRACES: Final = "CORRAL_TRACES"
SPEED: Final = 4.0  # recorded seconds per second of the bench
STARTS: Final = 4.0  # seconds over which agents begin: nobody opens twelve sessions at once
LONGEST: Final = 40.0  # recorded seconds: a single call of six minutes would be the whole run
OPENING: Final = 500  # characters, each a token of the model
RESULT: Final = 60  # characters that a tool call adds
GENERATED: Final = 12  # tokens of each turn
_KEPT: Final = 48  # durations of each kind


class _Trace(msgspec.Struct):
    """agentcg-compact-v1: each tool is [start, end, tool, category, command head]."""

    tools: list[tuple[float, float, str, str, str]]


@dataclass(frozen=True, slots=True)
class Call:
    """``kind``: the tool, and what kind of command it is: what Corral knows when it begins. Bench seconds."""

    kind: tuple[str, str]
    seconds: float


@dataclass(frozen=True, slots=True)
class Agent:
    name: str
    opening: str
    start: float  # seconds after the run's begin
    calls: tuple[Call, ...]  # one after each turn

    def result(self, turn: int) -> str:
        """What its tool call brings; the same in every cell."""
        return f" {self.name} result {turn}: " + _words(random.Random(f"{self.name}/{turn}"), RESULT)  # noqa: S311


class History:
    """Durations of calls that ended, by kind: at first those of traces that no agent of this run plays."""

    def __init__(self, earlier: list[Call]) -> None:
        self._of: defaultdict[tuple[str, str], deque[float]] = defaultdict(lambda: deque(maxlen=_KEPT))
        for call in earlier:
            self.ended(call)

    def ended(self, call: Call) -> None:
        self._of[call.kind].append(call.seconds)

    def of(self, kind: tuple[str, str]) -> tuple[float, ...]:
        return tuple(self._of[kind])


@dataclass(frozen=True, slots=True)
class Plan:
    agents: tuple[Agent, ...]
    earlier: tuple[Call, ...]

    @property
    def tokens_at_end(self) -> int:
        """Of one session, when its last turn has ended."""
        return OPENING + (GENERATED + RESULT + 20) * len(self.agents[0].calls)

    @property
    def pause_seconds(self) -> float:
        return sum(call.seconds for agent in self.agents for call in agent.calls)


def plan(count: int, turns: int, *, seed: int) -> Plan:
    """``count`` agents of ``turns`` turns. Each plays a stretch of one trace; the other traces are the past.

    Raises BenchError where there are no traces.
    """
    chance = random.Random(seed)  # noqa: S311  not for secrets
    traces = [one for one in _traces() if len(one) >= turns]
    chance.shuffle(traces)
    if len(traces) < count + 8:
        raise BenchError(f"only {len(traces)} traces have {turns} calls, {count + 8} are needed")
    played, others = traces[:count], traces[count:]
    agents = []
    for number, calls in enumerate(played):
        first = chance.randrange(len(calls) - turns + 1)
        name = f"a{number:02d}"
        agents.append(
            Agent(
                name=name,
                opening=_words(random.Random(f"{seed}/{name}"), OPENING),  # noqa: S311
                start=chance.random() * STARTS,
                calls=tuple(calls[first : first + turns]),
            )
        )
    earlier = [call for calls in others for call in calls]
    return Plan(tuple(agents), tuple(earlier))


def _traces() -> list[list[Call]]:
    folder = Path(os.environ.get(TRACES) or REPOSITORY.parent / "shared" / "traces" / "compact")
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            trace = msgspec.json.decode(path.read_bytes(), type=_Trace)
        except (OSError, msgspec.DecodeError) as err:
            raise BenchError(f"{path} is not a trace: {err}; see {TRACES}") from err
        tools = sorted(trace.tools)
        found.append([Call((t[2], t[3]), min(max(t[1] - t[0], 0.0), LONGEST) / SPEED) for t in tools])
    if not found:
        raise BenchError(f"no traces in {folder}; set {TRACES} to a directory of agentcg-compact-v1 files")
    return found


def _words(chance: random.Random, characters: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words: list[str] = []
    length = 0
    while length < characters:
        word = "".join(chance.choices(letters, k=chance.randint(2, 9)))
        words.append(word)
        length += len(word) + 1
    return " ".join(words)[:characters]
