"""Why a broker cannot start. What a peer does wrong is answered to the peer and is no exception of the daemon's."""

from __future__ import annotations


class BrokerError(Exception):
    pass


class SocketInUse(BrokerError):
    """Another daemon listens there: replacing its socket would cut every launcher off from it."""


class BadSocketPath(BrokerError):
    """Too long, no directory, no permission, or something that is not a socket is there already."""
