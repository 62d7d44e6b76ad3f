"""What a running daemon tells `corral doctor` beyond what the kernel allows (bpf.probe): what it lacks itself."""

from __future__ import annotations

from collections.abc import Iterable

from bpf import Feature


def own_features(missing: Iterable[str]) -> tuple[Feature, ...]:
    """One line for each thing missing. Its text has the cause, the remedy and the cost together, as every screen shows
    it: the other columns stay empty."""
    return tuple(Feature(name="daemon", found=False, detail=text, cost="", remedy="") for text in missing)
