"""The tree of groups: the tenants' sessions and calls below one root, as docs/architecture.md draws it."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import time
from dataclasses import dataclass
from typing import Final, Literal

from controller.cgroup import core, files, membership
from controller.cgroup.detect import CGROUP1_MAGIC, CGROUP2_MAGIC, CgroupHost, filesystem_magic
from controller.cgroup.errors import (
    CgroupFileError,
    GroupBusy,
    GroupExists,
    NoSuchGroup,
    NoSuchProcess,
    NotPermitted,
    NoUsableCgroups,
    ValueRefused,
)
from controller.cgroup.group import Group, GroupKind
from controller.cgroup.layout import Layout
from controller.model import CallId, InvalidRequest, SessionId, TenantId, is_id

_ROOT: Final = re.compile(r"[A-Za-z0-9_@:][A-Za-z0-9_.@:\\-]{0,127}(?:/[A-Za-z0-9_@:][A-Za-z0-9_.@:\\-]{0,127})*")
_ATTRIBUTE: Final = "corral"


@dataclass(frozen=True, slots=True)
class Found:
    """The groups that exist, for adoption after a restart; each list sorted by path. ``strange``: directories of the
    tree, by path, that this version would not have made."""

    tenants: tuple[Group, ...]
    sessions: tuple[Group, ...]
    calls: tuple[Group, ...]
    strange: tuple[str, ...]


class Tree:
    """``root``: path of the tree below each hierarchy's mount; under systemd, the delegated group's own.

    ``xattr_prefix``: ``trusted`` (needs CAP_SYS_ADMIN; hidden from others) or ``user``; chosen by privilege when None.
    Raises InvalidRequest when ``root`` is no relative path of plain names.
    """

    def __init__(
        self, host: CgroupHost, root: str = "corral", *, xattr_prefix: Literal["trusted", "user"] | None = None
    ) -> None:
        if not _ROOT.fullmatch(root):
            raise InvalidRequest(
                "not a relative path of plain names", field="cgroup.root", value=root, remedy="e.g. corral"
            )
        self.host = host
        self._prefix = xattr_prefix
        self._layout = Layout(host, root, f"{xattr_prefix or 'user'}.{_ATTRIBUTE}")
        self._before: dict[str, str] | None = None
        self.root = Group(self._layout, GroupKind.ROOT, root)
        self.own_leaf = Group(self._layout, GroupKind.DAEMON, f"{root}/agentd")

    @property
    def mode(self) -> Literal["unified", "hybrid"]:
        return self._layout.mode

    @property
    def xattr_name(self) -> str:
        """The extended attribute in use; settled by ``prepare``."""
        return self._layout.attribute

    @property
    def controllers(self) -> frozenset[str]:
        """Those whose limits can be set in this tree; settled by ``prepare``."""
        layout = self._layout
        found = {"memory": layout.memory, "cpu": layout.cpu, "pids": layout.pids, "io": layout.io}
        return frozenset(name for name, controller in found.items() if controller is not None)

    # -- the root

    def prepare(self) -> tuple[str, ...]:
        """Make the root in every hierarchy that is used and enable the controllers below it. May be called again.

        Returns what cannot be had, in words. Under systemd the root is the unit's group, which holds the daemon itself:
        it moves to its own leaf first. Raises NoUsableCgroups where no tree can be made.
        """
        layout = self._layout
        notes: list[str] = []
        for mount in layout.mounts:
            wanted = CGROUP2_MAGIC if mount == layout.v2 else CGROUP1_MAGIC
            if filesystem_magic(mount) != wanted:
                raise NoUsableCgroups(
                    mount, "is not a cgroup file system", remedy="mount the cgroup hierarchies where they belong"
                )
        try:
            for mount in (layout.v2, *layout.eager):
                self._make_root(mount)
        except NotPermitted as err:
            raise NoUsableCgroups(err.path, str(err), number=err.errno, remedy=err.remedy) from err
        layout.refresh_lazy()
        if layout.delegated:
            notes += self._enable()
        if self._prefix is None:
            layout.attribute = self._choose_attribute()
        return tuple(notes)

    def _make_root(self, mount: str) -> None:
        path = mount
        for name in self._layout.root.split("/"):
            path = f"{path}/{name}"
            if not files.is_directory(path):
                with contextlib.suppress(GroupExists):
                    files.make_directory(path)

    def _enable(self) -> list[str]:
        """Enable the v2 controllers from the mount down to the root's children; what was not delegated is forgotten."""
        layout = self._layout
        notes: list[str] = []
        path = layout.v2
        for name in layout.root.split("/"):
            have = set(files.read(f"{path}/cgroup.subtree_control").decode().split())
            for controller in layout.delegated:
                if controller not in have:
                    try:
                        files.write(f"{path}/cgroup.subtree_control", f"+{controller}")
                    except CgroupFileError as err:
                        notes.append(f"no {controller} controller: {err}")
            path = f"{path}/{name}"
        have = set(files.read(f"{path}/cgroup.controllers").decode().split())
        layout.without(set(layout.delegated) - have)
        if not layout.delegated:
            return notes
        if os.getpid() in core.processes(path):
            self.enter_own_leaf()
        try:
            layout.enable_below(path)
        except GroupBusy as err:
            raise NoUsableCgroups(
                path,
                "holds processes, so that no controller can be enabled below it (no internal processes)",
                number=err.errno,
                remedy="choose another cgroup.root, or move them away: " + str(core.processes(path)[:5]),
            ) from err
        return notes

    def _choose_attribute(self) -> str:
        """``trusted`` where the kernel lets us write it: being uid 0 is not enough in a user namespace."""
        name = f"trusted.{_ATTRIBUTE}"
        try:
            held = core.get_attribute(self.root.path, name)
            core.set_attribute(self.root.path, name, held or b"")
        except NotPermitted:
            return f"user.{_ATTRIBUTE}"
        return name

    def enter_own_leaf(self) -> None:
        """Move the calling process into ``<root>/agentd`` (made when missing), in every hierarchy."""
        if self._before is None:
            self._before = membership.read_membership(os.getpid())
        # The root's controllers may not be enabled yet: no limits, so none of their files are needed.
        self.own_leaf.create(exist_ok=True)
        self.own_leaf.move(os.getpid())

    def in_own_unit(self) -> bool:
        """Whether the calling process is a service of systemd outside this tree. Its unit's group is a leaf of its own
        already, and the one whose weight, accounting and limits the administrator sees and sets."""
        path = membership.read_membership(os.getpid()).get("", "")
        return path.endswith(".service") and f"{path}/".find(f"/{self._layout.root}/") == -1

    def leave_own_leaf(self) -> None:
        """Take the calling process back to where ``enter_own_leaf`` found it."""
        if self._before is None:
            return
        layout = self._layout
        for mount in layout.mounts:
            target = membership.home(layout, mount, self._before)
            if target is not None:
                files.write(target, str(os.getpid()))
        self._before = None

    # -- its groups

    def tenant(self, tenant_id: TenantId) -> Group:
        return Group(
            self._layout,
            GroupKind.TENANT,
            f"{self._layout.root}/{_checked(tenant_id, 't', 'tenant_id')}",
            tenant_id=tenant_id,
        )

    def session(self, tenant_id: TenantId, session_id: SessionId) -> Group:
        return self._of_session(GroupKind.SESSION, "", tenant_id, session_id)

    def agent(self, tenant_id: TenantId, session_id: SessionId) -> Group:
        return self._of_session(GroupKind.AGENT, "/agent", tenant_id, session_id)

    def left(self, tenant_id: TenantId, session_id: SessionId) -> Group:
        return self._of_session(GroupKind.LEFT, "/left", tenant_id, session_id)

    def wait(self, tenant_id: TenantId, session_id: SessionId) -> Group:
        """Where recognised calls are frozen until it is their turn."""
        return self._of_session(GroupKind.WAIT, "/wait", tenant_id, session_id)

    def calls(self, tenant_id: TenantId, session_id: SessionId) -> Group:
        """The inner node above a session's calls; made with the first of them."""
        return self._of_session(GroupKind.CALLS, "/calls", tenant_id, session_id)

    def call(self, tenant_id: TenantId, session_id: SessionId, call_id: CallId) -> Group:
        tail = f"/calls/{_checked(call_id, 'c', 'call_id')}"
        return self._of_session(GroupKind.CALL, tail, tenant_id, session_id, call_id=call_id)

    def _of_session(
        self, kind: GroupKind, tail: str, tenant_id: TenantId, session_id: SessionId, *, call_id: CallId | None = None
    ) -> Group:
        tenant = _checked(tenant_id, "t", "tenant_id")
        session = _checked(session_id, "s", "session_id")
        relative = f"{self._layout.root}/{tenant}/{session}{tail}"
        return Group(self._layout, kind, relative, tenant_id=tenant_id, session_id=session_id, call_id=call_id)

    def find(self) -> Found:
        """What exists below the root, from the v2 hierarchy; processes and attributes are not looked at."""
        tenants: list[Group] = []
        sessions: list[Group] = []
        calls: list[Group] = []
        strange: list[str] = []
        top = self.root.path
        for tenant in files.subdirectories(top):
            if tenant == "agentd":
                continue
            if not _is(tenant, "t"):
                strange.append(f"{top}/{tenant}")
                continue
            tenants.append(self.tenant(TenantId(tenant)))
            for session in files.subdirectories(f"{top}/{tenant}"):
                if not _is(session, "s"):
                    strange.append(f"{top}/{tenant}/{session}")
                    continue
                sessions.append(self.session(TenantId(tenant), SessionId(session)))
                below = f"{top}/{tenant}/{session}/calls"
                for call in files.subdirectories(below):
                    if _is(call, "c"):
                        calls.append(self.call(TenantId(tenant), SessionId(session), CallId(call)))
                    else:
                        strange.append(f"{below}/{call}")
        return Found(tuple(tenants), tuple(sessions), tuple(calls), tuple(strange))

    def locate(self, pid: int) -> Group | None:
        """The group of this tree that a process is in (by its v2 path); None for any other process, or none."""
        try:
            path = membership.unified_path(pid)
        except NoSuchProcess:
            return None
        shown = self._layout.kernel_names[self._layout.v2][1]
        if shown != "/":
            if not path.startswith(f"{shown}/"):
                return None
            path = path[len(shown) :]
        return self.by_path(path)

    def by_path(self, path: str) -> Group | None:
        """The group at a path below the v2 mount (as eBPF and /proc name it); None when it is none of this tree's."""
        prefix = f"/{self._layout.root}/"
        if not path.startswith(prefix):
            return None
        match path[len(prefix) :].split("/"):
            case ["agentd"]:
                return self.own_leaf
            case [tenant] if _is(tenant, "t"):
                return self.tenant(TenantId(tenant))
            case [tenant, session] if _is(tenant, "t") and _is(session, "s"):
                return self.session(TenantId(tenant), SessionId(session))
            case [tenant, session, "agent"] if _is(tenant, "t") and _is(session, "s"):
                return self.agent(TenantId(tenant), SessionId(session))
            case [tenant, session, "left"] if _is(tenant, "t") and _is(session, "s"):
                return self.left(TenantId(tenant), SessionId(session))
            case [tenant, session, "wait"] if _is(tenant, "t") and _is(session, "s"):
                return self.wait(TenantId(tenant), SessionId(session))
            case [tenant, session, "calls"] if _is(tenant, "t") and _is(session, "s"):
                return self.calls(TenantId(tenant), SessionId(session))
            case [tenant, session, "calls", call] if _is(tenant, "t") and _is(session, "s") and _is(call, "c"):
                return self.call(TenantId(tenant), SessionId(session), CallId(call))
            case _:
                return None

    # -- taking it down

    def remove_all(self, kill: bool = True, *, timeout: float = 10.0) -> None:
        """Remove the whole tree from every hierarchy, with its processes when ``kill``. For uninstalling and tests.

        Waits for the processes to end, at most ``timeout`` seconds, and so must not be called on the event loop. The
        caller is spared: taken back to where ``enter_own_leaf`` found it, or, where that is the root itself or its own
        leaf (a unit of systemd), left in its leaf, which stays with the root. Raises GroupBusy with what is left.
        """
        layout = self._layout
        deadline = time.monotonic() + timeout if kill else 0.0
        if self._before is not None and not self._came_from_here():
            self.leave_own_leaf()
        keep = False
        if self.root.exists():
            where = self.locate(os.getpid())
            keep = where == self.own_leaf
            if where is not None and not keep:
                raise GroupBusy(
                    where.path, "the calling process is in it", remedy="call from outside, or leave it first"
                )
        names = {name for mount in layout.mounts for name in files.subdirectories(f"{mount}/{layout.root}")}
        if keep:
            names.discard("agentd")
        if kill:
            for name in names:
                _kill_below([f"{mount}/{layout.root}/{name}" for mount in layout.mounts], deadline)
        for mount in reversed(layout.mounts):
            for name in sorted(names):
                remove_tree(f"{mount}/{layout.root}/{name}", deadline)
            if not keep:
                remove_tree(f"{mount}/{layout.root}", deadline)
        layout.refresh_lazy()

    def _came_from_here(self) -> bool:
        """Whether ``enter_own_leaf`` found the process in the root or in its leaf already."""
        layout = self._layout
        found = membership.home(layout, layout.v2, self._before or {})
        return found in (f"{self.root.path}/cgroup.procs", f"{self.own_leaf.path}/cgroup.procs")


