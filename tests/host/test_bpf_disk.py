"""Writes that find no space, as the kernel answered them, on the kernel at hand."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf.kernel import KernelSide
from tests.host.bpf_support import Group, Host
from tests.host.cgroup_tools import go

pytestmark = pytest.mark.host


@pytest.fixture
def side(host: Host) -> Iterator[KernelSide]:
    with KernelSide.open(cgroup=host.root.v2, pin_dir=host.pin_dir, on_event=host.events.append, majors=[]) as made:
        yield made
        made.unload()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 64 KiB and six names."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=8", "corral-test", str(tmp_path)], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


_TRY = """
libc = ctypes.CDLL(None, use_errno=True)
def key():
    if libc.pkey_alloc(0, 0) < 0:
        raise OSError(ctypes.get_errno(), "")
def attempt(step):
    try:
        step()
    except OSError as err:
        print(err.errno, flush=True)
    else:
        print(0, flush=True)
"""


def attempts(group: Group, *steps: str) -> list[int]:
    """What each step met, in a process of the group: an errno, or 0."""
    code = "import ctypes, os, sys\nsys.stdin.readline()" + _TRY + "".join(f"attempt(lambda: {s})\n" for s in steps)
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        (group.v2 / "cgroup.procs").write_text(str(process.pid))
        go(process)
        assert process.stdout is not None
        return [int(line) for line in process.stdout]
    finally:
        process.kill()
        process.communicate()


def found_no_space(side: KernelSide, group: Group) -> int:
    counters = side.counters(group.id, live=False)
    assert counters is not None
    return counters.no_space


def test_each_write_that_finds_no_space_is_counted_while_it_is_traced(
    host: Host, side: KernelSide, small: Path
) -> None:
    call, other = host.group("call"), host.group("other")
    for group in (call, other):
        side.register(group.id)
    fill = f"os.pwrite(os.open({str(small / 'x')!r}, os.O_CREAT | os.O_WRONLY), bytes(65536), 0)"
    more = f"os.pwrite(os.open({str(small / 'x')!r}, os.O_WRONLY), b'x', 65536)"
    assert attempts(call, fill, more) == [0, errno.ENOSPC]
    assert found_no_space(side, call) == 0, "nobody listened"

    side.trace_disk(True)
    assert attempts(call, more, more, "os.stat('/')") == [errno.ENOSPC, errno.ENOSPC, 0]
    assert (found_no_space(side, call), found_no_space(side, other)) == (2, 0)
    names = [f"os.mkdir({str(small / str(n))!r})" for n in range(8)]
    refused = attempts(other, *names).count(errno.ENOSPC)
    assert refused > 0
    assert (found_no_space(side, call), found_no_space(side, other)) == (2, refused)

    side.trace_disk(False)
    assert attempts(call, more) == [errno.ENOSPC]
    assert found_no_space(side, call) == 2


def test_what_writes_to_no_file_system_is_not_a_full_disk(host: Host, side: KernelSide) -> None:
    """Memory protection keys that have run out are ENOSPC as well."""
    call = host.group("call")
    side.register(call.id)
    side.trace_disk(True)
    answers = attempts(call, *["key()"] * 17)
    if errno.ENOSPC not in answers:
        pytest.skip(f"this machine answers a lack of protection keys with {set(answers)}")
    assert found_no_space(side, call) == 0


def test_the_trace_goes_with_the_daemon_and_comes_again(host: Host, side: KernelSide, small: Path) -> None:
    call = host.group("call")
    side.register(call.id)
    side.trace_disk(True)
    side.trace_disk(True)
    side.close()
    fill = f"os.pwrite(os.open({str(small / 'x')!r}, os.O_CREAT | os.O_WRONLY), bytes(65536), 0)"
    more = f"os.pwrite(os.open({str(small / 'x')!r}, os.O_WRONLY), b'x', 65536)"
    assert attempts(call, fill, more) == [0, errno.ENOSPC]
    with KernelSide.open(cgroup=host.root.v2, pin_dir=host.pin_dir, on_event=host.events.append, majors=[]) as after:
        assert found_no_space(after, call) == 0
        after.trace_disk(True)
        assert attempts(call, more) == [errno.ENOSPC]
        assert found_no_space(after, call) == 1
