"""The exceptions of the API, and every exception as one gRPC status.

ApiServerError             the API cannot be served
 ├─ ListenError            a socket, an address or a certificate cannot be used
 └─ SecondDaemon           another daemon serves this socket

Unauthenticated (a controller.model.NotAllowed)    nobody known asks                         (UNAUTHENTICATED)
Stopping (a controller.model.ControllerError)      the daemon ends                           (UNAVAILABLE)

The client's exceptions are in client.py. A status has the exception's text as details and its parts as trailing
metadata, percent-encoded because metadata is ASCII: corral-code (stable), corral-field, corral-value, corral-remedy.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import quote, unquote

import grpc
import grpc.aio

from controller.model import (
    AlreadyExists,
    CannotEnforce,
    CgroupError,
    ControllerError,
    InvalidRequest,
    NotAllowed,
    NotFound,
    Refused,
    WrongState,
)

Context = grpc.aio.ServicerContext[Any, Any]

CODE_KEY: Final = "corral-code"
FIELD_KEY: Final = "corral-field"
VALUE_KEY: Final = "corral-value"
REMEDY_KEY: Final = "corral-remedy"

# gRPC refuses headers at random from 8 KiB on (its soft limit) and percent-encodes details that are not ASCII. These
# bounds, in encoded bytes, leave a status below 5 KiB in all.
_MAX_DETAILS: Final = 2048
_MAX_PART: Final = 768
_PLAIN: Final = "".join(chr(c) for c in range(0x20, 0x7F) if c != 0x25)


class ApiServerError(Exception):
    """Base of what keeps the API from being served. The text has the object, the cause and the remedy."""


class ListenError(ApiServerError):
    pass


class SecondDaemon(ApiServerError):
    pass


class Unauthenticated(NotAllowed):
    """No token, an unknown one, or a certificate that stands for nobody."""


class Stopping(ControllerError):
    """The daemon ends, and with it this stream."""

    def __init__(self) -> None:
        super().__init__(
            "the daemon is stopping", remedy="connect again when it is back; calls go on running under their limits"
        )


# The first class of an exception's ancestry that is here decides.
_STATUS: Final[dict[type[ControllerError], tuple[grpc.StatusCode, str]]] = {
    InvalidRequest: (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request"),
    NotFound: (grpc.StatusCode.NOT_FOUND, "not_found"),
    AlreadyExists: (grpc.StatusCode.ALREADY_EXISTS, "already_exists"),
    Unauthenticated: (grpc.StatusCode.UNAUTHENTICATED, "unauthenticated"),
    NotAllowed: (grpc.StatusCode.PERMISSION_DENIED, "not_allowed"),
    WrongState: (grpc.StatusCode.FAILED_PRECONDITION, "wrong_state"),
    Refused: (grpc.StatusCode.RESOURCE_EXHAUSTED, "refused"),
    CannotEnforce: (grpc.StatusCode.FAILED_PRECONDITION, "cannot_enforce"),
    Stopping: (grpc.StatusCode.UNAVAILABLE, "stopping"),
    CgroupError: (grpc.StatusCode.INTERNAL, "cgroup_error"),
    ControllerError: (grpc.StatusCode.INTERNAL, "controller_error"),
}


# The model's names of an intent's fields, where the proto's differ (it carries the unit in the name).
PROTO_FIELD: Final = {
    "intent.memory_typical": "intent.memory_typical_bytes",
    "intent.memory_peak": "intent.memory_peak_bytes",
    "intent.cpu": "intent.cpu_cores",
    "intent.duration": "intent.duration_seconds",
    "intent.deadline": "intent.deadline_seconds",
    "intent.engine": "intent.inference.engine",
    "intent.conversation": "intent.inference.conversation",
}


def in_words_of_the_proto(err: ControllerError) -> None:
    """Admission and the broker name an intent's fields as the model does; over the API they are the request's."""
    field = PROTO_FIELD.get(err.field)
    if field is not None:
        err.field = field
        text = f"{field}: {err.message}"
        err.args = (f"{text}; {err.remedy}" if err.remedy else text,)


def status_of(err: ControllerError) -> tuple[grpc.StatusCode, str]:
    """The gRPC status of an exception and its stable code (a refusal brings a code of its own)."""
    status, code = next(_STATUS[kind] for kind in type(err).__mro__ if kind in _STATUS)
    return status, (err.code if isinstance(err, Refused) else code)


def encode_part(text: str, limit: int = _MAX_PART) -> str:
    """``text`` as ASCII for metadata, of at most ``limit`` bytes; ``decode_part`` reads it."""
    kept = clip(text, limit)
    if kept != text:
        kept = f"{clip(text, limit - 3)}..."
    return quote(kept, safe=_PLAIN, errors="replace")


def decode_part(text: str) -> str:
    return unquote(text, errors="replace")


def clip(text: str, limit: int) -> str:
    """The longest beginning of ``text`` whose percent-encoded form has at most ``limit`` bytes."""
    size = 0
    for index, char in enumerate(text):
        size += 1 if char in _PLAIN else 3 * len(char.encode("utf-8", "replace"))
        if size > limit:
            return text[:index]
    return text


def metadata_of(err: ControllerError) -> tuple[tuple[str, str], ...]:
    parts = ((CODE_KEY, status_of(err)[1]), (FIELD_KEY, err.field), (VALUE_KEY, err.value), (REMEDY_KEY, err.remedy))
    return tuple((key, encode_part(text)) for key, text in parts if text)


def caller_is_gone() -> bool:
    """Whether the RPC whose task this runs in was cancelled: its client hung up, cancelled, or ran out of time.

    ``context.cancelled()`` of grpc.aio stays False then; what gRPC does for certain is to cancel the task.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@asynccontextmanager
async def answering(context: Context, method: str) -> AsyncIterator[None]:
    """Around the body of a method: its exceptions end the RPC with the status that stands for them.

    What nobody expected is logged with a reference; the caller gets the reference and nothing of the inside.
    """
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except ControllerError as err:
        if caller_is_gone():
            raise asyncio.CancelledError from err  # nobody is left to be told
        in_words_of_the_proto(err)
        status, code = status_of(err)
        if status is grpc.StatusCode.INTERNAL:
            _logger().error("rpc failed", method=method, code=code, error=str(err))
        details = str(err)
        kept = clip(details, _MAX_DETAILS)
        await context.abort(status, kept if kept == details else f"{kept}...", metadata_of(err))
    except Exception:  # a defect: the caller gets a reference, the log the place
        reference = secrets.token_hex(4)
        _logger().exception("rpc failed unexpectedly", method=method, reference=reference)
        await context.abort(
            grpc.StatusCode.INTERNAL,
            f"{method}: the daemon failed unexpectedly; search its log for reference {reference} and report it",
            ((CODE_KEY, "unexpected"), (VALUE_KEY, reference)),
        )


def _logger() -> Any:
    # the command line imports this module for its names alone, and structlog costs it 0.1 s
    import structlog

    return structlog.get_logger("corral.api")
