"""What is written for which limit, on each kind of hierarchy; the files are stand-ins, already there and empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.cgroup import CgroupHost, Group, KnobMissing, MemoryEvents, Tree, ValueRefused
from controller.cgroup.cpu import CpuV1, CpuV2, shares, weight_of_shares
from controller.cgroup.io import IoV2, bfq_weight, from_bfq_weight
from controller.cgroup.memory import MemoryV1, MemoryV2
from controller.cgroup.pids import Pids
from controller.model import UNLIMITED, Limits


def knobs(path: Path, *names: str) -> str:
    for name in names:
        (path / name).touch()
    return str(path)


def text(path: Path, name: str) -> str:
    return (path / name).read_text()


def test_memory_v2(tmp_path: Path) -> None:
    directory = knobs(tmp_path, "memory.max", "memory.high", "memory.low")
    assert MemoryV2().apply(directory, Limits(memory_max=1 << 30, memory_low=4096)) == []
    assert (text(tmp_path, "memory.max"), text(tmp_path, "memory.low")) == ("1073741824", "4096")
    assert text(tmp_path, "memory.high") == ""  # None: untouched


@pytest.mark.parametrize(
    ("field", "file", "lifted"), [("max", "max", "max"), ("high", "high", "max"), ("low", "low", "0")]
)
def test_memory_v2_lifts(tmp_path: Path, field: str, file: str, lifted: str) -> None:
    directory = knobs(tmp_path, f"memory.{file}")
    MemoryV2().apply(directory, Limits(**{f"memory_{field}": UNLIMITED}))
    assert text(tmp_path, f"memory.{file}") == lifted


def test_memory_v2_reads_its_own_events_and_falls_back(tmp_path: Path) -> None:
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 0\noom 1\noom_kill 9\n")
    assert MemoryV2().events(str(tmp_path)) == MemoryEvents(oom_kill=9, oom=1, max=0, high=0, low=0)
    (tmp_path / "memory.events.local").write_text("low 0\nhigh 0\nmax 0\noom 0\noom_kill 2\n")
    assert MemoryV2().events(str(tmp_path)).oom_kill == 2


def test_memory_v2_stat(tmp_path: Path) -> None:
    (tmp_path / "memory.events.local").write_text("low 0\nhigh 3\nmax 0\noom 0\noom_kill 0\n")
    (tmp_path / "memory.current").write_text("8192\n")
    (tmp_path / "memory.stat").write_text("anon 4096\nfile 2048\npgfault 10\npgmajfault 1\n")
    stat = MemoryV2().stat(str(tmp_path))
    assert (stat.current, stat.peak, stat.anon, stat.file, stat.faults, stat.major_faults) == (
        8192,
        None,  # no memory.peak: before 5.19
        4096,
        2048,
        10,
        1,
    )
    assert stat.events.high == 3


def test_memory_v2_oom_group(tmp_path: Path) -> None:
    assert MemoryV2().oom_group(knobs(tmp_path, "memory.oom.group"), True) is None
    assert text(tmp_path, "memory.oom.group") == "1"


def test_memory_v1_notes_what_it_cannot(tmp_path: Path) -> None:
    directory = knobs(tmp_path, "memory.limit_in_bytes")
    notes = MemoryV1().apply(directory, Limits(memory_max=UNLIMITED, memory_high=4096, memory_low=4096))
    assert len(notes) == 2
    assert notes[0].startswith("memory_high is not set")
    assert text(tmp_path, "memory.limit_in_bytes") == "-1"
    assert MemoryV1().apply(directory, Limits(memory_high=UNLIMITED)) == []
    assert "one process" in str(MemoryV1().oom_group(directory, True))


@pytest.mark.parametrize("value", [0, 1, 4095, -2, 2**63])
def test_memory_out_of_range(tmp_path: Path, value: int) -> None:
    directory = knobs(tmp_path, "memory.max", "memory.limit_in_bytes")
    for memory in (MemoryV1(), MemoryV2()):
        with pytest.raises(ValueRefused, match=r"out of range.*UNLIMITED"):
            memory.apply(directory, Limits(memory_max=value))
    assert text(tmp_path, "memory.max") == text(tmp_path, "memory.limit_in_bytes") == ""


def test_cpu_v2(tmp_path: Path) -> None:
    directory = knobs(tmp_path, "cpu.max", "cpu.weight")
    CpuV2().apply(directory, Limits(cpu_max=1.5, cpu_weight=250))
    assert (text(tmp_path, "cpu.max"), text(tmp_path, "cpu.weight")) == ("150000 100000", "250")
    (tmp_path / "cpu.max").write_text("")
    CpuV2().apply(directory, Limits(cpu_max=UNLIMITED))
    assert text(tmp_path, "cpu.max") == "max 100000"


def test_cpu_v1(tmp_path: Path) -> None:
    directory = knobs(tmp_path, "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.shares")
    assert CpuV1(directory).apply(directory, Limits(cpu_max=0.25, cpu_weight=UNLIMITED)) == []
    assert (text(tmp_path, "cpu.cfs_quota_us"), text(tmp_path, "cpu.cfs_period_us")) == ("25000", "100000")
    assert text(tmp_path, "cpu.shares") == "1024"
    assert CpuV1(directory).limits(directory) == Limits(cpu_max=0.25, cpu_weight=100)


@pytest.mark.parametrize("cores", [0.0, 0.009, -0.5, 4097.0, float("nan"), float("inf")])
def test_cpu_out_of_range(tmp_path: Path, cores: float) -> None:
    directory = knobs(tmp_path, "cpu.max")
    with pytest.raises(ValueRefused, match="cores"):
        CpuV2().apply(directory, Limits(cpu_max=cores))
    assert text(tmp_path, "cpu.max") == ""


@pytest.mark.parametrize("weight", [0, -2, 10_001])
def test_weights_out_of_range(tmp_path: Path, weight: int) -> None:
    directory = knobs(tmp_path, "cpu.weight", "io.weight")
    with pytest.raises(ValueRefused):
        CpuV2().apply(directory, Limits(cpu_weight=weight))
    with pytest.raises(ValueRefused):
        IoV2(directory).apply(directory, Limits(io_weight=weight))


def test_weights_map_to_the_older_ranges() -> None:
    assert (shares(1), shares(100), shares(10_000)) == (10, 1024, 102_400)
    assert [weight_of_shares(shares(w)) for w in (1, 50, 100, 10_000)] == [1, 50, 100, 10_000]
    assert (bfq_weight(1), bfq_weight(100), bfq_weight(10_000)) == (1, 100, 1000)
    assert from_bfq_weight(bfq_weight(10_000)) == 10_000


def test_io_v2_writes_each_policy_that_is_there(tmp_path: Path) -> None:
    io = IoV2(str(tmp_path))
    notes = io.apply(str(tmp_path), Limits(io_weight=500))
    assert "neither" in notes[0]
    assert io.apply(knobs(tmp_path, "io.weight", "io.bfq.weight"), Limits(io_weight=10_000)) == []
    assert (text(tmp_path, "io.weight"), text(tmp_path, "io.bfq.weight")) == ("default 10000", "1000")
    assert io.limits(str(tmp_path)) == Limits(io_weight=10_000)


@pytest.mark.parametrize("value", [0, -2, 4_194_305])
def test_pids_out_of_range(tmp_path: Path, value: int) -> None:
    with pytest.raises(ValueRefused):
        Pids().apply(knobs(tmp_path, "pids.max"), Limits(pids_max=value))


def bare_group(path: Path) -> Group:
    tree = Tree(CgroupHost(mode="hybrid", v2=path, mounts={}, mount_roots={path: "/"}))
    (path / "corral").mkdir()
    return tree.root


@pytest.mark.parametrize("limits", [Limits(memory_max=1 << 20), Limits(pids_max=5), Limits(cpu_max=1.0)])
def test_a_hard_limit_without_its_controller_is_an_error(tmp_path: Path, limits: Limits) -> None:
    with pytest.raises(KnobMissing, match="cannot be enforced"):
        bare_group(tmp_path).set(limits)


def test_soft_limits_without_their_controller_are_noted(tmp_path: Path) -> None:
    group = bare_group(tmp_path)
    notes = group.set(Limits(memory_high=1 << 20, cpu_weight=50, io_weight=50))
    assert len(notes) == 3
    assert group.set(Limits(memory_max=UNLIMITED, pids_max=UNLIMITED, cpu_max=UNLIMITED, io_weight=UNLIMITED)) == ()
    assert group.set(Limits()) == ()
    assert group.limits() == Limits()
    assert "no memory controller" in group.oom_group(True)[0]
