"""A gateway for model turns: OpenAI-compatible, streaming, optional. docs/gateway.md.

It ties requests to sessions, binds them to their KV at the engine, measures them, and refuses those that no budget is
left for.
"""

from agentd.gateway.client import Limits
from agentd.gateway.errors import CannotServe, GatewayError, Refusal, UpstreamError
from agentd.gateway.ports import Admission, Ask, TurnPort, TurnReport, TurnSink
from agentd.gateway.server import Gateway
from agentd.gateway.upstream import Upstream

__all__ = [
    "Admission",
    "Ask",
    "CannotServe",
    "Gateway",
    "GatewayError",
    "Limits",
    "Refusal",
    "TurnPort",
    "TurnReport",
    "TurnSink",
    "Upstream",
    "UpstreamError",
]
