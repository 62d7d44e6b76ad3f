"""Sessions: one run of one agent. Calls that are started through one belong to it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from corral_client import broker
from corral_client.errors import CorralError


class Session:
    """``token`` proves the session to the daemon: whoever has it, and is of the same user, acts as this session.

    As a context manager it is closed at the end, and the calls that still run in it are ended.
    """

    def __init__(self, session_id: str, token: str, socket: str) -> None:
        self.id = session_id
        self.token = token
        self.socket = socket
        self._entered = False
        self._closed = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Session:
        """The session that CORRAL_SESSION and CORRAL_TOKEN name, as ``corral session open`` prints them."""
        token = environment.get("CORRAL_TOKEN", "")
        if not token:
            raise CorralError(
                'CORRAL_TOKEN is not set; open a session first: eval "$(corral session open --tenant NAME)"'
            )
        return cls(environment.get("CORRAL_SESSION", ""), token, broker.socket_path(None, environment))

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process's calls (corral-exec, hooks, this client) part of the session."""
        variables = {"CORRAL_TOKEN": self.token, "CORRAL_SOCKET": self.socket}
        if self.id:
            variables["CORRAL_SESSION"] = self.id
        return variables

    def enter(self) -> None:
        """Makes this process an agent process of the session: it and its children are never ended by the pressure
        ladder, and calls that they start without a token belong to the session. There is no way out again."""
        broker.enter(self.socket, self.token)
        self._entered = True

    def close(self, *, kill: bool = False) -> None:
        """No call begins in it any more. ``kill`` ends its calls and its agent's processes (this one, too, if it
        entered); without, Refused is raised while calls run. A second close does nothing."""
        if self._closed:
            return
        broker.close_session(self.socket, self.token, kill=kill)
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close(kill=not self._entered)
        except CorralError:
            if err is None:  # else what went wrong in the block matters more
                raise

    def __repr__(self) -> str:
        return f"<Session {self.id or 'of the environment'}>"  # never the token: this ends up in logs


def open_session(tenant: str = "", name: str = "", *, socket: str | os.PathLike[str] | None = None) -> Session:
    """A new session of this user. Without ``tenant``: the one that the user belongs to.

    ``socket``: the broker's; else CORRAL_SOCKET, else /run/corral/broker.sock. Raises CorralError.
    """
    path = broker.socket_path(socket)
    session_id, token = broker.open_session(path, tenant, name)
    return Session(session_id, token, path)