def _kill_below(directories: list[str], deadline: float) -> None:
    """End what is in a group (its directories, v2 first); also what something else has moved into a twin alone."""
    v2, *twins = directories
    if files.is_directory(v2):
        core.kill(v2)
        _wait_until_empty(v2, deadline)
    for twin in twins:
        if files.is_directory(twin):
            for pid in core.processes_below(twin):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def remove_tree(directory: str, deadline: float = 0.0) -> None:
    """rmdir, the deepest first; until ``deadline`` (monotonic) a busy one is tried again: exits take a moment."""
    for name in files.subdirectories(directory):
        remove_tree(f"{directory}/{name}", deadline)
    while True:
        try:
            files.remove_directory(directory)
        except GroupBusy:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.002)
        else:
            return


def _wait_until_empty(directory: str, deadline: float) -> None:
    path = f"{directory}/cgroup.events"
    try:
        with open(path, "rb", buffering=0) as events:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            while core.parse_core_state(os.pread(events.fileno(), 128, 0), path).populated:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise GroupBusy(
                        directory, "processes are still there", remedy="look at their state: one may hang in the kernel"
                    )
                poll.poll(left * 1000)
    except OSError as err:
        raise NoSuchGroup(path, str(err), number=err.errno or 0, remedy="it was removed meanwhile") from err


def _is(name: str, letter: str) -> bool:
    return name.startswith(letter) and is_id(name)


def _checked(value: str, letter: str, field: str) -> str:
    """Only ids that the daemon made reach a path."""
    if not _is(value, letter):
        raise ValueRefused(
            field, "is not an id of this kind", value=value, remedy="use the id that the daemon gave, not a name"
        )
    return value
