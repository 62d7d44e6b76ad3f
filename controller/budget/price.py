"""What use costs. Pure.

The unified cost is that of BATS (arXiv 2511.17006): what the tokens cost, plus for each tool the calls times its price.
Here a call's price is what it really used, at the prices of the operator, plus a flat price a call. Without prices
everything is free, and a budget of money is charged only what agents report.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from controller.model import Charges, Turn

_HOUR: Final = 3600.0
_GIB: Final = float(1 << 30)
_GB: Final = 1e9  # of network traffic, as it is sold
_KWH: Final = 3.6e6  # joules
_MILLION: Final = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrices:
    """For a million tokens. ``prompt`` is for those that were computed, ``cached`` for those that were not."""

    prompt: float = 0.0
    cached: float = 0.0
    generated: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """In one currency, whichever it is. ``tokens`` holds for engines that ``engines`` does not name."""

    cpu_hour: float = 0.0
    gib_hour: float = 0.0
    network_gb: float = 0.0  # 10^9 bytes
    gpu_hour: float = 0.0
    kwh: float = 0.0
    call: float = 0.0
    tokens: TokenPrices = field(default_factory=TokenPrices)
    engines: dict[str, TokenPrices] = field(default_factory=dict)


def cost(charges: Charges, prices: Prices) -> float:
    """Money: what the prices say of everything but tokens, and what is known to have been spent."""
    return (
        charges.money
        + charges.cpu_seconds / _HOUR * prices.cpu_hour
        + charges.memory_byte_seconds / _GIB / _HOUR * prices.gib_hour
        + charges.network_bytes / _GB * prices.network_gb
        + charges.gpu_seconds / _HOUR * prices.gpu_hour
        + charges.joules / _KWH * prices.kwh
        + charges.calls_begun * prices.call
    )


def turn_cost(turn: Turn, prices: Prices) -> float:
    """Money for the tokens of one turn: as reported, else by the engine's prices."""
    if turn.money is not None:
        return turn.money
    of = prices.engines.get(turn.engine, prices.tokens)
    computed = turn.prompt_tokens - turn.cached_tokens
    total = computed * of.prompt + turn.cached_tokens * of.cached + turn.generated_tokens * of.generated
    return total / _MILLION


def turn_charges(turn: Turn, prices: Prices) -> Charges:
    """All tokens count, cached ones too: a budget of tokens bounds what the model reads and writes; what they cost is
    the money's affair."""
    return Charges(tokens=float(turn.prompt_tokens + turn.generated_tokens), money=turn_cost(turn, prices))


def unified_cost(charges: Charges, turns: tuple[Turn, ...], prices: Prices) -> float:
    """Tokens and tools in one number."""
    return cost(charges, prices) + sum(turn_cost(turn, prices) for turn in turns)
