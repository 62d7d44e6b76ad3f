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
    leaves it no time to wait. ``arm_below``: while more than this share of the capacity is free, calls that declared
    nothing run without a threshold; 1.0: never (the simulator's dense hosts). ``disarm_above``: the share above which
    thresholds that only shortage gave are taken away again. ``backfill``: a call that likely ends within so many
    seconds may go ahead of one that waits for more memory than there is. ``advise_below``/``relax_above``: shares of
    the capacity that are free. ``freeze_at``/``kill_at``: shares of the host's reserve that are used up when calls are
    frozen, and ended, to save the agents; calls that use less than ``first_grant`` are spared: it would help nobody.
    ``champion_reserve``: share of the reserve that the first call of the host may use when nobody else can free
    anything. ``cpu_overcommit``: declared cores over the host's cores.
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
    arm_below: float = 1.0
    disarm_above: float = 1.0
    freeze_at: float = 0.38
    kill_at: float = 0.874
    champion_reserve: float = 0.475
    cpu_overcommit: float = 4.0
