"""The section [sched], apart from the others because those fill a module."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct


class SchedSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A CPU scheduler of Corral's own (sched_ext, Linux 6.19 and later)."""

    mode: Annotated[
        Literal["off", "auto"],
        Meta(
            description=(
                "auto: load it where the kernel can, so that calls have a weight and a latency class. off by default: "
                "it schedules the whole host, and nobody's CPU quota (cpu.max, CPUQuota=) holds under it, so it stands "
                "aside while Corral itself has one to hold (docs/control.md)."
            ),
            extra={"live": False},
        ),
    ] = "off"
