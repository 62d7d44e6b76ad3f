"""Tenants and sessions: who may open one, its token, its end."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from controller.backend import SessionRecord
from controller.ceilings import check_settable
from controller.config import TenantConfig
from controller.endings import Endings
from controller.model import (
    AlreadyExists,
    ControllerError,
    InvalidRequest,
    Limits,
    NotAllowed,
    Reason,
    Refused,
    SessionId,
    TenantId,
    TenantView,
    WrongState,
    check_text,
    is_name,
    new_session_id,
    new_tenant_id,
)
from controller.recognise.attachment import Attachment
from controller.registry import Session, Tenant, now
from controller.shared import Shared

log = structlog.get_logger("corral.sessions")

_MAX_LABELS = 16
_IDLE = 30.0  # seconds that a session opened by the daemon itself stays without a call
_MAX_SESSIONS = 10_000


def token_hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


class Sessions:
    def __init__(self, shared: Shared, endings: Endings) -> None:
        self._shared = shared
        self._endings = endings
        self.on_closing: Callable[[Session], None] = _nothing  # the owner's: what waits in the session waits no more
        self._to_remove: set[tuple[TenantId, SessionId]] = set()

    # --- tenants -----------------------------------------------------------------------------------------------------

    def configure(self, configs: tuple[TenantConfig, ...], known: Mapping[str, TenantId]) -> None:
        """Makes the configured tenants, or brings existing ones up to date. ``known``: ids that names had before."""
        default = self._shared.config.default_tenant
        names = {c.name for c in configs}
        if default is not None and default not in names:
            configs = (*configs, TenantConfig(name=default))
        for config in configs:
            self.set_tenant(config, known.get(config.name))

    def set_tenant(self, config: TenantConfig, known_id: TenantId | None = None) -> TenantView:
        if not is_name(config.name):
            raise InvalidRequest(
                "is not a tenant's name",
                field="name",
                value=config.name,
                remedy="use 1 to 63 characters of a-z 0-9 . _ -, alphanumeric at both ends",
            )
        tenant = self._shared.registry.by_name.get(config.name)
        if tenant is None:
            tenant = Tenant(
                id=known_id or new_tenant_id(),
                name=config.name,
                uids=config.uids,
                limits=config.limits,
                priority=config.priority,
                max_calls=config.max_calls,
                max_sessions=config.max_sessions,
                weight=config.weight,
            )
        before = tenant.limits
        tenant.uids = config.uids
        tenant.limits = config.limits
        tenant.priority = config.priority
        tenant.max_calls = config.max_calls
        tenant.max_sessions = config.max_sessions
        tenant.weight = config.weight
        try:
            notes = self._shared.backend.add_tenant(replace(tenant.view(), budgets=()))
        except ControllerError:
            tenant.limits = before
            raise
        for note in notes:
            log.warning("a limit of a tenant cannot be set on this host", tenant=tenant.name, note=note)
        self._shared.registry.add_tenant(tenant)
        self._shared.journal.tenant_set(tenant.view())
        return tenant.view()

    def change_tenant(self, name: str, *, limits: Limits | None, priority: int | None) -> TenantView:
        """What an operator asks for at run time; an unknown name makes a new tenant, whose sessions root may open."""
        old = self._shared.registry.by_name.get(name)
        if limits is not None and self._shared.backend.enforces:
            check_settable(limits, self._shared.backend.controllers)
        if priority is not None and not 0 <= priority <= 100:
            raise InvalidRequest(
                f"{priority} is out of range", field="priority", value=str(priority), remedy="0 to 100"
            )
        config = TenantConfig(
            name=name,
            uids=old.uids if old else frozenset(),
            limits=(old.limits if old else Limits()).merged(limits or Limits()),
            priority=priority if priority is not None else (old.priority if old else 50),
            max_calls=old.max_calls if old else None,
            max_sessions=old.max_sessions if old else None,
            weight=old.weight if old else 100.0,
        )
        return self.set_tenant(config)

    def tenant_of_uid(self, uid: int) -> Tenant | None:
        """The tenant whose sessions this user may open: the one that names him, else the default one."""
        for tenant in self._shared.registry.tenants.values():
            if uid in tenant.uids:
                return tenant
        default = self._shared.config.default_tenant
        return self._shared.registry.by_name.get(default) if default is not None else None

    def check_may_open(self, tenant: Tenant, uid: int) -> None:
        """Root may open sessions of every tenant, a user those of the tenants that name him (or the default one)."""
        if uid == 0 or uid in tenant.uids:
            return
        if self.tenant_of_uid(uid) is tenant:
            return
        raise NotAllowed(
            f"user {uid} may not open sessions of tenant {tenant.name!r}",
            field="tenant",
            value=tenant.name,
            remedy=f"name the user in [tenants.{tenant.name}] uids, or use a tenant of yours",
        )

    # --- sessions ----------------------------------------------------------------------------------------------------

    def open(
        self,
        *,
        tenant_name: str,
        name: str,
        uid: int,
        labels: Mapping[str, str],
        managed: bool = True,
        attachment: Attachment | None = None,
    ) -> tuple[Session, str]:
        """A new session and its token. The token is kept nowhere in clear."""
        tenant = self._shared.registry.tenant(tenant_name)
        check_text("name", name, 128)
        if len(labels) > _MAX_LABELS:
            raise InvalidRequest(f"{len(labels)} labels", field="labels", remedy=f"use at most {_MAX_LABELS}")
        for key, value in labels.items():
            check_text("labels", key, 64)
            check_text(f"labels.{key}", value)
        at_once = tenant.max_sessions if tenant.max_sessions is not None else _MAX_SESSIONS
        if len(tenant.sessions) >= at_once:
            raise Refused(
                f"tenant {tenant.name!r} has {len(tenant.sessions)} sessions open, {at_once} are allowed",
                code="too_many_sessions",
                remedy="close one (corral session close), or ask the operator for more",
            )
        token = secrets.token_urlsafe(24)
        session = Session(
            id=new_session_id(),
            tenant=tenant,
            name=name,
            uid=uid,
            opened_at=now(),
            labels=dict(labels),
            token_hash=token_hash(token),
            token_expires=now() + self._shared.config.token_ttl,
            managed=managed,
            attachment=attachment,
        )
        self._shared.backend.add_session(session.record())
        self._shared.registry.add_session(session)
        self._shared.journal.session_opened(session.view())
        self._shared.hub.publish(session.view())
        return session, token

    def authenticate(self, token: str) -> Session:
        session = self._shared.registry.by_token.get(token_hash(token))
        if session is None:
            raise NotAllowed("the token is not one of an open session", remedy="open a session (corral session open)")
        if now() > session.token_expires:
            raise NotAllowed(
                f"the token of session {session.id} has expired", remedy="open a new session (corral session open)"
            )
        return session

    async def close(self, session: Session, *, kill: bool) -> None:
        """Ends the session: no call begins in it any more. With ``kill`` its calls and its agent's processes are ended;
        without, it is refused while calls run, and its agent's own processes may go on (one of them may be asking)."""
        if session.calls and not kill:
            raise WrongState(
                f"session {session.id} still runs {len(session.calls)} calls",
                field="session_id",
                value=session.id,
                remedy="wait for them, or close it with kill",
            )
        if session.closing:
            raise AlreadyExists(f"session {session.id} is being closed already", remedy="wait for it")
        session.closing = True
        self.on_closing(session)
        waiting = []
        for call in list(session.calls.values()):
            if not call.queued:
                self._endings.kill(call, Reason.CANCELLED, "its session was closed")
                waiting.append(call.ended.wait())
        if waiting:
            await asyncio.gather(*waiting)
        if kill:
            self._shared.backend.kill_session(session.tenant.id, session.id)
        self._forget(session)

    def close_if_idle(self, session: Session) -> None:
        """A session that the daemon opened by itself ends with its last call, unless that left processes behind."""
        if session.managed or session.calls or session.closing:
            session.idle_since = None
            return
        if session.idle_since is None:
            session.idle_since = now()  # the next call of the same user is often a moment away, and spares a session
        if now() - session.idle_since < _IDLE:
            return
        if self._shared.backend.session_pids(session.tenant.id, session.id):
            return
        session.closing = True
        self._forget(session)

    def _forget(self, session: Session) -> None:
        session.closed_at = now()
        self._shared.registry.remove_session(session)
        self._shared.journal.session_closed(session.id, session.closed_at)
        self._shared.hub.publish(session.view())
        try:
            self._shared.backend.update_session(session.record())
        except ControllerError as err:
            log.warning("a closed session's record could not be kept", session=session.id, error=str(err))
        self._to_remove.add((session.tenant.id, session.id))
        asyncio.get_running_loop().call_later(0.2, self.sweep)

    def sweep(self) -> None:
        """Removes the directories of closed sessions that have emptied. Called now and then."""
        for tenant_id, session_id in list(self._to_remove):
            try:
                if self._shared.backend.remove_session(tenant_id, session_id):
                    self._to_remove.discard((tenant_id, session_id))
            except ControllerError as err:
                log.warning("a closed session's directory could not be removed", session=session_id, error=str(err))
                self._to_remove.discard((tenant_id, session_id))
        # sessions opened for an unknown caller, whose left-over processes have ended meanwhile
        for session in list(self._shared.registry.sessions.values()):
            self.close_if_idle(session)

    def adopt(self, record: SessionRecord) -> Session:
        """A session that an earlier daemon opened. A closed one only awaits its removal, and is not registered."""
        view = record.session
        session = Session(
            id=view.id,
            tenant=self._shared.registry.tenants[view.tenant_id],
            name=view.name,
            uid=view.uid,
            opened_at=view.opened_at,
            labels=dict(view.labels),
            token_hash=record.token_hash,
            token_expires=record.token_expires,
            managed=record.managed,
            attachment=record.attachment,
            closed_at=view.closed_at,
            closing=view.closed_at is not None,
        )
        if session.closing:
            self._to_remove.add((view.tenant_id, view.id))
        else:
            self._shared.registry.add_session(session)
        return session


def _nothing(session: Session) -> None:
    pass
