"""Loading, adopting, upgrading and taking away."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from bpf import errors
from bpf.kernel import KernelSide
from bpf.libbpf import Object, get_pinned, info
from bpf.loader import OBJECTS, PARTS
from bpf.probe import probe
from bpf.types import Event, NetworkPolicy
from tests.host.bpf_support import Host

pytestmark = pytest.mark.host

ALL = {part.name for part in PARTS}
SYSTEM_INCLUDES = f"-I/usr/include/{os.uname().machine}-linux-gnu"


def opened(host: Host, objects: Path | None = None) -> KernelSide:
    return KernelSide.open(
        cgroup=host.root.v2, pin_dir=host.pin_dir, on_event=host.events.append, majors=[], objects=objects
    )


def clang() -> str:
    found = shutil.which("clang") or shutil.which("clang-14")
    if found is None:
        pytest.skip("no clang")
    return found


def compiled(source: Path, target: Path) -> Path:
    subprocess.run(
        [
            *(clang(), "-O2", "-g", "-target", "bpf", "-mcpu=v3", SYSTEM_INCLUDES, f"-I{OBJECTS.parent}/src"),
            *("-c", str(source), "-o", str(target)),
        ],
        check=True,
    )
    return target


def attached_to(cgroup: Path) -> set[str]:
    """Names of the programs that are attached to a group."""
    shown = subprocess.run(["bpftool", "-j", "cgroup", "show", str(cgroup)], check=True, capture_output=True, text=True)
    return {entry["name"] for entry in json.loads(shown.stdout.strip() or "[]")}


def our_links(host: Host) -> set[int]:
    """Ids of the pinned links."""
    found = set()
    for path in host.pin_dir.glob("links/*/*"):
        fd = get_pinned(path)
        try:
            found.add(struct.unpack_from("=II", info(fd))[1])
        finally:
            os.close(fd)
    return found


def all_links() -> set[int]:
    shown = subprocess.run(["bpftool", "-j", "link", "show"], check=True, capture_output=True, text=True)
    return {entry["id"] for entry in json.loads(shown.stdout.strip() or "[]")}


def pins(host: Host) -> set[str]:
    return {path.parent.name.partition("-")[0] + "/" + path.name for path in host.pin_dir.rglob("*") if path.is_file()}


def test_loads_adopts_and_unloads_without_a_trace(host: Host) -> None:
    with opened(host) as side:
        assert side.parts == ALL
        assert not side.adopted
        assert not side.problems
        assert {"corral_connect4", "corral_egress", "corral_device"} <= attached_to(host.root.v2)
        side.register(host.root.id, brake=1 << 40, network=NetworkPolicy.listed([("::1", 0)]))
    assert {"tripwire/corral_rss", "maps/calls", "gates/corral_device"} <= pins(host)
    before = pins(host)
    with opened(host) as side:
        assert side.adopted == ALL
        assert side.registered() == {host.root.id}
        assert side.thresholds(host.root.id) == (None, 1 << 40)
        assert pins(host) == before
        links = our_links(host)
        assert len(links) == sum(len(part.programs) + bool(part.one_of) for part in PARTS)
        assert links <= all_links()
        side.unload()
    assert not links & all_links()
    assert not host.pin_dir.exists()
    assert attached_to(host.root.v2) == set()


def test_a_half_loaded_part_is_loaded_again(host: Host) -> None:
    opened(host).close()
    (directory,) = host.pin_dir.glob("links/gates-*")
    (directory / "corral_device").unlink()
    with opened(host) as side:
        assert side.adopted == ALL - {"gates"}
        assert side.parts == ALL
        side.unload()


def test_gates_follow_a_cgroup_that_was_made_anew(host: Host) -> None:
    opened(host).close()
    for path in {host.root.v2, host.root.memory}:
        path.rmdir()
        path.mkdir()
    with opened(host) as side:
        assert side.adopted == ALL - {"gates", "network"}
        assert "corral_connect4" in attached_to(host.root.v2)
        side.unload()


def changed_objects(directory: Path) -> Path:
    """Every object with another hash, and the same programs."""
    directory.mkdir()
    for path in OBJECTS.glob("*.o"):
        (directory / path.name).write_bytes(path.read_bytes() + b"\0")  # what follows an ELF file's end is ignored
    return directory


def test_an_upgrade_replaces_programs_and_keeps_counters(host: Host, tmp_path: Path) -> None:
    group = host.group()
    with opened(host) as side:
        side.register(group.id)
        host.start_in(group, "forks", "7").run()
    former = set(host.pin_dir.glob("links/*"))
    with opened(host, changed_objects(tmp_path / "objects")) as side:
        assert side.parts == ALL
        assert not side.adopted
        assert not side.problems
        found = side.counters(group.id)
        assert found is not None
        assert found.forks == 7
        host.start_in(group, "forks", "3").run()
        found = side.counters(group.id)
        assert found is not None
        assert found.forks == 10  # once: the former program is gone
        now = set(host.pin_dir.glob("links/*"))
        assert len(now) == len(PARTS)
        assert not now & former
        side.unload()


def test_maps_of_another_shape_are_dropped_and_said(host: Host) -> None:
    with opened(host) as side:
        side.register(host.root.id)
    pinned = host.pin_dir / "maps/states"
    pinned.unlink()
    subprocess.run(f"bpftool map create {pinned} type hash key 8 value 8 entries 4 name states".split(), check=True)
    with opened(host) as side:
        assert side.parts == ALL
        assert side.registered() == set()
        (problem,) = side.problems
        assert problem.startswith("map states of the version before has another shape")
        side.unload()


BAD = """
#include "maps.h"
char LICENSE[] SEC("license") = "GPL";
SEC("tp_btf/rss_stat")
int corral_rss(unsigned long long *ctx) { return *(int *)(ctx[0] + (1 << 20)) + bpf_map_lookup_elem(&calls, ctx) != 0; }
"""


def test_a_refused_program_is_named_with_the_verifiers_words(host: Host, tmp_path: Path) -> None:
    (tmp_path / "bad.bpf.c").write_text(BAD)
    bad = Object(compiled(tmp_path / "bad.bpf.c", tmp_path / "bad.bpf.o"))
    try:
        with pytest.raises(errors.VerifierRejected, match=r"refused program corral_rss: .*(EACCES|EINVAL)") as caught:
            bad.load()
    finally:
        bad.close()
    assert caught.value.program == "corral_rss"
    assert any("processed" in line for line in caught.value.log)
    assert "bad.bpf.o" in str(caught.value)


def test_what_cannot_load_is_left_out_and_named(host: Host, tmp_path: Path) -> None:
    objects = changed_objects(tmp_path / "objects")
    (tmp_path / "tripwire.bpf.c").write_text(BAD)
    compiled(tmp_path / "tripwire.bpf.c", objects / "tripwire.bpf.o")
    with opened(host, objects) as side:
        assert side.parts == ALL - {"tripwire"}
        (problem,) = side.problems
        assert "tripwire: tripwire.bpf.o: the verifier refused program corral_rss" in problem
        assert "not braked" in problem
        side.unload()


def test_errors_name_object_cause_and_remedy(host: Host, tmp_path: Path) -> None:
    def ignore(event: Event) -> None:
        raise AssertionError(event)

    with pytest.raises(errors.Unavailable, match=r"no compiled object of tripwire.*build-bpf"):
        KernelSide.open(cgroup=host.root.v2, pin_dir=host.pin_dir, on_event=ignore, objects=tmp_path)
    with pytest.raises(errors.Unavailable, match=r"/none: No such file.*v2 hierarchy"):
        KernelSide.open(cgroup=host.root.v2 / "none", pin_dir=host.pin_dir, on_event=ignore)
    with pytest.raises(errors.PinError, match="not on a bpf file system"):
        KernelSide.open(cgroup=host.root.v2, pin_dir=Path("/proc/corral"), on_event=ignore)
    with opened(host) as side:
        with pytest.raises(errors.NotRegistered, match="group 5 is not registered"):
            side.arm(5, notify=None, brake=1)
        with pytest.raises(errors.InvalidPolicy, match="brake: 0 bytes"):
            side.register(5, brake=0)
        with pytest.raises(errors.InvalidPolicy, match="-1 is not the id"):
            side.register(-1)
        assert side.registered() == set()
        side.forget(5)
        side.unload()


def test_events_reach_the_handler_even_if_it_raises(host: Host) -> None:
    group, seen = host.group(), list[Event]()

    def fail(event: Event) -> None:
        seen.append(event)
        raise ValueError(event.cgroup_id)

    with KernelSide.open(cgroup=host.root.v2, pin_dir=host.pin_dir, on_event=fail) as side:
        side.register(group.id)
        host.start_in(group, "forks", "3", "/bin/true").run()
        with pytest.raises(ExceptionGroup) as caught:
            side.drain()
        assert len(caught.value.exceptions) == len(seen) == 3
        assert side.drain() == 0
        side.unload()


def test_the_probe_agrees_with_the_loader(host: Host) -> None:
    found = {feature.name: feature.found for feature in probe(host.root.v2)}
    with opened(host) as side:
        assert ("tripwire" in side.parts) == found["rss_stat brake"]
        assert ("gates" in side.parts) == (found["cgroup/connect4"] and found["cgroup/device"])
        assert ("accounting" in side.parts) == (found["tp_btf"] and found["iter/task"])
        side.unload()
    assert attached_to(host.root.v2) == set()
