"""Each kernel file's text: success, failure, "max", missing keys."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.cgroup import FormatError, KnobMissing, NoSuchGroup, Pressure, files
from controller.cgroup.core import CoreState, parse_core_state
from controller.cgroup.cpu import CpuStat, parse_cpu_max, parse_cpu_stat
from controller.cgroup.host import parse_meminfo, read_host, read_memory
from controller.cgroup.io import IoStat, parse_blkio_bytes, parse_io_stat
from controller.cgroup.memory import MemoryEvents, parse_events_v1, parse_events_v2
from controller.cgroup.pids import parse_max_events
from controller.model import UNLIMITED

GOOD: list[tuple[str, Callable[[bytes, str], Any], bytes, Any]] = [
    ("number", files.parse_number, b"4096\n", 4096),
    ("zero", files.parse_number, b"0\n", 0),
    ("v2 max", files.parse_number, b"max\n", UNLIMITED),
    ("v1 unlimited, 4 KiB pages", files.parse_number, b"9223372036854771712\n", UNLIMITED),
    ("v1 unlimited, 64 KiB pages", files.parse_number, b"9223372036854710272\n", UNLIMITED),
    ("largest real limit", files.parse_number, b"4611686018427387904\n", 2**62),
    ("v1 quota off", files.parse_number, b"-1\n", -1),
    ("flat", files.parse_flat, b"a 1\nb 2\n", {b"a": 1, b"b": 2}),
    ("flat with max", files.parse_flat, b"a max\n", {b"a": UNLIMITED}),
    ("flat, empty", files.parse_flat, b"", {}),
    ("processes", files.parse_processes, b"1\n22\n", [1, 22]),
    ("processes of another namespace", files.parse_processes, b"0\n7\n0\n", [7]),
    ("no processes", files.parse_processes, b"", []),
    ("events", parse_core_state, b"populated 1\nfrozen 0\n", CoreState(True, False)),
    ("events, frozen", parse_core_state, b"populated 1\nfrozen 1\n", CoreState(True, True)),
    ("events before 5.2", parse_core_state, b"populated 0\n", CoreState(False, False)),
    (
        "pressure",
        files.parse_pressure,
        b"some avg10=1.50 avg60=0.63 avg300=0.65 total=8852124\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=7\n",
        Pressure(some_usec=8852124, some_avg10=1.5, full_usec=7, full_avg10=0.25),
    ),
    (
        "pressure of the host's CPU before 5.13",
        files.parse_pressure,
        b"some avg10=0.00 avg60=0.00 avg300=0.00 total=9\n",
        Pressure(some_usec=9, some_avg10=0.0),
    ),
    (
        "cpu.stat without the controller",
        parse_cpu_stat,
        b"usage_usec 30\nuser_usec 10\nsystem_usec 20\nnice_usec 0\n",
        CpuStat(usage_usec=30, user_usec=10, system_usec=20),
    ),
    (
        "cpu.stat with the controller",
        parse_cpu_stat,
        b"usage_usec 30\nuser_usec 10\nsystem_usec 20\nnr_periods 5\nnr_throttled 2\nthrottled_usec 900\n",
        CpuStat(usage_usec=30, user_usec=10, system_usec=20, throttled_periods=2, throttled_usec=900),
    ),
    ("cpu.max", parse_cpu_max, b"150000 100000\n", 1.5),
    ("cpu.max of another period", parse_cpu_max, b"5000 10000\n", 0.5),
    ("cpu.max unlimited", parse_cpu_max, b"max 100000\n", float(UNLIMITED)),
    (
        "memory.events",
        parse_events_v2,
        b"low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n",
        MemoryEvents(low=1, high=2, max=3, oom=4, oom_kill=5, oom_group_kill=6),
    ),
    (
        "memory.events before 5.17",
        parse_events_v2,
        b"low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n",
        MemoryEvents(low=0, high=0, max=0, oom=0, oom_kill=0),
    ),
    (
        "memory.oom_control",
        lambda data, path: parse_events_v1(data, path, 12),
        b"oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        MemoryEvents(oom_kill=3, max=12),
    ),
    ("pids.events", parse_max_events, b"max 17\n", 17),
    (
        "io.stat",
        parse_io_stat,
        b"8:0 rbytes=100 wbytes=7 rios=1 wios=1 dbytes=0 dios=0\n252:0 rbytes=1 wbytes=2\n",
        IoStat(read_bytes=101, written_bytes=9),
    ),
    ("io.stat, a device without figures", parse_io_stat, b"8:0 \n", IoStat(read_bytes=0, written_bytes=0)),
    ("io.stat, empty", parse_io_stat, b"", IoStat(read_bytes=0, written_bytes=0)),
    (
        "blkio",
        parse_blkio_bytes,
        b"253:0 Read 4096\n253:0 Write 512\n253:0 Sync 1\n253:0 Total 4608\n8:0 Read 4\nTotal 4612\n",
        IoStat(read_bytes=4100, written_bytes=512),
    ),
    ("blkio, nothing yet", parse_blkio_bytes, b"Total 0\n", IoStat(read_bytes=0, written_bytes=0)),
    ("meminfo", parse_meminfo, b"MemTotal:  16 kB\nHugePages_Total:  3\n", {b"MemTotal": 16384, b"HugePages_Total": 3}),
]

BAD: list[tuple[str, Callable[[bytes, str], Any], bytes]] = [
    ("number, empty", files.parse_number, b""),
    ("number, words", files.parse_number, b"lots\n"),
    ("number, two", files.parse_number, b"1 2\n"),
    ("flat, no value", files.parse_flat, b"a\n"),
    ("flat, three words", files.parse_flat, b"a 1 2\n"),
    ("flat, text", files.parse_flat, b"a b\n"),
    ("processes, text", files.parse_processes, b"1\nx\n"),
    ("events without populated", parse_core_state, b"frozen 0\n"),
    ("pressure without some", files.parse_pressure, b"full avg10=0.00 total=7\n"),
    ("pressure without total", files.parse_pressure, b"some avg10=0.00\n"),
    ("pressure, no pairs", files.parse_pressure, b"some 1 2 3\n"),
    ("cpu.stat without usage", parse_cpu_stat, b"user_usec 10\nsystem_usec 20\n"),
    ("cpu.max, no period", parse_cpu_max, b"100\n"),
    ("memory.events without kills", parse_events_v2, b"low 0\nhigh 0\nmax 0\n"),
    ("memory.oom_control before 4.13", lambda d, p: parse_events_v1(d, p, 0), b"oom_kill_disable 0\nunder_oom 0\n"),
    ("pids.events without max", parse_max_events, b"min 1\n"),
    ("io.stat, text", parse_io_stat, b"8:0 rbytes=many\n"),
    ("blkio, two words", parse_blkio_bytes, b"8:0 Read\n"),
    ("meminfo, no number", parse_meminfo, b"MemTotal: kB\n"),
    ("meminfo, empty value", parse_meminfo, b"MemTotal:\n"),
]


@pytest.mark.parametrize(("parse", "data", "want"), [row[1:] for row in GOOD], ids=[row[0] for row in GOOD])
def test_reads(parse: Callable[[bytes, str], Any], data: bytes, want: Any) -> None:
    assert parse(data, "/group/file") == want


@pytest.mark.parametrize(("parse", "data"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_refuses_and_names_the_file(parse: Callable[[bytes, str], Any], data: bytes) -> None:
    with pytest.raises(FormatError, match="/group/file"):
        parse(data, "/group/file")


@given(data=st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for parse in {row[1] for row in GOOD}:
        with contextlib.suppress(FormatError):
            parse(data, "/group/file")


def test_larger_files_than_expected_are_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "cgroup.procs"
    text = b"".join(b"%d\n" % n for n in range(1, 20_000))
    file.write_bytes(text)
    assert files.read(str(file), 100) == text
    assert files.read_all(str(file)) == text


def test_write_never_makes_a_file(tmp_path: Path) -> None:
    with pytest.raises(KnobMissing, match=r"memory\.max.*'4096'.*ENOENT") as caught:
        files.write(str(tmp_path / "memory.max"), "4096")
    assert caught.value.value == "4096"
    assert caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_missing_group_is_not_a_missing_knob(tmp_path: Path) -> None:
    with pytest.raises(NoSuchGroup):
        files.write(str(tmp_path / "gone" / "memory.max"), "1")
    with pytest.raises(NoSuchGroup):
        files.read(str(tmp_path / "gone" / "cpu.stat"))
    assert files.read_optional(str(tmp_path / "memory.peak")) is None
    assert files.subdirectories(str(tmp_path / "gone")) == []


def test_host_figures(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable: 500 kB\nSwapTotal: 8 kB\n")
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure" / "cpu").write_text("some avg10=2.50 avg60=0.00 avg300=0.00 total=5\n")
    host = read_host(str(tmp_path))
    assert (host.memory_total, host.memory_available, host.memory_free) == (1_024_000, 512_000, 10_240)
    assert (host.swap_total, host.swap_free) == (8192, 0)
    assert host.cpu_pressure == Pressure(some_usec=5, some_avg10=2.5)
    assert host.memory_pressure is None
    assert host.cpus >= 1


def test_the_hosts_memory_alone(tmp_path: Path) -> None:
    assert read_memory()[0] == read_host().memory_total
    head = "MemTotal:       24684092 kB\nMemFree:        18619116 kB\nMemAvailable:   21847680 kB\n"
    (tmp_path / "meminfo").write_text(head + "Buffers: 44304 kB\n" + "Filler: 1 kB\n" * 50)
    assert read_memory(str(tmp_path)) == (24_684_092 * 1024, 21_847_680 * 1024)
    # a container's own meminfo (lxcfs) may have another order
    (tmp_path / "meminfo").write_text("Filler: 1 kB\n" * 50 + "MemAvailable: 5 kB\nMemTotal: 8 kB\n")
    assert read_memory(str(tmp_path)) == (8192, 5120)
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 10 kB\n")
    with pytest.raises(FormatError, match="MemAvailable"):
        read_memory(str(tmp_path))


def test_host_figures_of_this_machine() -> None:
    host = read_host()
    assert 0 < host.memory_available <= host.memory_total


def test_host_without_available_memory_is_said(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 10 kB\n")
    with pytest.raises(FormatError, match="MemAvailable"):
        read_host(str(tmp_path))
