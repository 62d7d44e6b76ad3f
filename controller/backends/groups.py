"""The groups above the calls: tenants and sessions in the tree, and what an earlier daemon left of all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bpf import BpfError
from bpf.devicefilter import copy_device_filter
from controller.agentwatch import AgentWatch
from controller.backend import CallRecord, Found, SessionRecord
from controller.backends.kernelside import KernelSide
from controller.backends.records import decode, encode
from controller.cgroup import Group, GroupBusy, NoSuchGroup, Tree
from controller.model import UNLIMITED, CannotEnforce, ControllerError, Limits, SessionId, TenantId, TenantView
from controller.scheduling import Scheduling
from controller.shelter import Shelter


class Groups:
    """The part of the enforcing backend that knows no call. See controller.backend.Backend."""

    def __init__(self, tree: Tree, scheduling: Scheduling | None = None) -> None:
        self._tree = tree
        self._scheduling = scheduling or Scheduling()
        self._kernel: KernelSide | None = None
        self._agents = AgentWatch()
        self._shelter = Shelter(tree)
        self._unset: dict[TenantId, str] = {}  # what could not be set of tenants' limits, in words

    @property
    def _parts(self) -> frozenset[str]:
        return self._kernel.parts if self._kernel is not None else frozenset()

    @property
    def controllers(self) -> frozenset[str]:
        return self._tree.controllers | ({"egress"} if "network" in self._parts else set())

    def _pace(self, group: Group, rate: int | None) -> None:
        """None: untouched. Nothing to do without the programs: nothing that needs them comes here."""
        if rate is None or self._kernel is None or "network" not in self._parts:
            return
        try:
            self._kernel.pace(group.id, rate if rate != UNLIMITED else None)
        except BpfError as err:
            raise ControllerError(
                f"{group.path}: its egress rate is not set: {err}", remedy="see corral doctor"
            ) from err

    def find(self, kernel: KernelSide | None) -> Found:
        """What an earlier daemon left. Half-made leaves, and what ``kernel`` knows of leaves that are gone, go."""
        found = self._tree.find()
        strange = list(found.strange)
        tenants: list[TenantView] = []
        sessions: list[SessionRecord] = []
        calls: list[CallRecord] = []
        for group in found.tenants:
            with self._reporting(group, strange):
                tenant = decode(TenantView, group.get_xattr())
                self._pace(group, tenant.limits.egress_max)  # again: the maps of the programs may be new
                tenants.append(tenant)
                if self._scheduling.wanted:
                    self._scheduling.tenant(tenant, group.id)
        for group in found.sessions:
            with self._reporting(group, strange):
                sessions.append(decode(SessionRecord, group.get_xattr()))
                if self._scheduling.wanted:
                    session_id = sessions[-1].session.id
                    self._scheduling.quota(session_id, f"session {session_id}", group.limits())
        ids = set()
        for group in found.calls:
            with self._reporting(group, strange):
                if group.get_xattr() is None and not group.populated():
                    group.delete()  # a daemon died while it made this one: nobody was let in
                    continue
                ids.add(group.id)
                calls.append(decode(CallRecord, group.get_xattr()))
        above = {group.id for group in (*found.tenants, *found.sessions)}
        if kernel is not None:
            for gone in kernel.registered() - ids:
                kernel.forget(gone)
            for gone in kernel.paced() - ids - above:
                kernel.pace(gone, None)
        return Found(tenants=tuple(tenants), sessions=tuple(sessions), calls=tuple(calls), strange=tuple(strange))

    @staticmethod
    @contextlib.contextmanager
    def _reporting(group: Group, strange: list[str]) -> Iterator[None]:
        try:
            yield
        except ControllerError as err:
            strange.append(f"{group.path}: {err}")

    # --- tenants and sessions ----------------------------------------------------------------------------------------

    def add_tenant(self, tenant: TenantView) -> tuple[str, ...]:
        group = self._tree.tenant(tenant.id)
        have = self.controllers
        lacking = tenant.limits.lacking(have)
        notes = (
            *(f"{name} is not set: {_why(controller)}" for name, controller in lacking.items()),
            *group.create(tenant.limits.only(have), exist_ok=True),
        )
        self._shelter.forget_tenant(tenant.id)
        self._pace(group, tenant.limits.egress_max)
        group.set_xattr(encode(tenant))
        if self._scheduling.wanted:
            self._scheduling.tenant(tenant, group.id)
        self._unset.pop(tenant.id, None)
        if notes:
            self._unset[tenant.id] = f"limits of tenant {tenant.name!r} are not all in force: {'; '.join(notes)}"
        return notes

    def tenant_memory(self, tenant_id: TenantId) -> int | None:
        return self._tree.tenant(tenant_id).fast_stat().memory_now

    def tenant_cache(self, tenant_id: TenantId) -> int:
        return self._tree.tenant(tenant_id).page_cache()

    def tenant_cpu_usec(self, tenant_id: TenantId) -> int:
        return self._tree.tenant(tenant_id).fast_stat().cpu_usec

    def shelter_agents(self, tenant_id: TenantId, sessions: Iterable[SessionId], tenant: bool) -> None:
        self._shelter.adjust(tenant_id, sessions, tenant=tenant)

    def remove_tenant(self, tenant_id: TenantId) -> None:
        self._shelter.forget_tenant(tenant_id)
        group = self._tree.tenant(tenant_id)
        self._pace(group, UNLIMITED)
        group.delete()
        self._scheduling.quota(tenant_id, "", None)
        self._unset.pop(tenant_id, None)

    def add_session(self, record: SessionRecord) -> None:
        session = record.session
        group = self._tree.session(session.tenant_id, session.id)
        group.create()
        try:
            group.set_xattr(encode(record))
            self._tree.agent(session.tenant_id, session.id).create(self._shelter.of_agent())
            self._tree.calls(session.tenant_id, session.id).create(exist_ok=True)
        except ControllerError:
            group.delete(recursive=True)
            raise

    def update_session(self, record: SessionRecord) -> None:
        self._tree.session(record.session.tenant_id, record.session.id).set_xattr(encode(record))

    def limit_session(self, tenant_id: TenantId, session_id: SessionId, limits: Limits) -> tuple[str, ...]:
        group = self._tree.session(tenant_id, session_id)
        notes = group.set(limits)
        self._pace(group, limits.egress_max)
        if limits.cpu_max is not None:
            self._scheduling.quota(session_id, f"session {session_id}", limits)
        return notes

    def enter_session(self, tenant_id: TenantId, session_id: SessionId, pid: int) -> None:
        self._tree.agent(tenant_id, session_id).move(pid)

    def watch_agent(self, tenant_id: TenantId, session_id: SessionId, within: int) -> None:
        self._agents.arm(self._kernel, self._tree.agent(tenant_id, session_id), session_id, within)

    def keep_device_filter(self, tenant_id: TenantId, session_id: SessionId, group: str) -> None:
        """On hybrid hosts the v1 devices hierarchy filters, and nothing is moved there."""
        if self._tree.mode != "unified" or group in {"", "/"}:
            return
        try:
            copy_device_filter(
                Path(f"{self._tree.host.v2}{group}"), Path(self._tree.session(tenant_id, session_id).path)
            )
        except BpfError as err:
            raise CannotEnforce(f"the container's device filter cannot be kept: {err}", remedy=err.remedy) from err

    def hold_process(self, tenant_id: TenantId, session_id: SessionId, pid: int) -> bool:
        group = self._tree.wait(tenant_id, session_id)
        if not group.exists():
            group.create(exist_ok=True)
            group.freeze()
        group.move(pid)
        return True

    def held_processes(self, tenant_id: TenantId, session_id: SessionId) -> Sequence[int]:
        return _members(self._tree.wait(tenant_id, session_id))

    def agent_pids(self, tenant_id: TenantId, session_id: SessionId) -> Sequence[int]:
        return _members(self._tree.agent(tenant_id, session_id))

    def session_pids(self, tenant_id: TenantId, session_id: SessionId) -> int:
        try:
            return len(self._tree.session(tenant_id, session_id).pids(recursive=True))
        except NoSuchGroup:
            return 0

    def kill_session(self, tenant_id: TenantId, session_id: SessionId) -> None:
        self._tree.session(tenant_id, session_id).kill()

    def remove_session(self, tenant_id: TenantId, session_id: SessionId) -> bool:
        group = self._tree.session(tenant_id, session_id)
        if not group.exists():
            return True
        try:
            if group.populated():
                return False
            self._tree.calls(tenant_id, session_id).delete()  # busy while a call's end is not on disk
            self._pace(group, UNLIMITED)
            self._agents.forget(self._kernel, session_id)
            self._scheduling.quota(session_id, "", None)
            self._shelter.forget_session(session_id)
            group.delete(recursive=True)
        except GroupBusy:
            return False
        return True


def _why(controller: str) -> str:
    if controller == "egress":
        return "this host does not load the eBPF programs that see packets"
    return f"this host has no {controller} controller"


def _members(group: Group) -> Sequence[int]:
    try:
        return group.pids()
    except NoSuchGroup:
        return ()
