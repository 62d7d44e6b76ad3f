"""The exceptions of the gateway.

GatewayError
 ├─ Refusal           what a client is told: an HTTP status, a stable code, and a message with the remedy
 ├─ ClientGone        the client left, or sent half a request: nobody is left to tell
 ├─ UpstreamError     the engine: names it, the cause and the remedy
 └─ CannotServe       the gateway cannot start: names the address, the cause and the remedy
"""

from __future__ import annotations

from typing import Final

import msgspec

#: The word that OpenAI's own API puts into ``error.type`` for a status.
_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "api_error",
}


class GatewayError(Exception):
    """Base of all."""


class Refusal(GatewayError):
    """``retry_after``: seconds, where trying again can help; None: a client should not try again by itself."""

    def __init__(
        self, status: int, code: str, message: str, *, remedy: str = "", retry_after: float | None = None
    ) -> None:
        self.status: Final = status
        self.code: Final = code
        self.message: Final = f"{message}; {remedy}" if remedy else message
        self.retry_after: Final = retry_after
        super().__init__(self.message)

    def body(self) -> bytes:
        """The error object of OpenAI's API."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        if self.code == "budget_exhausted":
            kind = "insufficient_quota"  # what OpenAI's API says where money is used up
        return msgspec.json.encode({"error": {"message": self.message, "type": kind, "param": None, "code": self.code}})


class ClientGone(GatewayError):
    pass


class UpstreamError(GatewayError):
    """``status``: what the client is told, 502 or 504."""

    def __init__(self, engine: str, cause: str, *, remedy: str, status: int = 502) -> None:
        self.engine: Final = engine
        self.status: Final = status
        super().__init__(f"engine {engine}: {cause}; {remedy}")


class CannotServe(GatewayError):
    pass
