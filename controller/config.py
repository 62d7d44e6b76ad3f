"""What the controller must be told. The daemon builds these from its configuration file; defaults are safe anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from controller.budget.price import Prices
from controller.model import BudgetRule, Limits
from controller.policy.settings import ControlConfig

MIB = 1024 * 1024
ARM_BELOW: Final = 0.25  # of the capacity that is free: see ControlConfig
DISARM_ABOVE: Final = 0.35


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantConfig:
    """``uids`` may open sessions of the tenant. ``max_calls`` at once: more wait in the tenant's queue. ``budgets`` are
    of the tenant as a whole, ``session_budgets`` of each of its sessions. ``weight``: its share of the memory, against
    other tenants', while calls wait for their turn."""

    name: str
    uids: frozenset[int] = frozenset()
    limits: Limits = field(default_factory=Limits)
    priority: int = 50
    max_calls: int | None = None
    max_sessions: int | None = None
    budgets: tuple[BudgetRule, ...] = ()
    session_budgets: tuple[BudgetRule, ...] = ()
    weight: float = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CallConfig:
    """Defaults and bounds of single calls.

    ``brake_factor``: the brake is armed at the declared peak times this. ``hard_limit_factor``: memory_max of a call
    that declared a peak is that peak times this (None: no hard limit; the tenant's ceiling and the host still hold).
    ``io_max``, ``egress_max`` bytes a second: see controller.model.Limits.
    ``hold_max`` seconds: how long a braked call may be held before it must be resumed or ended. ``raise_step`` bytes:
    by at least this much a brake is raised when there is room.
    """

    memory_max: int | None = None
    pids_max: int | None = 4096
    io_max: int | None = None
    egress_max: int | None = None
    brake_factor: float = 1.0
    hard_limit_factor: float | None = 2.0
    hold_max: float = 30.0
    raise_step: int = 64 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """``memory``: bytes that calls and agents may use in all (None: what the host has). ``memory_reserve``: share of it
    (0 to 1) that no brake is raised into. Times in seconds.

    ``default_tenant``: name of the tenant of uids that no tenant names; None refuses them. ``restart_grace``: how long
    after a restart a launcher may take to come back. ``leftovers``: what happens to processes that outlive their call.
    ``sample_budget``: the share of one core that sampling may take; the interval stretches to keep to it.
    """

    tenants: tuple[TenantConfig, ...] = ()
    default_tenant: str | None = "default"
    call: CallConfig = field(default_factory=CallConfig)
    memory: int | None = None
    memory_reserve: float = 0.05
    sample_interval: float = 1.0
    sample_budget: float = 0.01
    record_interval: float = 10.0  # of samples in the ledger; those on screen are fresher
    restart_grace: float = 15.0
    leftovers: Literal["adopt", "kill"] = "adopt"
    leftover_grace: float = 0.25
    token_ttl: float = 86_400.0
    prices: Prices = field(default_factory=Prices)  # what is charged to budgets of money
    keep_ended: int = (
        512  # ended calls kept in memory for GetOutcome and `corral ps --all`; older ones are in the ledger
    )

    def control(self) -> ControlConfig:
        """What of it the policies need. A live host is not always dense: see ``arm_below``."""
        return ControlConfig(
            hold_max=self.call.hold_max, raise_step=self.call.raise_step, arm_below=ARM_BELOW, disarm_above=DISARM_ABOVE
        )
