"""Groups on the real kernel: made, limited, read back, removed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.cgroup import (
    MAX_RECORD,
    CgroupHost,
    GroupBusy,
    GroupExists,
    KnobMissing,
    NoSuchGroup,
    NoUsableCgroups,
    Tree,
    ValueRefused,
    detect,
    files,
)
from controller.cgroup.detect import CGROUP2_MAGIC, filesystem_magic
from controller.model import UNLIMITED, Limits
from tests.host.cgroup_tools import Session, child, root_name, temporary_tree

pytestmark = pytest.mark.host


@pytest.fixture
def tree() -> Iterator[Tree]:
    with temporary_tree() as made:
        yield made


@pytest.fixture
def session(tree: Tree) -> Session:
    return Session(tree)


def twins(tree: Tree, relative: str) -> set[str]:
    return {str(m) for m in {tree.host.v2, *tree.host.mounts.values()} if (m / relative).is_dir()}


def test_limits_are_what_was_set(session: Session) -> None:
    call = session.call()
    call.create(Limits(memory_max=64 << 20, pids_max=10, cpu_max=0.5, cpu_weight=50))
    limits = call.limits()
    assert (limits.memory_max, limits.pids_max, limits.cpu_max, limits.cpu_weight) == (64 << 20, 10, 0.5, 50)
    call.set(Limits(pids_max=11))
    assert call.limits() == limits.merged(Limits(pids_max=11))  # the others untouched
    call.set(Limits(memory_max=UNLIMITED, pids_max=UNLIMITED, cpu_max=UNLIMITED, cpu_weight=UNLIMITED))
    limits = call.limits()
    assert (limits.memory_max, limits.pids_max, limits.cpu_max, limits.cpu_weight) == (-1, -1, -1, 100)


def test_the_id_is_the_inode_of_the_v2_directory(session: Session) -> None:
    call = session.call()
    with pytest.raises(NoSuchGroup):
        _ = call.id
    call.create()
    assert call.id == Path(call.path).stat().st_ino
    assert filesystem_magic(call.path) == CGROUP2_MAGIC


def test_made_with_its_parents_in_every_hierarchy_and_removed_from_each(tree: Tree, session: Session) -> None:
    call = session.call()
    assert not call.exists()
    call.create()
    assert call.exists()
    eager = {str(tree.host.v2), *(str(tree.host.mounts[c]) for c in ("memory", "pids") if c in tree.controllers)}
    assert twins(tree, call.relative) == eager
    call.set(Limits(cpu_max=1.0))
    assert twins(tree, call.relative) == eager | {str(tree.host.mounts["cpu"])}
    call.delete()
    assert twins(tree, call.relative) == set()
    call.delete()  # gone already: nothing to do
    session.tenant.delete(recursive=True)
    assert twins(tree, session.tenant.relative) == set()


def test_made_twice(session: Session) -> None:
    call = session.call()
    call.create(Limits(pids_max=5))
    with pytest.raises(GroupExists):
        call.create(Limits(pids_max=6))
    assert call.limits().pids_max == 5
    call.create(Limits(pids_max=7), exist_ok=True)
    assert call.limits().pids_max == 7


def test_a_refused_limit_leaves_nothing_behind(tree: Tree, session: Session) -> None:
    call = session.call()
    with pytest.raises(ValueRefused, match=r"cpu_max"):
        call.create(Limits(memory_max=64 << 20, cpu_max=0.001))
    with pytest.raises(ValueRefused, match=r"pids"):
        call.create(Limits(cpu_max=1.0, pids_max=0))
    assert twins(tree, call.relative) == set()


def test_a_missing_knob_is_named(session: Session) -> None:
    call = session.call()
    call.create()
    directory = call.directory("memory")
    assert directory is not None
    with pytest.raises(KnobMissing, match=r"memory\.nonsense.*'1'.*ENOENT"):
        files.write(f"{directory}/memory.nonsense", "1")
    with pytest.raises(ValueRefused, match=r"EINVAL"):
        files.write(f"{session.call().path.rpartition('/')[0]}/cgroup.freeze", "many")


def test_a_group_that_is_gone_says_so(session: Session) -> None:
    call = session.call()
    for use in (
        call.fast_stat,
        call.stat,
        call.pids,
        call.populated,
        call.freeze,
        call.kill,
        call.get_xattr,
        call.limits,
    ):
        with pytest.raises(NoSuchGroup):
            use()
    with pytest.raises(NoSuchGroup):
        call.set(Limits(pids_max=5))
    with child("") as process, pytest.raises(NoSuchGroup):
        call.move(process.pid)


def test_soft_limits_are_set_or_noted(session: Session) -> None:
    call = session.call()
    notes = call.create(Limits(memory_high=32 << 20, memory_low=4 << 20, io_weight=200))
    limits = call.limits()
    said = " ".join(notes)
    for field, value in (("memory_high", 32 << 20), ("memory_low", 4 << 20), ("io_weight", 200)):
        assert (getattr(limits, field) == value) != (field in said)


def test_oom_group_is_set_or_noted(session: Session) -> None:
    call = session.call()
    call.create()
    notes = call.oom_group(True)
    knob = Path(f"{call.directory('memory')}/memory.oom.group")
    assert knob.read_text() == "1\n" if knob.exists() else notes


def test_the_tighter_cpu_quota_wins_on_each_kind_of_host(session: Session) -> None:
    session.tenant.set(Limits(cpu_max=1.0))
    call = session.call()
    call.create(Limits(cpu_max=2.0))  # more than the tenant may have
    tighter = call.limits().cpu_max
    assert tighter is not None
    assert min(tighter, 1.0) == 1.0
    session.tenant.set(Limits(cpu_max=0.5))  # below what the call has
    assert session.tenant.limits().cpu_max == 0.5
    session.tenant.set(Limits(cpu_max=UNLIMITED))
    call.set(Limits(cpu_max=2.0))
    assert call.limits().cpu_max == 2.0


def test_the_record_survives_with_the_group(tree: Tree, session: Session) -> None:
    call = session.call()
    call.create()
    assert call.get_xattr() is None
    record = b'{"call":"\xff\x00"}'
    call.set_xattr(record)
    call.set_xattr(record + b"2")
    again = Tree(tree.host, tree.root.relative)
    again.prepare()
    assert [g.get_xattr() for g in again.find().calls] == [record + b"2"]
    call.set_xattr(b"x" * MAX_RECORD)
    assert call.get_xattr() == b"x" * MAX_RECORD
    with pytest.raises(ValueRefused):
        call.set_xattr(b"x" * (MAX_RECORD + 1))
    assert call.get_xattr() == b"x" * MAX_RECORD


def test_the_record_under_the_name_for_the_unprivileged() -> None:
    with temporary_tree() as tree:
        plain = Tree(tree.host, tree.root.relative, xattr_prefix="user")
        plain.prepare()
        assert plain.xattr_name == "user.corral"
        plain.root.set_xattr(b"me")
        assert plain.root.get_xattr() == b"me"
        assert tree.root.get_xattr() != b"me"


def test_a_tmpfs_cannot_pose_as_a_cgroup(tmp_path: Path) -> None:
    with temporary_tree() as tree:
        mount = tmp_path / "posing"
        mount.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "corral-test", str(mount)], check=True)
        try:
            (mount / "v1").mkdir()
            posing = CgroupHost(
                mode="hybrid",
                v2=tree.host.v2,
                mounts={**tree.host.mounts, "memory": mount / "v1"},
                mount_roots=tree.host.mount_roots,
            )
            with pytest.raises(NoUsableCgroups, match="not a cgroup file system"):
                Tree(posing, root_name()).prepare()
            # mounted over after the start, when nobody looks at magic numbers: no file is made, no success is told
            late = Tree(posing, tree.root.relative)
            (mount / "v1" / tree.root.relative).mkdir()
            session = Session(late)
            call = session.call()
            with pytest.raises(KnobMissing, match=r"posing/v1/.*memory\."):
                call.create(Limits(memory_max=64 << 20))
            assert not call.exists()
            assert not Path(f"{call.directory('memory')}").exists()
            call.create()
            with child("") as process, pytest.raises(KnobMissing, match=r"posing.*cgroup\.procs"):
                call.move(process.pid)
            assert [p for p in (mount / "v1").rglob("*") if p.is_file()] == []
        finally:
            subprocess.run(["umount", str(mount)], check=True)


def test_what_exists_is_found_and_strangers_are_told(tree: Tree) -> None:
    one, two = Session(tree), Session(tree)
    calls = [one.call(), one.call(), two.call()]
    for call in calls:
        call.create()
    one.agent().create()
    (Path(tree.root.path) / "stranger").mkdir()
    (Path(one.group.path) / "calls" / "c-not-an-id").mkdir()
    found = Tree(detect(), tree.root.relative).find()
    assert set(found.tenants) == {one.tenant, two.tenant}
    assert set(found.sessions) == {one.group, two.group}
    assert set(found.calls) == set(calls)
    assert {c.call_id for c in found.calls} == {c.call_id for c in calls}
    assert {Path(s).name for s in found.strange} == {"stranger", "c-not-an-id"}


def test_five_hundred_groups(tree: Tree, session: Session) -> None:
    calls = [session.call() for _ in range(500)]
    for call in calls:
        call.create(Limits(memory_max=64 << 20, pids_max=32))
    assert len(tree.find().calls) == 500
    assert len({call.id for call in calls}) == 500
    for call in calls:
        assert call.fast_stat().cpu_usec == 0
        call.delete()
    assert tree.find().calls == ()
    session.group.delete(recursive=True)
    session.tenant.delete()


def test_the_daemons_leaf(tree: Tree) -> None:
    code = (
        "import os\n"
        "from controller.cgroup import Tree, detect\n"
        f"tree = Tree(detect(), {tree.root.relative!r})\n"
        "where = open('/proc/self/cgroup').read()\n"
        "tree.enter_own_leaf()\n"
        "print(tree.locate(os.getpid()).relative, tree.own_leaf.pids() == [os.getpid()])\n"
        "tree.leave_own_leaf()\n"
        "print(tree.locate(os.getpid()), open('/proc/self/cgroup').read() == where)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ended.stdout.splitlines() == [f"{tree.root.relative}/agentd True", "None True"]


def test_a_daemon_that_starts_in_the_root_itself(tree: Tree) -> None:
    """As a unit of systemd with Delegate=yes: its group is the tree's root, and it must leave it for a leaf."""
    unit = f"{tree.root.relative}/unit.service"
    code = f"""
import os, subprocess, sys
from controller.cgroup import Tree, detect
from controller.model import Limits, new_session_id, new_tenant_id
sys.stdin.readline()
tree = Tree(detect(), {unit!r})
notes = tree.prepare()
if tree.mode == "hybrid":
    tree.enter_own_leaf()  # nothing makes it necessary there
print(notes, sorted(tree.controllers) == sorted(detect().controllers))
print(tree.locate(os.getpid()) == tree.own_leaf, tree.root.pids())
tenant, session = new_tenant_id(), new_session_id()
agent = tree.agent(tenant, session)
print(agent.create(Limits(memory_max=64 << 20, pids_max=9)), agent.limits().memory_max)
sleeper = subprocess.Popen(["sleep", "600"])
agent.move(sleeper.pid)
tree.remove_all()
print(sleeper.wait(), tree.find().tenants, tree.locate(os.getpid()) == tree.own_leaf)
"""
    mounts = {tree.host.v2, *tree.host.mounts.values()} if tree.mode == "unified" else {tree.host.v2}
    for mount in mounts:
        (mount / unit).mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as daemon:
        try:
            (tree.host.v2 / unit / "cgroup.procs").write_text(str(daemon.pid))
            out, _ = daemon.communicate("go\n", timeout=60)
        finally:
            daemon.kill()
    assert out.splitlines() == ["() True", "True []", f"() {64 << 20}", "-9 () True"]


def test_a_root_that_others_live_in_is_refused_where_that_matters(tree: Tree) -> None:
    if tree.mode == "hybrid":
        pytest.skip("no controllers on v2, so no rule against processes in inner groups")
    unit = tree.host.v2 / tree.root.relative / "unit.service"
    unit.mkdir()
    with child("import time; time.sleep(600)") as stranger:
        (unit / "cgroup.procs").write_text(str(stranger.pid))
        with pytest.raises(NoUsableCgroups, match=rf"holds processes.*{stranger.pid}"):
            Tree(tree.host, f"{tree.root.relative}/unit.service").prepare()


def test_taking_the_tree_down_spares_nothing_inside_and_everything_outside() -> None:
    with temporary_tree() as tree, child("import time; time.sleep(600)") as inside, child("") as outside:
        session = Session(tree)
        call = session.call()
        call.create(Limits(cpu_max=1.0))
        call.move(inside.pid)
        with pytest.raises(GroupBusy):
            tree.remove_all(kill=False)
        assert inside.poll() is None
        assert call.pids() == [inside.pid]
        tree.remove_all()
        assert inside.wait() == -9
        assert outside.poll() is None
        assert twins(tree, tree.root.relative) == set()
        tree.remove_all()  # twice
