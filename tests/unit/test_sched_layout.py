"""bpf/sched.py against bpf/src/sched.h, by a compiler; and what is read from sysfs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bpf import sched
from bpf.errors import Unavailable
from bpf.libbpf import Object
from bpf.loader import OBJECTS

SOURCES = Path(__file__).resolve().parents[2] / "bpf/src"
CHECKS = f"""
#include <stddef.h>
#include "sched.h"
_Static_assert(sizeof(struct corral_sched_call) == {sched.CALL.size}, "call");
_Static_assert(offsetof(struct corral_sched_call, weight) == 8, "weight");
_Static_assert(offsetof(struct corral_sched_call, group_weight) == 12, "group_weight");
_Static_assert(offsetof(struct corral_sched_call, latency) == 16, "latency");
_Static_assert(sizeof(struct corral_sched_clock) == {sched.CLOCK.size}, "clock");
_Static_assert(offsetof(struct corral_sched_clock, runnable) == 8, "runnable");
_Static_assert(sizeof(struct corral_sched_end) == {sched.END.size}, "end");
_Static_assert(offsetof(struct corral_sched_end, reason) == 16, "reason");
_Static_assert(offsetof(struct corral_sched_end, message) == 80, "message");
_Static_assert(CORRAL_SCHED_MAX_CALLS == {sched.MAX_CALLS}, "calls");
_Static_assert(CORRAL_SCHED_MAX_GROUPS == {sched.MAX_GROUPS}, "groups");
"""


def test_c_and_python_agree(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("clang-14") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    source = tmp_path / "check.c"
    source.write_text(CHECKS)
    subprocess.run([compiler, "-I", str(SOURCES), "-fsyntax-only", str(source)], check=True)


def test_a_share_is_packed_as_the_kernel_side_reads_it() -> None:
    share = sched.Share(group=0x1122, weight=300, group_weight=50, latency=True)
    assert sched.CALL.unpack(share.pack()) == (0x1122, 300, 50, 1, 0)


@pytest.mark.parametrize(
    ("state", "ops", "name"), [("enabled", "corral", "corral"), ("disabled", None, ""), ("disabling", "corral", "")]
)
def test_which_scheduler_is_in_force(tmp_path: Path, state: str, ops: str | None, name: str) -> None:
    (tmp_path / "state").write_text(f"{state}\n")
    if ops is not None:
        (tmp_path / "root").mkdir()
        (tmp_path / "root" / "ops").write_text(f"{ops}\n")
    assert sched.running(tmp_path) == name


def test_a_kernel_without_sched_ext(tmp_path: Path) -> None:
    assert sched.running(tmp_path) == ""
    assert "this kernel has no sched_ext" in sched.unavailable(tmp_path)


def test_the_object_opens_and_declares_the_maps_that_are_used() -> None:
    """Needs libbpf, and no kernel that could load it: opening resolves every type."""
    path = OBJECTS / "sched.bpf.o"
    if not path.is_file():
        pytest.skip("the eBPF objects are not built: scripts/build-bpf")
    try:
        opened = Object(path)
    except Unavailable as err:
        pytest.skip(str(err))
    try:
        sizes = {name: (key, value) for name, (_, key, value, _, _) in opened.maps().items()}
        programs = opened.programs()
    finally:
        opened.close()
    assert sizes["sched_calls"] == (8, sched.CALL.size)
    assert sizes["sched_clocks"] == (8, sched.CLOCK.size)
    assert sizes["sched_groups"] == (8, 8)
    assert sizes["sched_end"] == (4, sched.END.size)
    assert "corral_init" in programs  # the one that is loaded as sleepable
