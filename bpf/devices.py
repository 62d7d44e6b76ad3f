"""Which character devices are GPUs: their majors, as this host numbers them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

# Fixed by the kernel's list of devices: NVIDIA's 195 and the DRM nodes' 226. They are gated also while no driver is
# loaded, so that a node made ahead of time is no way round.
FIXED: Final = frozenset({195, 226})
_NAMES: Final = ("nvidia", "kfd", "drm", "accel")


def gpu_majors(devices: Path = Path("/proc/devices")) -> frozenset[int]:
    """Majors of NVIDIA's nodes (also nvidia-uvm and nvidia-caps, numbered at load), of DRM, kfd and accel."""
    found = set(FIXED)
    try:
        text = devices.read_text()
    except FileNotFoundError:  # /proc is not mounted in full: the fixed ones remain
        return frozenset(found)
    for line in text.partition("Block devices:")[0].splitlines():
        number, _, name = line.strip().partition(" ")
        if number.isdecimal() and name.startswith(_NAMES):
            found.add(int(number))
    return frozenset(found)
