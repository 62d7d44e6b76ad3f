"""What only the daemon's API can say: what is left to use, and how an earlier call went. Needs ``corral-client[grpc]``.

with Api() as api:                       # CORRAL_API and CORRAL_TOKEN, or given
    for budget in api.budgets(): ...
    print(api.outcome(call_id).summary)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

from corral_client import protobuf
from corral_client.broker import default_socket
from corral_client.errors import CorralError, DaemonAway, NotPermitted, Refused

try:
    import grpc
except ImportError as err:
    raise ImportError("corral_client.api needs grpcio: pip install 'corral-client[grpc]'") from err

ANSWER_WITHIN: Final = 30.0  # seconds

_SERVICE: Final = "/corral.v1.AgentService/"
_BANDS: Final = {1: "plenty", 2: "medium", 3: "low", 4: "critical"}
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """In the unit that ``resource`` names. ``scope``: tenant or session.

    Ceilings (memory_bytes, cpu_cores, pids, calls) have no ``band``. Stocks (cpu_seconds, memory_byte_seconds,
    calls_begun, network_bytes, tokens, gpu_seconds, joules, money) are used up: ``band`` is plenty, medium, low or
    critical; at the end of a ``hard`` one no call begins until ``refills_at`` (unix seconds; None: never).
    """

    resource: str
    scope: str
    limit: float
    used: float
    remaining: float
    hard: bool = True
    period_seconds: float | None = None
    refills_at: float | None = None
    band: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOutcome:
    """Of a call that has ended. Seconds; ``summary`` and ``suggestions`` as ``Outcome.message`` and its suggestions."""

    call_id: str
    reason: str
    ended_at: float
    wait_status: int | None
    wall_seconds: float
    held_seconds: float
    summary: str
    suggestions: tuple[str, ...]


class Api:
    """A connection to the daemon. ``target``: the path of a socket, or HOST:PORT (mutual TLS: CORRAL_TLS_CA,
    CORRAL_TLS_CERT and CORRAL_TLS_KEY name PEM files). With ``token`` it sees that session alone."""

    def __init__(self, target: str | None = None, token: str | None = None) -> None:
        self.target = target or os.environ.get("CORRAL_API") or default_socket("operator.sock")
        token = token or os.environ.get("CORRAL_TOKEN") or None
        self._metadata = (("corral-token", token),) if token else ()
        path = self.target.removeprefix("unix:")
        if path.startswith(("/", ".")):
            uri = f"unix:{quote(os.path.abspath(path))}"  # noqa: PTH100 - resolve() would follow links, too
            self._channel: Any = grpc.insecure_channel(uri, [("grpc.enable_http_proxy", 0)])
        else:
            self._channel = grpc.secure_channel(self.target, _credentials())

    def budgets(self, session_id: str = "") -> list[Budget]:
        """What the session and its tenant may still use. ``session_id`` may be left out where the token says it."""
        return self._ask("GetBudget", protobuf.put_text(1, session_id), _budgets)

    def report_turn(
        self,
        *,
        session_id: str = "",
        engine: str = "",
        conversation: str = "",
        prompt_tokens: int = 0,
        cached_tokens: int = 0,
        generated_tokens: int = 0,
        seconds: float = 0.0,
        money: float | None = None,
    ) -> list[Budget]:
        """Tells of one turn of the session's model, for agents that do not go through the gateway; what is left then.

        ``prompt_tokens`` counts cached ones, too; ``seconds`` from the request to its last token; ``money`` what it
        cost, where that is known (otherwise the operator's prices say)."""
        request = protobuf.put_text(1, session_id) + protobuf.put_text(2, engine) + protobuf.put_text(3, conversation)
        for number, tokens in ((4, prompt_tokens), (5, cached_tokens), (6, generated_tokens)):
            request += protobuf.put_int(number, tokens)
        request += protobuf.put_double(7, seconds)
        if money is not None:
            request += protobuf.put_double(9, money)
        return self._ask("ReportTurn", request, lambda message: _budgets(message, field=2))

    def outcome(self, call_id: str) -> CallOutcome:
        """How a call went that ended lately. Raises Refused (``wrong_state``) while it runs."""
        return self._ask("GetOutcome", protobuf.put_text(1, call_id), _outcome)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, method: str, request: bytes, read: Callable[[bytes], _T]) -> _T:
        call = self._channel.unary_unary(_SERVICE + method)  # no serializers: bytes in, bytes out
        try:
            answer: bytes = call(request, timeout=ANSWER_WITHIN, metadata=self._metadata)
        except grpc.RpcError as err:
            raise self._error(err) from None
        return read(answer)

    def _error(self, err: Any) -> CorralError:
        status, details = err.code(), err.details() or ""
        codes = {key: value for key, value in err.trailing_metadata() or () if key == "corral-code"}
        if status in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
            return DaemonAway(f"{self.target}: no answer ({details}); start agentd, or name its socket in CORRAL_API")
        if status in {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}:
            return NotPermitted(details)
        return Refused(details, code=str(codes.get("corral-code", status.name.lower())))


def _credentials() -> Any:
    names = ("CORRAL_TLS_CA", "CORRAL_TLS_KEY", "CORRAL_TLS_CERT")
    try:
        authority, key, certificate = (Path(os.environ[name]).read_bytes() for name in names)
    except KeyError as err:
        raise CorralError(f"{err.args[0]} is not set; over TCP the API takes mutual TLS only") from None
    except OSError as err:
        raise NotPermitted(f"{err.filename}: {err.strerror}; it is needed for the connection") from None
    return grpc.ssl_channel_credentials(authority, key, certificate)


def _budgets(message: bytes, field: int = 1) -> list[Budget]:
    found = []
    for number, value in protobuf.fields(message):
        if number != field or not isinstance(value, bytes):
            continue
        parts = dict(protobuf.fields(value))
        found.append(
            Budget(
                resource=protobuf.as_text(parts.get(1, b"")),
                scope=protobuf.as_text(parts.get(2, b"")),
                limit=_double(parts, 3),
                used=_double(parts, 4),
                remaining=_double(parts, 5),
                hard=bool(parts.get(6, 0)),
                period_seconds=_double(parts, 7) if 7 in parts else None,
                refills_at=_double(parts, 8) if 8 in parts else None,
                band=_BANDS.get(protobuf.as_int(parts[9])) if 9 in parts else None,
            )
        )
    return found


def _outcome(message: bytes) -> CallOutcome:
    inner = dict(protobuf.fields(message)).get(1, b"")
    pairs = list(protobuf.fields(inner if isinstance(inner, bytes) else b""))
    parts = dict(pairs)
    return CallOutcome(
        call_id=protobuf.as_text(parts.get(1, b"")),
        reason=protobuf.as_text(parts.get(2, b"")),
        ended_at=_double(parts, 3),
        wait_status=protobuf.as_int(parts[4]) if 4 in parts else None,
        wall_seconds=_double(parts, 6),
        held_seconds=_double(parts, 7),
        summary=protobuf.as_text(parts.get(9, b"")),
        suggestions=tuple(protobuf.as_text(value) for number, value in pairs if number == 10),
    )


def _double(parts: dict[int, protobuf.Value], number: int) -> float:
    return protobuf.as_double(parts[number]) if number in parts else 0.0
