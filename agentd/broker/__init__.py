"""The broker: the socket on which launchers ask for calls (docs/architecture.md, "The broker's protocol").

    handler.py     what the daemon implements: BrokerHandler, Granted, Ended, and the Link on which it pushes messages
    peer.py        who is at the other end, proven by the kernel: SO_PEERCRED, pidfds
    connection.py  one launcher: a small state machine, driven by the loop's readiness callbacks
    server.py      the listening socket, its limits, its life

BrokerError
 ├─ SocketInUse    another daemon listens on the path
 └─ BadSocketPath  the path cannot hold a socket of ours
"""

from agentd.broker.errors import BadSocketPath, BrokerError, SocketInUse
from agentd.broker.handler import BrokerHandler, Ended, Granted, Link
from agentd.broker.peer import Peer
from agentd.broker.server import Broker

__all__ = ["BadSocketPath", "Broker", "BrokerError", "BrokerHandler", "Ended", "Granted", "Link", "Peer", "SocketInUse"]
