"""The gRPC API: servers, one for each socket, and the client that the command line uses.

ports.py      what the servicers need from the controller and the ledger
convert.py    controller.model to and from the messages of agentd/proto
validate.py   what a request may hold
identity.py   who asks, and what they may see
errors.py     every exception as one gRPC status
agents.py, operators.py, streams.py    the servicers
listen.py, server.py    sockets and TCP
client.py     for callers
"""

import os

# grpc reads this once, when it is first imported. Its fork handlers would stop all its threads around each fork; the
# daemon starts programs with posix_spawn and never goes on as a forked copy of itself.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# Its own log lines about connections that end are for its developers; what matters reaches us as errors.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
