"""Which file systems are looked at, and when one is nearly full."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from controller.backends import disks
from controller.backends.disks import Disk, Disks, Room, parse

GIB = 1 << 30
MOUNTS = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
23 22 254:0 /srv /srv rw,relatime - ext4 /dev/vda rw
24 22 0:22 / /proc rw,nosuid - proc proc rw
25 22 0:30 / /dev/shm rw,nosuid - tmpfs tmpfs rw,size=64k
26 22 254:1 / /boot rw,relatime - ext4 /dev/vda1 rw
27 22 254:2 / /media/a\040b\011c rw,relatime - xfs /dev/vdb rw
28 22 254:3 / /cdrom ro,relatime - ext4 /dev/vdc ro
29 22 254:4 / /snapshot ro,relatime - btrfs /dev/vdd rw
30 22 0:50 / /home rw,relatime - nfs4 server:/home rw
31 22 0:51 / / rw - overlay overlay rw
32 22 broken
""".strip()


def test_local_ones_that_can_be_written_each_once() -> None:
    assert parse(MOUNTS) == (
        Disk("/", os.makedev(254, 0)),
        Disk("/dev/shm", os.makedev(0, 30)),
        Disk("/media/a b\tc", os.makedev(254, 2)),
    )


def test_no_more_than_are_looked_at_in_a_moment() -> None:
    many = "\n".join(f"{i} 1 8:{i} / /m{i} rw - ext4 /dev/x rw" for i in range(500))
    assert len(parse(many)) == 64


@pytest.mark.parametrize(
    ("room", "little", "none"),
    [
        (Room(500 * GIB, 1000 * GIB, 10**7, 10**8), False, False),
        (Room(2 * GIB - 1, 1000 * GIB, 10**7, 10**8), True, False),
        (Room(0, 1000 * GIB, 10**7, 10**8), True, True),
        (Room(40_000, 65_536, None), False, False),  # a small one that is not full
        (Room(16_000, 65_536, None), True, True),
        (Room(500 * GIB, 1000 * GIB, 99_999, 10**8), True, False),
        (Room(500 * GIB, 1000 * GIB, 0, 10**8), True, True),
        (Room(500 * GIB, 1000 * GIB, 900, 1000), False, False),  # few names, but most of them are left
    ],
)
def test_when_it_is_nearly_full(room: Room, little: bool, none: bool) -> None:
    assert (room.little, room.none) == (little, none)


def test_the_fullest_is_named_and_one_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    rooms = {"/": Room(GIB, 50 * GIB, None), "/dev/shm": Room(0, 65_536, None), "/media/a b\tc": None}
    monkeypatch.setattr(disks, "room_of", rooms.get)
    # a regular file has no changes to wait for: what matters here is what is made of it
    found = Disks(mounts)
    try:
        assert found.look()
        assert [disk.path for disk in found.nearly_full] == ["/", "/dev/shm"]
        assert found.most_wanting() == "/dev/shm has 0 B left of 64 KiB"
        assert found.full(os.makedev(0, 30)) == "/dev/shm has 0 B left of 64 KiB"
        assert found.full(os.makedev(254, 0)) == "", "a gibibyte is room"
        assert found.full(os.makedev(9, 9)) == ""
    finally:
        found.close()


def test_a_path_that_is_gone_has_no_room_to_speak_of(tmp_path: Path) -> None:
    assert disks.room_of(str(tmp_path / "none")) is None
    assert disks.room_of("/proc") is None, "it has no size"
    room = disks.room_of(str(tmp_path))
    assert room is not None
    assert 0 <= room.left <= room.size
