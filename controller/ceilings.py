"""What an operator's limits are checked against before anything is touched: ceilings above, and the host's means."""

from __future__ import annotations

from collections.abc import Sequence

from controller.model import UNLIMITED, CannotEnforce, InvalidRequest, Limits

_FIELDS = {  # as the API calls them
    "memory_max": "memory_max_bytes",
    "memory_high": "memory_high_bytes",
    "memory_low": "memory_low_bytes",
    "cpu_max": "cpu_cores",
    "cpu_weight": "cpu_weight",
    "pids_max": "pids",
    "io_weight": "io_weight",
    "io_max": "io_bytes_per_second",
    "egress_max": "egress_bytes_per_second",
}


def check_settable(limits: Limits, controllers: frozenset[str]) -> None:
    """Raises CannotEnforce for the first limit whose controller this host has not."""
    for name, controller in limits.lacking(controllers).items():
        if controller == "egress":
            raise CannotEnforce(
                "this host does not load the eBPF programs that see packets, it cannot enforce the limit",
                field=f"limits.{_FIELDS[name]}",
                value=str(getattr(limits, name)),
                remedy="run agentd with what they need (corral doctor says what is missing), or leave it out",
            )
        raise CannotEnforce(
            f"this host has no {controller} controller, it cannot enforce the limit",
            field=f"limits.{_FIELDS[name]}",
            value=str(getattr(limits, name)),
            remedy=f"give agentd the {controller} controller (corral doctor says why it is missing), or leave it out",
        )


def check_below(limits: Limits, ceiling: Limits, whose: str) -> None:
    """Raises InvalidRequest for the first limit that is above (or lifts itself above) ``ceiling``."""
    pairs: Sequence[tuple[str, float | None, float | None]] = (
        ("memory_max", limits.memory_max, ceiling.memory_max),
        ("cpu_max", limits.cpu_max, ceiling.cpu_max),
        ("pids_max", limits.pids_max, ceiling.pids_max),
        ("io_max", limits.io_max, ceiling.io_max),
        ("egress_max", limits.egress_max, ceiling.egress_max),
    )
    for name, value, top in pairs:
        if value is None or top is None or top == UNLIMITED:
            continue
        if value == UNLIMITED or value > top:
            asked = "unlimited" if value == UNLIMITED else str(value)
            raise InvalidRequest(
                f"{asked} is above the ceiling of {whose}, {top}",
                field=f"limits.{_FIELDS[name]}",
                value=asked,
                remedy=f"give at most {top}, or raise the tenant's ceiling first",
            )
