"""Policies, errors, devices, pins and the probe, without privilege."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bpf import errors, probe
from bpf.devices import gpu_majors
from bpf.libbpf import Object
from bpf.pins import PinDir
from bpf.types import NetworkMode, NetworkPolicy, NetworkRule


def test_policies_say_what_is_wrong() -> None:
    with pytest.raises(errors.InvalidPolicy, match=r"'10\.0\.0\.0/99'.*CIDR"):
        NetworkRule.parse("10.0.0.0/99")
    with pytest.raises(errors.InvalidPolicy, match="70000 is no port; 0"):
        NetworkRule.parse("10.0.0.0/8", 70_000)
    with pytest.raises(errors.InvalidPolicy, match="65 rules; at most 64"):
        NetworkPolicy.listed([("10.0.0.0/8", port) for port in range(65)])
    with pytest.raises(errors.InvalidPolicy, match="mode none"):
        NetworkPolicy(NetworkMode.NONE, (NetworkRule.parse("::1"),))
    assert NetworkPolicy.listed([]).mode is NetworkMode.LIST
    assert NetworkRule.parse("10.1.2.3/8").network == NetworkRule.parse("10.0.0.0/8").network


def test_one_tree_of_errors() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert all(issubclass(kind, errors.BpfError) for kind in kinds)
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in kinds)
    err = errors.VerifierRejected("x.o: refused", program="p", log=("a", "b"), errno=13)
    assert (err.program, err.log, err.errno) == ("p", ("a", "b"), 13)
    assert str(err).startswith("x.o: refused; the program")


def test_gpu_majors_are_read_from_the_kernels_list(tmp_path: Path) -> None:
    listing = tmp_path / "devices"
    listing.write_text(
        "Character devices:\n  1 mem\n195 nvidia-frontend\n226 drm\n234 kfd\n508 nvidia-uvm\n509 nvidia-caps\n"
        "\nBlock devices:\n  7 loop\n259 nvidia-fake\n"
    )
    assert gpu_majors(listing) == {195, 226, 234, 508, 509}
    listing.write_text("Character devices:\n  1 mem\n")
    assert gpu_majors(listing) == {195, 226}
    assert gpu_majors(tmp_path / "none") == {195, 226}


def test_pins_need_a_bpf_file_system(tmp_path: Path) -> None:
    with pytest.raises(errors.PinError, match=r"with a dot.*rename"):
        PinDir(Path("/sys/fs/bpf/corral/host.example")).prepare()
    undotted = Path("/proc/corral")
    with pytest.raises(errors.PinError, match=r"/proc/corral is not on a bpf file system; use a directory below"):
        PinDir(undotted).prepare()


def test_links_are_listed_by_part(tmp_path: Path) -> None:
    pins = PinDir(tmp_path)
    assert pins.parts() == []
    for name in ("gates-1111", "gates-2222", "network-1111"):
        (tmp_path / "links" / name).mkdir(parents=True)
    assert [d.name for d in pins.others_of("gates", "1111")] == ["gates-2222"]
    pins.remove(pins.of_part("gates", "2222"))
    pins.remove(pins.of_part("gates", "2222"))
    assert [d.name for d in pins.parts()] == ["gates-1111", "network-1111"]


def test_what_is_no_object_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "broken.bpf.o"
    path.write_bytes(b"not an ELF file")
    with pytest.raises(errors.LoadFailed, match=r"broken\.bpf\.o cannot be opened.*build-bpf") as caught:
        Object(path)
    assert any("broken" in line for line in caught.value.log)


def test_the_probe_works_for_everyone() -> None:
    features = {feature.name: feature for feature in probe.probe()}
    assert {"capabilities", "btf", "bpffs", "rss_stat brake", "cgroup/connect4", "kprobe", "lockdown"} <= set(features)
    assert all(feature.cost and feature.remedy and feature.detail for feature in features.values())
    if not features["capabilities"].found:
        assert features["rss_stat brake"].found is None
        assert "CAP_BPF" in features["rss_stat brake"].detail
    elif os.geteuid() == 0:
        assert features["ring buffer"].found is not None


def test_capabilities_are_read(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapEff:\t000000c000001000\n")
    assert probe.effective_capabilities(status) == {"net_admin", "perfmon", "bpf"}
    status.write_text("CapEff:\t0000000000000000\n")
    assert probe.effective_capabilities(status) == frozenset()


def test_without_privilege_unknown_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "effective_capabilities", frozenset)
    features = {feature.name: feature for feature in probe.probe()}
    assert features["capabilities"].found is False
    assert "none" in features["capabilities"].detail
    assert {features[name].found for name in ("tp_btf", "fentry", "cgroup/device", "lockdown")} == {None}
