"""Who asks, and what they may see.

Identity is never a field of a request. The socket, or over TCP the client's certificate, says operator, tenant or
nobody; a session's token ("corral-token") always narrows that to the one session, so that a tool which hands a token on
cannot hand on more. An object that the caller may not see does not exist for it: the answer is NOT_FOUND with the same
words as for an id that was never given out, so that ids cannot be probed. A method that only operators may call says
PERMISSION_DENIED: that the method exists is no secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from agentd.api import validate
from agentd.api.errors import Context, Unauthenticated
from agentd.api.ports import HostPort
from controller.model import (
    CallId,
    CallView,
    InvalidRequest,
    NotAllowed,
    NotFound,
    SessionId,
    SessionView,
    TenantId,
    is_name,
)

TOKEN_KEY: Final = "corral-token"  # noqa: S105 - the name of the metadata key, not a token
MAX_TOKEN: Final = 512  # characters; ours are shorter


class Kind(StrEnum):
    OPERATOR = "operator"
    TENANT = "tenant"
    SESSION = "session"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """``name``: of the tenant, or of the operator's certificate. ``session_id`` and ``uid``: of a session's token."""

    kind: Kind
    name: str = ""
    session_id: SessionId | None = None
    uid: int | None = None

    def __str__(self) -> str:
        if self.kind is Kind.SESSION:
            return f"session:{self.session_id}"
        return f"{self.kind.value}:{self.name}" if self.name else self.kind.value


OPERATOR: Final = Principal(kind=Kind.OPERATOR)


def tenant_principal(name: str) -> Principal:
    return Principal(kind=Kind.TENANT, name=name)


def parse_principal(text: str) -> Principal:
    """``operator`` or ``tenant:NAME``, as the configuration maps certificates. Raises ValueError."""
    if text == Kind.OPERATOR.value:
        return OPERATOR
    kind, _, name = text.partition(":")
    if kind == Kind.TENANT.value and is_name(name):
        return tenant_principal(name)
    raise ValueError(f"{text!r} is nobody; write 'operator' or 'tenant:NAME'")


Identify = Callable[[Context], Principal | None]
"""The caller as the transport proves it; None: nobody, a token is needed. Raises Unauthenticated."""


def always(principal: Principal | None) -> Identify:
    """For a socket: its permissions are the proof."""
    return lambda context: principal


def by_certificate(names: Mapping[str, Principal]) -> Identify:
    """For mTLS. Subject alternative names count, the common name only where there are none (RFC 6125, 6.4.4)."""

    def identify(context: Context) -> Principal:
        proven = context.auth_context()
        given = _texts(proven.get("x509_subject_alternative_name", ())) or _texts(proven.get("x509_common_name", ()))
        found = {names[name] for name in given if name in names}
        if len(found) != 1:
            shown = ", ".join(given)[:120]
            cause = "stands for several clients" if found else "is of no client that this daemon knows"
            raise Unauthenticated(
                f"the certificate for {shown or 'no name'} {cause}",
                value=shown,
                remedy="the operator lists its name under [api.tcp.clients] in the configuration",
            )
        (principal,) = found
        if principal.kind is Kind.OPERATOR:
            name = next(name for name in given if name in names)
            return Principal(kind=Kind.OPERATOR, name=name)  # decisions then say which operator
        return principal

    return identify


def _texts(values: Iterable[bytes]) -> list[str]:
    return [value.decode("utf-8", "replace") for value in values]


class Access:
    """The rules, for one listener."""

    def __init__(self, host: HostPort, identify: Identify) -> None:
        self._host = host
        self._identify = identify
        # Ids of tenants are never given out twice, so what is in here stays true.
        self._tenant_names: dict[TenantId, str] = {}

    def principal(self, context: Context) -> Principal:
        base = self._identify(context)
        tokens = [value for key, value in context.invocation_metadata() or () if key == TOKEN_KEY]
        if not tokens:
            if base is None:
                raise Unauthenticated(
                    "is missing", field=TOKEN_KEY, remedy="send a session's token as metadata on this socket"
                )
            return base
        token = tokens[0]
        if len(tokens) > 1 or not isinstance(token, str) or len(token) > MAX_TOKEN:
            raise Unauthenticated("is no token", field=TOKEN_KEY, remedy="send one token, as OpenSession returned it")
        try:
            session = self._host.authenticate(token)
        except NotAllowed:
            session = None
        if session is None or (
            base is not None and base.kind is Kind.TENANT and self.tenant_name(session.tenant_id) != base.name
        ):
            # one text for all: whether a token of another tenant is valid is not this caller's business
            raise Unauthenticated(
                "is of no open session here: unknown, expired or closed", field=TOKEN_KEY, remedy="open a session"
            )
        return Principal(kind=Kind.SESSION, session_id=session.id, uid=session.uid)

    def operator(self, context: Context) -> Principal:
        principal = self.principal(context)
        if principal.kind is not Kind.OPERATOR:
            raise NotAllowed(
                f"this is for operators, and the caller is {principal}",
                remedy="use the operator socket (members of its group may), without a token",
            )
        return principal

    def session(self, principal: Principal, given: str) -> SessionView:
        """The session that a request names, or the token's own when it names none."""
        if not given:
            if principal.session_id is None:
                raise InvalidRequest(
                    "is missing", field="session_id", remedy="name the session, or send its token as corral-token"
                )
            return self._host.session(principal.session_id)
        session_id = validate.session_id(given)
        try:
            session = self._host.session(session_id)
        except NotFound:
            raise _no_session(given) from None
        if not self._sees(principal, session):
            raise _no_session(given)
        return session

    def call(self, principal: Principal, given: str, field: str = "call_id") -> CallView:
        """A call that lives or ended lately, if the caller may see it."""
        call_id: CallId = validate.call_id(given, field)
        try:
            call = self._host.peek(call_id)
        except NotFound:
            raise _no_call(given, field) from None
        if principal.kind is Kind.SESSION:
            seen = call.session_id == principal.session_id
        else:
            seen = principal.kind is Kind.OPERATOR or self.tenant_name(call.tenant_id) == principal.name
        if not seen:
            raise _no_call(given, field)
        return call

    def _sees(self, principal: Principal, session: SessionView) -> bool:
        if principal.kind is Kind.SESSION:
            return session.id == principal.session_id
        return principal.kind is Kind.OPERATOR or self.tenant_name(session.tenant_id) == principal.name

    def tenant_name(self, tenant_id: TenantId) -> str:
        """The name of a tenant, "" when the host does not know it (any more)."""
        name = self._tenant_names.get(tenant_id)
        if name is None:
            self._tenant_names.update((tenant.id, tenant.name) for tenant in self._host.snapshot().tenants)
            name = self._tenant_names.get(tenant_id, "")
        return name


def _no_session(given: str) -> NotFound:
    return NotFound(
        "no such session", field="session_id", value=given, remedy="open one, or check the id: it may have been closed"
    )


def _no_call(given: str, field: str) -> NotFound:
    return NotFound(
        "no such call", field=field, value=given, remedy="check the id; calls that ended a while ago are in the history"
    )
