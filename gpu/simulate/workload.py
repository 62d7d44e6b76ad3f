"""What an agent does, from a recording of its tool calls: turns of the model and pauses while tools run.

A recording knows when each tool call began and ended, and nothing of tokens. What is modelled, and how:

- calls that overlap, or follow within ``TOGETHER``, belong to one turn: the model waits for all of them (recorded);
- the pause is from the first one's begin to the last one's end (recorded);
- tokens that the model generates: the recorded time between pauses, at ``tokens_per_second`` after ``first_token``
  seconds, within ``least`` and ``most`` (an assumption about the recorded model's speed);
- tokens that a tool's answer adds to the prompt: log-normal around a median of its class (an assumption; the sizes that
  coding agents' tools cut their answers to);
- the first prompt (system prompt, tools, task): log-normal around ``first_prompt``;
- a context that would outgrow ``context`` is cut to half of it (a compaction): all of that is computed anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log
from random import Random
from typing import Final

from gpu.cost import prefill_equivalents
from gpu.errors import InvalidValue

TOGETHER: Final = 0.25  # seconds between calls of one turn

# Median tokens of an answer.
ANSWER_TOKENS: Final[Mapping[str, int]] = {
    "Read": 1500,
    "Grep": 400,
    "Glob": 200,
    "Edit": 250,
    "Write": 100,
    "TodoWrite": 60,
    "Task": 900,
    "WebFetch": 1500,
    "WebSearch": 1200,
    "Bash/test": 900,
    "Bash/python": 400,
    "Bash/install": 500,
    "Bash/build": 900,
    "Bash/git": 350,
    "Bash/explore": 500,
    "Bash/other": 300,
}


@dataclass(frozen=True, slots=True)
class Call:
    """A recorded tool call; seconds. ``kind``: its class, such as ``Read`` or ``Bash/test``."""

    start: float
    end: float
    kind: str


@dataclass(frozen=True, slots=True)
class Step:
    """One turn of the model, then a pause. ``fresh``: the context begins anew with this prompt (a compaction)."""

    prompt: int  # tokens that the prompt adds to the context
    generated: int
    pause: float  # seconds; of the last step 0
    kinds: tuple[str, ...]
    fresh: bool = False

    @property
    def tokens(self) -> int:
        return self.prompt + self.generated


@dataclass(frozen=True, slots=True)
class Script:
    name: str
    steps: tuple[Step, ...]
    starts: float = 0.0  # seconds

    @property
    def largest(self) -> int:
        """The longest context, in tokens."""
        context = most = 0
        for step in self.steps:
            context = step.tokens if step.fresh else context + step.tokens
            most = max(most, context)
        return most

    def decoding(self, gamma: float) -> float:
        """Prefill token equivalents of all that it generates (gpu.cost): the same under every policy."""
        context = 0
        total = 0.0
        for step in self.steps:
            context = step.tokens if step.fresh else context + step.tokens
            total += prefill_equivalents(computed=0, generated=step.generated, context=context, gamma=gamma)
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenModel:
    tokens_per_second: float = 50.0
    first_token: float = 0.8
    least: int = 24
    most: int = 1500
    first_prompt: int = 12_000
    spread: float = 0.6  # of the logarithm of an answer's tokens
    context: int = 96_000
    answers: Mapping[str, int] = field(default_factory=lambda: ANSWER_TOKENS)

    def __post_init__(self) -> None:
        if self.tokens_per_second <= 0 or not 0 < self.least <= self.most or self.context < 4 * self.first_prompt:
            raise InvalidValue(
                f"a token model of {self.tokens_per_second} tokens/s, {self.least} to {self.most} generated",
                remedy="times and counts are above zero, a context holds at least four first prompts",
            )


def script(
    name: str,
    calls: Sequence[Call],
    *,
    random: Random,
    model: TokenModel | None = None,
    turns: int | None = None,
    starts: float = 0.0,
) -> Script:
    """:param turns: the first so many only; None: all. :raises InvalidValue: the recording holds no calls"""
    model = model or TokenModel()
    groups = _turns(calls)
    if not groups:
        raise InvalidValue(f"recording {name}: no tool call", remedy="use a recording of an agent that ran tools")
    steps: list[Step] = []
    prompt = _draw(random, model.first_prompt, 0.25)
    context, fresh = 0, False
    before = groups[0][0].start - model.first_token - 3.0
    for group in groups[: None if turns is None else turns - 1]:
        begin, end = group[0].start, max(call.end for call in group)
        generated = _generated(model, begin - before)
        kinds = tuple(sorted({call.kind for call in group}))
        steps.append(Step(prompt, generated, max(0.0, end - begin), kinds, fresh))
        context = prompt + generated if fresh else context + prompt + generated
        before = end
        prompt = sum(_draw(random, model.answers.get(call.kind, 400), model.spread) for call in group)
        fresh = context + prompt + model.most > model.context
        prompt = model.context // 2 if fresh else prompt
    steps.append(Step(prompt, _generated(model, 6.0), 0.0, (), fresh))
    return Script(name, tuple(steps), starts)


def _turns(calls: Sequence[Call]) -> list[list[Call]]:
    groups: list[list[Call]] = []
    until = float("-inf")
    for call in sorted(calls, key=lambda one: (one.start, one.end)):
        if groups and call.start <= until + TOGETHER:
            groups[-1].append(call)
        else:
            groups.append([call])
        until = max(until, call.end)
    return groups


def _generated(model: TokenModel, seconds: float) -> int:
    return int(min(model.most, max(model.least, (seconds - model.first_token) * model.tokens_per_second)))


def _draw(random: Random, median: int, spread: float) -> int:
    return max(1, int(exp(log(median) + spread * max(-2.5, min(2.5, random.gauss(0.0, 1.0))))))
