"""How fast the packets of a group may leave: rates by group, for calls and for what is above them."""

from __future__ import annotations

from typing import Final

from bpf import layout
from bpf.errors import InvalidPolicy, MapError, TooManyCalls
from bpf.libbpf import Map
from bpf.types import MAX_PACES

MIN_RATE: Final = 1_000  # bytes a second: below it a connection does not come about
MAX_RATE: Final = 1 << 40
BURST: Final = 0.25  # seconds of the rate that may leave at once, after a rest of as long
_LEAST_BURST: Final = 65_536  # bytes: the largest packet there is, which must not be turned back for its size

_NSEC: Final = 1_000_000_000


class Paces:
    """The map ``paces``. Entries are keyed by the id of a v2 group and hold for it and all groups below it."""

    def __init__(self, table: Map) -> None:
        self._table = table
        keys, _, _ = table.batch(256)
        self._rated: set[int] = {cgroup_id for (cgroup_id,) in layout.KEY.iter_unpack(keys)}

    def __len__(self) -> int:
        return len(self._rated)

    def rated(self) -> set[int]:
        return set(self._rated)

    def rate(self, cgroup_id: int) -> int | None:
        """As the kernel has it, in bytes a second."""
        raw = self._table.get(layout.KEY.pack(cgroup_id)) if cgroup_id in self._rated else None
        return layout.PACE.unpack(raw)[0] if raw else None

    def set(self, cgroup_id: int, rate: int | None) -> bool:
        """None lifts it. Whether the number of rates has changed. Raises InvalidPolicy, TooManyCalls."""
        key = layout.KEY.pack(cgroup_id)
        before = len(self._rated)
        if rate is None:
            if cgroup_id in self._rated:  # else nothing is asked of the kernel: this is on the path of each call's end
                self._table.delete(key)
                self._rated.discard(cgroup_id)
        elif self.rate(cgroup_id) != rate:  # the same again would give the burst again
            if not MIN_RATE <= rate <= MAX_RATE:
                raise InvalidPolicy(f"{rate} bytes per second", remedy=f"give {MIN_RATE} to {MAX_RATE}")
            if cgroup_id not in self._rated and before >= MAX_PACES:
                raise TooManyCalls(f"group {cgroup_id}: {MAX_PACES} have a rate", remedy="lift some")
            try:
                self._table.put(key, layout.PACE.pack(rate, burst_nsec(rate), 0))
            except MapError as err:
                raise TooManyCalls(err.message, errno=err.errno, remedy="lift the rates of other groups") from err
            self._rated.add(cgroup_id)
        return len(self._rated) != before


def burst_nsec(rate: int) -> int:
    return max(int(BURST * _NSEC), _LEAST_BURST * _NSEC // rate)
