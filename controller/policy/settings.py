"""Settings of the control policies. Bytes, seconds, shares; the defaults are those that docs/control.md measures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlConfig:
    """``hold_max``: how long a call may be held in one go before it goes on or is ended.

    ``raise_step``/``raise_share``: by the larger of the two (a share of its use) a threshold is raised.
    ``least_slack``: what a squeezed call keeps above its use. ``first_grant``: the least threshold of a new call.
    ``age``: seconds of waiting that weigh as much as one point of priority. ``fair_points``: what a tenant with all of
    the memory loses against one with none, in points of priority. ``deadline_points``: what a call gains whose deadline
    leaves it no time to wait. ``backfill``: a call that likely ends within so many seconds may go ahead of one that
    waits for more memory than there is. ``advise_below``/``relax_above``: shares of the capacity that are free.
    ``freeze_below``/``kill_below``: shares of it that are unused; the last is taken from running calls only to save
    the agents. ``champion_reserve``: share of the capacity that the first call of the host may use beyond it, out of
    the host's reserve, when nobody else can free anything. ``cpu_overcommit``: declared cores over the host's cores.
    """

    hold_max: float = 30.0
    raise_step: int = 32 * MIB
    raise_share: float = 0.125
    least_slack: int = 8 * MIB
    first_grant: int = 16 * MIB
    age: float = 1.0
    fair_points: float = 25.0
    deadline_points: float = 25.0
    backfill: float = 1.0
    advise_below: float = 0.05
    relax_above: float = 0.15
    freeze_below: float = -0.02
    kill_below: float = -0.046
    champion_reserve: float = 0.025
    cpu_overcommit: float = 4.0
