"""FastSwitch's ladder (arXiv 2411.18424) in a model: what a context switch costs an engine that keeps priorities fair.

The paper names three causes of the cost of preemption in vLLM: small copies that do not use the link, a GPU that idles
while copies run, and copies of KV that is in host memory already; its three remedies are taken up one after the other:

    VLLM      blocks of 16 tokens, each a copy per layer for K and for V; all wait until the copies have ended
    GROUPS    + block groups: copies of up to ``group`` tokens
    ASYNC     + copies run beside the computation; a request goes on when its own copy has ended
    REUSE     + what was copied out once, and is still there, is not copied out again

The model, and where it is ours and not the paper's:

- an iteration takes ``base + each x batch + prefill x prompt tokens`` seconds;
- priorities of all requests are drawn anew every ``every`` iterations, and in their order requests hold the pool;
- a copy costs ``dispatch`` seconds an operation and its bytes over the link; copies of both directions queue for the
  one thread that issues them (the paper's swap manager has several, which share the driver's lock);
- under all four a conversation's KV goes to host memory at a turn's end and comes back for the next; host memory is
  not short;
- conversations arrive at random (Poisson); turns, sizes and times between turns are geometric, log-normal and
  exponential. A turn's first token counts from its arrival; the time between tokens counts preemptions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from heapq import heappop, heappush
from math import ceil, exp, log
from random import Random
from typing import Final

from gpu.errors import InvalidValue


class Rung(IntEnum):
    """Each with all below it."""

    VLLM = 0
    GROUPS = 1
    ASYNC = 2
    REUSE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchModel:
    """Seconds, tokens, bytes. The default: a model of 8 G parameters (32 layers, 128 KiB a token) on a 24 GB GPU."""

    pool: int = 40_000
    bytes_per_token: int = 131_072
    layers: int = 32
    block: int = 16
    group: int = 1000
    dispatch: float = 6e-6
    bytes_per_second: float = 20e9
    base: float = 0.020
    each: float = 0.0002
    prefill: float = 1.5e-4
    every: int = 25
    rate: float = 0.9  # conversations a second
    conversations: int = 160
    turns: float = 5.5
    prompt: int = 150
    answer: int = 190
    think: float = 12.0

    def __post_init__(self) -> None:
        if min(self.pool, self.block, self.group, self.layers, self.every, self.conversations) < 1 or self.rate <= 0:
            raise InvalidValue("a switch model with sizes below one", remedy="sizes and rates are above zero")

    def copy_seconds(self, tokens: int, rung: Rung) -> float:
        if tokens <= 0:
            return 0.0
        grain = self.block if rung < Rung.GROUPS else self.group
        operations = ceil(tokens / grain) * 2 * self.layers
        return operations * self.dispatch + tokens * self.bytes_per_token / self.bytes_per_second


@dataclass(slots=True)
class LadderResult:
    """Seconds: of each turn its first token, and all times between tokens. ``copied``: bytes both ways."""

    rung: Rung
    first_token: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    copied: int = 0
    switches: int = 0  # preemptions of running requests
    wall: float = 0.0
    idle: float = 0.0  # seconds in which the GPU waited for copies


@dataclass(slots=True)
class _Turn:
    """A conversation, in its present turn."""

    name: int
    plan: list[tuple[int, int, float]]  # prompt, answer, think after it
    at: int = 0
    context: int = 0  # tokens of KV, wherever
    copied: int = 0  # of these, valid in host memory
    here: bool = False  # holds the pool
    ready: float = 0.0  # its copy in has ended
    prefilled: bool = False
    left: int = 0
    arrived: float = 0.0
    last: float = 0.0
    priority: float = 0.0
    fits: int = 0  # tokens held in the pool


def climb(rung: Rung, model: SwitchModel, *, seed: int) -> LadderResult:
    """One run. The same seed gives all rungs the same conversations, and a request the same priority at a time."""
    return _Run(rung, model, seed).run()


class _Run:
    def __init__(self, rung: Rung, model: SwitchModel, seed: int) -> None:
        self.rung: Final = rung
        self.model: Final = model
        self.out: Final = LadderResult(rung)
        self.now = 0.0
        self.iteration = 0
        self.seed: Final = seed
        self.active: list[_Turn] = []
        self.used = 0
        self.link = 0.0  # until when copies are queued
        self.coming: list[tuple[float, int, _Turn]] = []  # turns that arrive
        self.leaving: list[tuple[float, int]] = []  # tokens of the pool that come free
        random = Random(seed)  # noqa: S311  # a model's chance, to be repeated
        at = 0.0
        for name in range(model.conversations):
            at += random.expovariate(model.rate)
            plan = []
            while True:
                prompt, answer = _size(random, model.prompt), _size(random, model.answer)
                plan.append((prompt, answer, random.expovariate(1 / model.think)))
                if random.random() < 1 / model.turns:
                    break
            heappush(self.coming, (at, name, _Turn(name, plan)))

    def run(self) -> LadderResult:
        while self.coming or self.active:
            self._arrivals()
            if not self.active:
                self.now = max(self.now, self.coming[0][0])
                continue
            if self.iteration % self.model.every == 0:
                self._draw()
            self.iteration += 1
            stall = self._place()
            self.out.idle += stall
            self.now += stall
            self._step()
        self.out.wall = self.now
        return self.out

    def _arrivals(self) -> None:
        while self.coming and self.coming[0][0] <= self.now:
            at, _, turn = heappop(self.coming)
            turn.arrived, turn.prefilled = at, False
            turn.left = turn.plan[turn.at][1]
            turn.priority = self._priority(turn)
            self.active.append(turn)

    def _draw(self) -> None:
        for turn in self.active:
            turn.priority = self._priority(turn)

    def _priority(self, turn: _Turn) -> float:
        """Of its name and the time alone: all rungs meet the same changes."""
        return Random(f"{self.seed}/{turn.name}/{turn.at}/{int(self.now * 2)}").random()  # noqa: S311

    def _place(self) -> float:
        """Gives the pool to the highest priorities. Returns the seconds for which all wait."""
        while self.leaving and self.leaving[0][0] <= self.now:
            self.used -= heappop(self.leaving)[1]
        order = sorted(self.active, key=lambda turn: (-turn.priority, turn.arrived, turn.name))
        chosen: list[_Turn] = []
        room = self.model.pool
        for turn in order:
            need = self._need(turn)
            if need > room:
                break
            room -= need
            chosen.append(turn)
        names = {turn.name for turn in chosen}
        stall = 0.0
        for turn in self.active:
            if turn.here and turn.name not in names:
                self.out.switches += 1
                stall += self._copy_out(turn)
        for turn in chosen:
            if turn.here:
                continue
            need = self._need(turn)
            if self.used + need > self.model.pool:
                continue  # room is on its way
            self.used += need
            turn.here, turn.fits = True, need
            stall += self._copy_in(turn)
        return stall

    def _need(self, turn: _Turn) -> int:
        """Tokens until the turn's end: to grow never takes another's room."""
        prompt = 0 if turn.prefilled else turn.plan[turn.at][0]
        return turn.context + prompt + turn.left

    def _copy_out(self, turn: _Turn) -> float:
        valid = turn.copied if self.rung >= Rung.REUSE else 0
        tokens = turn.context - valid
        seconds = self.model.copy_seconds(tokens, self.rung)
        self.out.copied += tokens * self.model.bytes_per_token
        turn.copied = turn.context
        held, turn.here, turn.fits = turn.fits, False, 0
        if self.rung < Rung.ASYNC:
            self.used -= held
            return seconds
        self.link = max(self.now, self.link) + seconds
        heappush(self.leaving, (self.link, held))
        return 0.0

    def _copy_in(self, turn: _Turn) -> float:
        seconds = self.model.copy_seconds(turn.context, self.rung)
        self.out.copied += turn.context * self.model.bytes_per_token
        if self.rung < Rung.ASYNC:
            turn.ready = self.now
            return seconds
        self.link = max(self.now, self.link) + seconds
        turn.ready = self.link
        return 0.0

    def _step(self) -> None:
        """An iteration of all whose KV is there. With none, the GPU waits for the next copy or arrival."""
        running = [turn for turn in self.active if turn.here and turn.ready <= self.now]
        if not running:
            ahead = [turn.ready for turn in self.active if turn.here]
            ahead += [at for at, _ in self.leaving[:1]] + [at for at, _, _ in self.coming[:1]]
            until = min((at for at in ahead if at > self.now), default=self.now + self.model.base)
            self.out.idle += until - self.now
            self.now = until
            return
        prompts = sum(turn.plan[turn.at][0] for turn in running if not turn.prefilled)
        model = self.model
        self.now += model.base + model.each * len(running) + model.prefill * prompts
        for turn in running:
            self._token(turn)

    def _token(self, turn: _Turn) -> None:
        if turn.prefilled:
            self.out.between.append(self.now - turn.last)
        else:
            turn.prefilled = True
            turn.context += turn.plan[turn.at][0]
            self.out.first_token.append(self.now - turn.arrived)
        turn.last = self.now
        turn.context += 1
        turn.left -= 1
        if turn.left > 0:
            return
        self.active.remove(turn)
        think = turn.plan[turn.at][2]
        turn.at += 1
        if turn.at == len(turn.plan):
            self.used -= turn.fits
            return
        stall = self._copy_out(turn)
        self.out.idle += stall
        self.now += stall
        heappush(self.coming, (self.now + think, turn.name, turn))


def _size(random: Random, median: int) -> int:
    return max(8, min(2000, int(exp(log(median) + random.gauss(0.0, 0.9)))))
