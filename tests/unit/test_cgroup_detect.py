"""Which hierarchies a host has, from texts of /proc/self/mountinfo."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

import controller.cgroup
from controller.cgroup import GroupBusy, KernelRefused, KnobMissing, NotPermitted, NoUsableCgroups, Tree, ValueRefused
from controller.cgroup.detect import CgroupHost, classify, detect, has_magic, parse_mountinfo
from controller.cgroup.errors import CgroupFileError, from_os
from controller.cgroup.membership import home, parse_membership, unified_path
from controller.model import CallId, CgroupError, InvalidRequest, SessionId, TenantId, new_session_id, new_tenant_id

UNIFIED = "27 22 0:24 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
ALL = frozenset({"memory", "cpu", "pids", "io"})


def test_unified() -> None:
    host = classify(parse_mountinfo(UNIFIED), ALL | {"cpuset"})
    assert host.mode == "unified"
    assert host.v2 == Path("/sys/fs/cgroup")
    assert host.mounts == dict.fromkeys(ALL, host.v2)
    assert host.problems == ()


def test_hybrid() -> None:
    host = classify(parse_mountinfo(HYBRID), frozenset())
    assert host.mode == "hybrid"
    assert host.v2 == Path("/sys/fs/cgroup/unified")
    assert {n: p.name for n, p in host.mounts.items()} == {
        "memory": "memory",
        "cpu": "cpu,cpuacct",
        "pids": "pids",
        "io": "blkio",
    }
    assert host.problems == ()


def test_a_controller_on_v2_wins_over_none_on_v1_and_the_rest_is_said() -> None:
    host = classify(parse_mountinfo(UNIFIED), frozenset({"memory", "pids"}))
    assert host.mode == "unified"
    assert host.controllers == {"memory", "pids"}
    assert len(host.problems) == 2
    assert any("cpu" in p for p in host.problems)


def test_v2_without_any_controller_and_no_v1() -> None:
    host = classify(parse_mountinfo(UNIFIED), frozenset())
    assert host.mode == "hybrid"
    assert host.controllers == frozenset()
    assert len(host.problems) == 4


def test_no_v2() -> None:
    with pytest.raises(NoUsableCgroups, match=r"no cgroup v2.*mount"):
        classify(parse_mountinfo(HYBRID.replace("cgroup2 cgroup2", "tmpfs tmpfs")), frozenset())


@pytest.mark.parametrize(
    "text", [UNIFIED.replace(" rw,nosuid ", " ro,nosuid "), UNIFIED.replace(" rw,nsdel", " ro,nsdel")]
)
def test_read_only(text: str) -> None:
    with pytest.raises(NoUsableCgroups, match="read-only"):
        classify(parse_mountinfo(text), ALL)


def test_a_read_only_v1_controller_is_a_problem_and_not_used() -> None:
    text = HYBRID.replace("/memory rw,relatime", "/memory ro,relatime")
    host = classify(parse_mountinfo(text), frozenset())
    assert "memory" not in host.mounts
    assert any("memory" in p and "read-only" in p for p in host.problems)


def test_mountinfo_oddities() -> None:
    odd = "nonsense\n1 2 3\n"
    odd += "50 1 0:9 / /mnt/with\\040space rw - cgroup2 none rw\n60 1 0:7 / /proc rw - proc proc rw\n\xff\n"
    (mount,) = parse_mountinfo(odd)
    assert mount.path == Path("/mnt/with space")
    hidden = UNIFIED + "90 22 0:99 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    assert parse_mountinfo(hidden) == []
    shown = "32 31 0:29 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    assert parse_mountinfo(shown)[0].root == "/docker/abc"


def fake_host(path: Path, mount_root: str = "/") -> CgroupHost:
    for name in ("v2", "memory", "pids"):
        (path / name).mkdir()
    v2 = path / "v2"
    return CgroupHost(
        mode="hybrid",
        v2=v2,
        mounts={"memory": path / "memory", "pids": path / "pids"},
        mount_roots={v2: "/", path / "memory": mount_root},
    )


def test_where_a_process_was_is_found_below_the_mount(tmp_path: Path) -> None:
    host = fake_host(tmp_path, "/docker/abc")
    layout = Tree(host).root._layout
    was = parse_membership(b"4:memory:/docker/abc/x\n8:pids:/y:z\n1:cpu,cpuacct:/q\n0::/u\n")
    assert was == {"memory": "/docker/abc/x", "pids": "/y:z", "cpu": "/q", "cpuacct": "/q", "": "/u"}
    assert home(layout, str(tmp_path / "memory"), was) == f"{tmp_path}/memory/x/cgroup.procs"
    assert home(layout, str(tmp_path / "pids"), was) == f"{tmp_path}/pids/y:z/cgroup.procs"
    assert home(layout, str(tmp_path / "v2"), {"": "/"}) == f"{tmp_path}/v2/cgroup.procs"
    assert home(layout, str(tmp_path / "memory"), {"memory": "/docker/abcdef"}) is None
    assert home(layout, str(tmp_path / "memory"), {}) is None


def test_a_directory_that_is_no_cgroup_is_refused(tmp_path: Path) -> None:
    tree = Tree(fake_host(tmp_path))
    with pytest.raises(NoUsableCgroups, match="not a cgroup file system"):
        tree.prepare()
    assert not (tmp_path / "v2" / "corral").exists()
    assert not has_magic(str(tmp_path / "absent"), 1)


def test_no_privilege_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_args, **_kw: False)
    with pytest.raises(NoUsableCgroups) as caught:  # whatever this machine has: nothing of it is writable
        detect()
    assert caught.value.remedy
    assert "not writable" in str(caught.value) or "cgroup v2" in str(caught.value)


@pytest.mark.parametrize(
    "root", ["", "/corral", "corral/", "a//b", "../x", "a/../b", ".", "a b", "x\n", "a/./b", "-\0"]
)
def test_roots_that_are_no_plain_paths(tmp_path: Path, root: str) -> None:
    with pytest.raises(InvalidRequest, match=r"cgroup\.root"):
        Tree(fake_host(tmp_path), root)


@pytest.mark.parametrize("root", ["corral", "system.slice/corral.service", "user.slice/user@1000.service/x"])
def test_roots_that_are(tmp_path: Path, root: str) -> None:
    assert Tree(fake_host(tmp_path), root).root.relative == root


def test_only_ids_of_the_right_kind_reach_a_path(tmp_path: Path) -> None:
    tree = Tree(fake_host(tmp_path))
    tenant, session = new_tenant_id(), new_session_id()
    assert tree.session(tenant, session).relative == f"corral/{tenant}/{session}"
    for bad in ("", "..", "agentd", "../../x", "t-short", str(session), f"{tenant}/x", f"{tenant}\n"):
        with pytest.raises(ValueRefused):
            tree.tenant(TenantId(bad))
        with pytest.raises(ValueRefused):
            tree.session(tenant, SessionId(bad + "/.."))
        with pytest.raises(ValueRefused):
            tree.call(tenant, session, CallId(bad))


def test_paths_name_groups_and_strangers_are_none(tmp_path: Path) -> None:
    tree = Tree(fake_host(tmp_path))
    tenant, session = new_tenant_id(), new_session_id()
    for group in (tree.own_leaf, tree.tenant(tenant), tree.session(tenant, session), tree.agent(tenant, session)):
        assert tree.by_path(f"/{group.relative}") == group
    for path in (
        "/",
        "/corral",
        "/corral/",
        "/other/x",
        f"/corral/{session}",
        f"/corral/{tenant}/{session}/x",
        "corral",
    ):
        assert tree.by_path(path) is None


@pytest.mark.parametrize(
    ("said", "path"),
    [
        (b"4:memory:/a\n1:name=systemd:/\n0::/corral/t/s/calls/c\n", "/corral/t/s/calls/c"),
        (b"0::/\n", "/"),
        (b"0::/u:v/0::w\n", "/u:v/0::w"),
        (b"10::/not-it\n3:cpu:/0::/nor-this\n", ""),  # v1 alone
        (b"", ""),
    ],
)
def test_the_path_in_the_unified_hierarchy(monkeypatch: pytest.MonkeyPatch, said: bytes, path: str) -> None:
    monkeypatch.setattr("controller.cgroup.files.read", lambda _: said)
    assert unified_path(1) == path


@pytest.mark.parametrize(
    ("where", "own"),
    [
        ("/system.slice/agentd.service", True),
        ("/user.slice/user-1.slice/user@1.service/app.slice/agentd.service", True),
        ("/user.slice/user-0.slice/session-3.scope", False),  # a shell: its limits are not meant for the daemon
        ("/system.slice/lab.service/main", False),  # below a unit's group, among others
        ("/corral.slice/corral-calls.service", False),  # the root itself: no process may stay in it
        ("/corral.slice/corral-calls.service/agentd", False),
        ("/", False),
    ],
)
def test_a_service_of_its_own_is_leaf_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, own: bool
) -> None:
    monkeypatch.setattr("controller.cgroup.membership.read_membership", lambda pid: {"": where})
    assert Tree(fake_host(tmp_path), "corral.slice/corral-calls.service").in_own_unit() is own


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EBUSY, GroupBusy),
        (errno.EPERM, NotPermitted),
        (errno.EROFS, NotPermitted),
        (errno.EINVAL, ValueRefused),
        (errno.EIO, KernelRefused),
        (errno.EOPNOTSUPP, KnobMissing),
    ],
)
def test_errors_have_object_cause_and_remedy(number: int, kind: type[CgroupFileError]) -> None:
    error = from_os(OSError(number, "x"), "/g/memory.max", "7")
    assert type(error) is kind
    assert isinstance(error, CgroupError)
    assert error.errno == number
    assert "/g/memory.max" in str(error)
    assert errno.errorcode[number] in str(error)
    assert error.remedy
    assert error.remedy in str(error)


def test_the_public_names() -> None:
    names = {n for n in vars(controller.cgroup) if not n.startswith("_")}
    modules = {p.stem for p in Path(controller.cgroup.__path__[0]).glob("*.py")}
    assert names - (modules - {"detect"}) == set(controller.cgroup.__all__)
