"""Device filters of one group, attached to another: with the gate of our own as the filter of a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpf import KernelSide, MapError
from bpf.devicefilter import copy_device_filter, device_programs
from tests.host import bpf_support as support

pytestmark = pytest.mark.host


def test_a_filter_is_attached_once_beside_what_is_there(tmp_path: Path) -> None:
    with support.host(tmp_path / "no program is started") as host:
        _copied(host)


def _copied(host: support.Host) -> None:
    box, session = host.root.v2 / "box", host.root.v2.parent / f"{host.root.v2.name}-session"
    box.mkdir()
    session.mkdir()
    side = KernelSide.open(cgroup=host.root.v2, pin_dir=host.pin_dir, on_event=print)
    try:
        own = device_programs(host.root.v2)
        assert len(own) == 1
        assert device_programs(box) == []
        # of the group itself and of those above it: that is what a process in it is filtered by
        for _ in range(2):
            assert copy_device_filter(box, session) == 1
            assert device_programs(session) == own
        with pytest.raises(MapError, match="No such file"):
            copy_device_filter(Path(f"{box}-gone"), session)
    finally:
        side.unload()
        session.rmdir()
        box.rmdir()
