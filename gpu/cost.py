"""What KV costs to compute, to move and to hold. Pure formulas, each with its source. Tokens, bytes, seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpu.errors import InvalidValue


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardModel:
    """Seconds to compute the KV of n tokens: ``a n^2 + b n + c`` (Continuum, arXiv 2511.02230)."""

    a: float = 0.0
    b: float
    c: float = 0.0

    def __post_init__(self) -> None:
        if self.a < 0 or self.b < 0 or self.c < 0 or not (self.a or self.b):
            raise InvalidValue(
                f"a forward pass of {self.a} n^2 + {self.b} n + {self.c} seconds", remedy="fit it to measured prefills"
            )

    def seconds(self, tokens: float) -> float:
        return 0.0 if tokens <= 0 else self.a * tokens * tokens + self.b * tokens + self.c


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapModel:
    """Seconds to move KV one way. ``bytes_per_second``: of the link or disk; ``latency``: of one move."""

    bytes_per_second: float
    latency: float = 0.0

    def __post_init__(self) -> None:
        if not self.bytes_per_second > 0 or self.latency < 0:
            raise InvalidValue(
                f"a move at {self.bytes_per_second} bytes/s after {self.latency} s",
                remedy="measure a save and a restore",
            )

    def seconds(self, size: float) -> float:
        return 0.0 if size <= 0 else self.latency + size / self.bytes_per_second


def fit_forward(samples: Sequence[tuple[float, float]]) -> ForwardModel | None:
    """Least squares through measured (tokens, seconds), with no coefficient below zero.

    Exact, by trying each set of terms: with three terms there are six, and the best one whose coefficients are not
    negative is the constrained optimum.

    :returns: None with fewer than two different sizes, or where nothing but a constant fits
    """
    sizes = {tokens for tokens, _ in samples}
    if len(sizes) < 2 or max(sizes) <= 0:
        return None
    # Scaled to the largest size: a sum of fourth powers of 100,000 tokens would drown the rest.
    scale = max(sizes)
    scaled = [(tokens / scale, seconds) for tokens, seconds in samples]
    best: tuple[float, list[float]] | None = None
    for powers in ((0, 1, 2), (1, 2), (0, 2), (0, 1), (2,), (1,)):
        if len(powers) > len(sizes):
            continue
        found = _least_squares(scaled, powers)
        if found is None or min(found) < 0:
            continue
        error = sum((seconds - sum(c * x**p for p, c in enumerate(found))) ** 2 for x, seconds in scaled)
        if best is None or error < best[0]:
            best = (error, found)
    if best is None:
        return None
    c, b, a = best[1][0], best[1][1] / scale, best[1][2] / scale**2
    return ForwardModel(a=a, b=b, c=c) if a or b else None


def _least_squares(samples: list[tuple[float, float]], powers: Sequence[int]) -> list[float] | None:
    """Coefficients of 1, x, x^2 (0 for those not in ``powers``), by the normal equations; None: they are singular."""
    size = len(powers)
    rows = [
        [sum(x ** (one + two) for x, _ in samples) for two in powers] + [sum(y * x**one for x, y in samples)]
        for one in powers
    ]
    for i in range(size):
        pivot = max(range(i, size), key=lambda row: abs(rows[row][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        if abs(rows[i][i]) < 1e-12:
            return None
        for row in range(size):
            if row != i:
                factor = rows[row][i] / rows[i][i]
                rows[row] = [value - factor * base for value, base in zip(rows[row], rows[i], strict=True)]
    found = [0.0, 0.0, 0.0]
    for i, power in enumerate(powers):
        found[power] = rows[i][size] / rows[i][i]
    return found


def gamma(*, layers: int, width: int, parameters: float, flops_per_byte: float) -> float:
    """Weight of a decoded token per token of its context, in prefill token equivalents (arXiv 2604.05404).

    ``2 layers width HOI / parameters``; HOI is what the GPU computes (FLOPs) in the time in which it reads a byte.
    """
    if min(layers, width) < 1 or parameters <= 0 or flops_per_byte <= 0:
        raise InvalidValue(
            f"a model of {layers} layers, width {width}, {parameters} parameters; a GPU of {flops_per_byte} FLOPs/byte",
            remedy="take them from the model's configuration and the GPU's data sheet",
        )
    return 2 * layers * width * flops_per_byte / parameters


def prefill_equivalents(*, computed: int, generated: int, context: int, gamma: float) -> float:
    """PTE of one turn: ``D_prefill + gamma L_seq D_decode`` (arXiv 2604.05404).

    The paper assumes that the cache is lost at each tool call; here ``computed`` are the tokens that really were
    computed, so that kept KV costs nothing. ``context``: tokens at the end of the turn.
    """
    return computed + gamma * context * generated
