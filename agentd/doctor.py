"""What this host can do and what it cannot, tried out: for `corral doctor`, with or without a daemon."""

from __future__ import annotations

from collections.abc import Sequence

from bpf import Feature
from bpf.probe import probe


def features(missing: Sequence[str] = ()) -> tuple[Feature, ...]:
    """The daemon's own ``missing`` first, then what the kernel allows."""
    own = tuple(Feature(name="daemon", found=False, detail=m, cost=m, remedy="see the other lines") for m in missing)
    return (*own, *probe())
