"""The table of `corral doctor`: complete and in words on every kind of host, and nothing left behind."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agentd.doctor import around, features, groups, limits, netlink, own_features
from agentd.doctor.attempt import tried
from bpf import Feature
from bpf.probe import probe
from controller.cgroup import CgroupHost, NoUsableCgroups

ROOT = Path(__file__).parents[2]
EXPECTED = [
    *("cgroup", "pidfd", "corral-exec", "root", "psi", "meminfo"),
    *(() if os.geteuid() == 0 else ("user service",)),
    *("memory controller", "cpu controller", "pids controller", "io controller"),
    *("memory.high", "memory.low", "memory.peak", "cgroup.freeze", "cgroup.kill", "cgroup attributes"),
    *("psi per cgroup", "favordynmods", "inotify watches", "open files", "state directory"),
]
LAST = ["process connector", "taskstats", "systemd", "docker", "docker sdk", "nvidia", "bcc", "corral trace"]


def by_name(found: tuple[Feature, ...] | list[Feature]) -> dict[str, Feature]:
    return {feature.name: feature for feature in found}


def test_every_line_says_what_and_every_missing_thing_its_cost_and_remedy(tmp_path: Path) -> None:
    found = features(state_dir=tmp_path)
    names = [feature.name for feature in found]
    assert names[: len(EXPECTED)] == EXPECTED
    assert names[-len(LAST) :] == LAST
    assert len(set(names)) == len(names)
    assert len(names) > len(EXPECTED) + len(LAST)  # what the kernel allows stands in between
    for feature in found:
        assert feature.detail, feature.name
        assert "\n" not in feature.detail
        if feature.found is None:
            assert "not known" in feature.detail, feature.name
        if feature.found is False:
            assert feature.cost, feature.name
            assert feature.remedy, feature.name
    assert list(tmp_path.iterdir()) == []


def test_what_a_daemon_lacks_comes_first(tmp_path: Path) -> None:
    first, second, *_ = features(("the first", "the second"), state_dir=tmp_path)
    assert (first, second) == own_features(("the first", "the second"))
    assert first == Feature(name="daemon", found=False, detail="the first", cost="", remedy="")


def _groups() -> set[str]:
    top = Path("/sys/fs/cgroup")
    return {str(path) for path in (*top.glob("corral-doctor-*"), *top.glob("*/corral-doctor-*"))}


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    before = _groups()
    features(state_dir=tmp_path)
    assert _groups() - before == set()
    assert not [p for p in Path("/proc").glob("[0-9]*") if _is_our_probe(p)]


def _is_our_probe(process: Path) -> bool:
    try:
        line = (process / "cmdline").read_bytes()
        return b"controller.processes.probe" in line and f"\nPPid:\t{os.getpid()}\n" in (process / "status").read_text()
    except OSError:
        return False


def test_without_a_writable_tree_the_group_s_lines_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(root: str) -> CgroupHost:
        raise NoUsableCgroups("/sys/fs/cgroup", "not writable for uid 7", remedy="run agentd as root")

    monkeypatch.setattr(groups, "detect", refuse)
    found = by_name(groups.lines("corral"))
    assert found["memory controller"].found is False
    assert "not writable for uid 7" in found["memory controller"].detail
    for name in ("cgroup.freeze", "cgroup.kill", "cgroup attributes", "psi per cgroup"):
        assert found[name].found is None, name
        assert "not writable for uid 7" in found[name].detail
        assert found[name].cost


def fake_host(tmp_path: Path, *, handed: str, knobs: tuple[str, ...]) -> CgroupHost:
    """A directory that looks like a v2 hierarchy; ``knobs`` are what a new group in it has."""
    (tmp_path / "cgroup.subtree_control").write_text(handed)
    for knob in knobs:
        (tmp_path / knob).write_text("0\n")
    return CgroupHost(
        mode="unified",
        v2=tmp_path,
        mounts={"memory": tmp_path},
        mount_roots={tmp_path: "/"},
        problems=("no cpu controller: it is switched off",),
    )


def trial_in(tmp_path: Path, host: CgroupHost) -> groups.Trial:
    trial = groups.Trial.__new__(groups.Trial)
    trial.host, trial.directory, trial.why = host, tmp_path / "group", ""
    trial.directory.mkdir()
    return trial


def line(attempt: Callable[[], str]) -> Feature:
    return tried("x", attempt, "it costs", "do this")


def test_unified_knobs_are_found_missing_or_not_known(tmp_path: Path) -> None:
    trial = trial_in(tmp_path, fake_host(tmp_path, handed="pids\n", knobs=()))
    assert line(lambda: groups._v2_memory(trial, "memory.high")).found is None  # memory is not handed down yet
    (tmp_path / "cgroup.subtree_control").write_text("memory pids\n")
    missing = line(lambda: groups._memory_peak(trial))
    assert (missing.found, missing.detail) == (False, "this kernel's groups have no memory.peak")
    (tmp_path / "group" / "memory.peak").write_text("1\n")
    assert line(lambda: groups._memory_peak(trial)).found is True
    absent = line(lambda: groups._controller(trial, "cpu"))
    assert (absent.found, absent.detail) == (False, "no cpu controller: it is switched off")
    assert line(lambda: groups._controller(trial, "memory")).detail == f"v2, {tmp_path}"


def test_a_file_that_only_pretends_to_freeze_is_found_out(tmp_path: Path) -> None:
    trial = trial_in(tmp_path, fake_host(tmp_path, handed="", knobs=()))
    group = tmp_path / "group"
    (group / "cgroup.freeze").write_text("")
    (group / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    assert line(lambda: groups._freeze(trial)).detail == "a group does not say that it is frozen"
    (group / "cgroup.events").write_text("nonsense\n")
    assert line(lambda: groups._freeze(trial)).found is False


def test_few_watches_and_few_files_are_said_in_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    feature = line(limits._files)
    assert (feature.found, feature.detail) == (False, "1024 descriptors (hard limit): some 341 calls at once")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    assert line(limits._files).found is True
    assert line(lambda: limits._enough("3000 watches", 1000)).found is True
    assert line(lambda: limits._enough("2999 watches", 999)).found is False


def test_the_state_directory_is_written_to_or_said(tmp_path: Path) -> None:
    there = line(lambda: limits._state(tmp_path))
    assert there.found is True
    assert there.detail.startswith(f"{tmp_path}, ")
    to_make = line(lambda: limits._state(tmp_path / "a" / "b"))
    assert to_make.found is True
    assert f"to be made in {tmp_path}" in to_make.detail
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert line(lambda: limits._state(tmp_path / "file")).found is False
    assert line(lambda: limits._state(Path("/proc/self"))).found is False


def test_a_probe_of_netlink_that_fails_or_hangs_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(code: str) -> dict[str, Feature]:
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            return by_name(netlink.lines(process))
        finally:
            process.kill()
            process.communicate()

    answer = {"process connector": {"detail": "told"}, "taskstats": {"error": "no", "remedy": "be root"}}
    found = told(f"print({json.dumps(answer)!r})")
    assert found["process connector"].found is True
    assert (found["taskstats"].found, found["taskstats"].remedy) == (False, "be root")
    assert "ZeroDivisionError" in told("1/0")["taskstats"].detail
    assert told("1/0")["taskstats"].found is None
    assert "strangely" in told("print('x')")["taskstats"].detail
    monkeypatch.setattr(netlink, "_PATIENCE", 0.0)
    assert "longer than" in told("import time; time.sleep(60)")["taskstats"].detail


def test_docker_is_spoken_to(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    assert line(lambda: around._docker(path)).found is False
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        assert line(lambda: around._docker(path)).found is False
        listening.listen()
        assert line(lambda: around._docker(path)).detail == f"a daemon listens at {path}"


def test_bcc_is_looked_for_where_debian_has_it(tmp_path: Path) -> None:
    path = tmp_path / "bcc" / "__init__.py"
    assert line(lambda: around._bcc(path)).found is False
    path.parent.mkdir()
    path.write_text("")
    assert line(lambda: around._bcc(path)).detail == str(path.parent)


def test_what_a_trace_lacks_is_named(tmp_path: Path) -> None:
    bcc = tmp_path / "__init__.py"
    kernel = [Feature(name=name, found=True, detail="x", cost="", remedy="") for name in around._TRACE_NEEDS]
    assert line(lambda: around._trace(kernel, bcc)).detail == "missing: bcc"
    bcc.write_text("")
    assert line(lambda: around._trace(kernel, bcc)).found is True
    untried = [replace(kernel[0], found=None), *kernel[1:]]
    assert line(lambda: around._trace(untried, bcc)).detail == "not known: tracefs could not be tried"
    lacking = [untried[0], replace(kernel[1], found=False)]
    assert line(lambda: around._trace(lacking, bcc)).detail == "missing: kernel headers"
    assert {each.name for each in probe()} >= set(around._TRACE_NEEDS)


def test_a_module_is_found_without_loading_it() -> None:
    assert line(lambda: around._module("no_such_module_here")).found is False
    assert line(lambda: around._module("docker")).found is True


def test_the_netlink_probe_by_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "controller.processes.probe"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout)
    assert list(told) == ["process connector", "taskstats"]
    for answer in told.values():
        assert answer.keys() in ({"detail"}, {"error", "remedy"})
        assert all(answer.values())
