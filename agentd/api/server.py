"""The API's servers: one for each socket, so that one tenant's load cannot take another's place or the operators'."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from agentd.api.agents import AgentServicer, TenantUids
from agentd.api.attached import AttachPort
from agentd.api.errors import ListenError
from agentd.api.identity import Access, always, by_certificate
from agentd.api.listen import BoundSocket, Listener, UnixListener, bind_tcp, bind_unix
from agentd.api.operators import OperatorServicer
from agentd.api.ports import Features, HistoryPort, HostPort, NoTier, TierPort
from agentd.api.streams import Streams
from agentd.proto.corral.v1 import corral_pb2, corral_pb2_grpc
from agentd.trace import Tracer

SERVICES: Final = tuple(service.full_name for service in corral_pb2.DESCRIPTOR.services_by_name.values())

_log: Final = structlog.get_logger("corral.api")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Of each listener. Beyond ``max_rpcs`` at once (streams and queued begins included) a call is refused with
    RESOURCE_EXHAUSTED; beyond ``max_streams`` on one connection it waits at the client."""

    max_message_bytes: int = 4 * 1024 * 1024  # of a request; answers are the daemon's own and have no limit
    max_rpcs: int = 1024
    max_streams: int = 512
    handshake_seconds: float = 10.0  # for a connection to say something that makes sense
    idle_seconds: float = 3600.0  # a connection without RPCs is closed then; clients come back by themselves
    ping_interval_seconds: float = 10.0  # clients that ping more often are cut off

    def options(self) -> list[tuple[str, int]]:
        return [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", self.max_streams),
            ("grpc.server_handshake_timeout_ms", int(self.handshake_seconds * 1000)),
            ("grpc.max_connection_idle_ms", int(self.idle_seconds * 1000)),
            ("grpc.http2.min_ping_interval_without_data_ms", int(self.ping_interval_seconds * 1000)),
            ("grpc.http2.max_ping_strikes", 3),
            ("grpc.keepalive_permit_without_calls", 1),
            # a peer that vanished (TCP) is found out, and its streams are ended
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            # a second daemon must fail to bind, not share the port
            ("grpc.so_reuseport", 0),
        ]


@dataclass(slots=True)
class _Served:
    listener: Listener
    server: grpc.aio.Server
    health: health.aio.HealthServicer
    streams: tuple[Streams, Streams]
    bound: BoundSocket | None
    port: int


class ApiServer:
    """Serves the listeners from ``start`` to ``stop``. More can be added and removed while it runs."""

    def __init__(
        self,
        host: HostPort,
        history: HistoryPort,
        *,
        features: Features,
        tenant_uids: TenantUids,
        version: str,
        limits: ServerLimits | None = None,
        tier: TierPort | None = None,
        tracer: Tracer | None = None,
        attach: AttachPort | None = None,
    ) -> None:
        """``features``: what the probe found. ``tenant_uids``: whose processes may use a tenant's sessions (asked for
        each OpenSession, so that a reload counts; empty: only operators open its sessions here). ``version``: the
        daemon's.
        """
        self._host = host
        self._history = history
        self._features = features
        self._tenant_uids = tenant_uids
        self._version = version
        self._attach = attach
        self._limits = limits or ServerLimits()
        self._tier = tier or NoTier()
        self._tracer = tracer or Tracer()  # one for all listeners: it bounds how many traces there are
        self._served: dict[str, _Served] = {}

    async def start(self, listeners: Sequence[Listener]) -> None:
        """All or none. Raises ListenError or SecondDaemon."""
        try:
            for listener in listeners:
                await self.add(listener)
        except BaseException:
            await self.stop(grace=0.0)
            raise

    async def add(self, listener: Listener) -> int:
        """Serves one more; its port for TCP, 0 for a unix socket. Raises ListenError or SecondDaemon."""
        if str(listener) in self._served:
            raise ListenError(f"{listener}: is served already; remove it first")
        server = grpc.aio.server(options=self._limits.options(), maximum_concurrent_rpcs=self._limits.max_rpcs)
        if isinstance(listener, UnixListener):
            identify = always(listener.principal)
        else:
            identify = by_certificate(listener.clients)
        access = Access(self._host, identify)
        agents = AgentServicer(self._host, access, self._tenant_uids, self._tier)
        corral_pb2_grpc.add_AgentServiceServicer_to_server(agents, server)
        operators = OperatorServicer(
            self._host,
            self._history,
            access,
            features=self._features,
            version=self._version,
            tier=self._tier,
            tracer=self._tracer,
            attach=self._attach,
        )
        corral_pb2_grpc.add_OperatorServiceServicer_to_server(operators, server)
        prober = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(prober, server)
        reflection.enable_server_reflection(
            (*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME), server
        )
        for service in SERVICES:
            await prober.set(service, health_pb2.HealthCheckResponse.SERVING)
        bound: BoundSocket | None = None
        port = 0
        try:
            if isinstance(listener, UnixListener):
                bound = bind_unix(listener, server.add_insecure_port)
            else:
                port = bind_tcp(listener, server)
            await server.start()
        except BaseException:
            await server.stop(0.0)
            if bound is not None:
                bound.remove()
            raise
        self._served[str(listener)] = _Served(
            listener, server, prober, (agents.streams, operators.streams), bound, port
        )
        _log.info("serving", listener=str(listener), port=port or None)
        return port

    async def remove(self, listener: Listener, *, grace: float = 5.0) -> None:
        """Stops serving one: what runs has ``grace`` seconds. Nothing happens when it is not served."""
        served = self._served.pop(str(listener), None)
        if served is not None:
            await _stop(served, grace)

    async def stop(self, *, grace: float = 5.0) -> None:
        """Stops all. Streams end and new RPCs are refused at once, others have ``grace`` seconds to finish."""
        served, self._served = list(self._served.values()), {}
        await asyncio.gather(*(_stop(one, grace) for one in served))
        await self._tracer.close()

    @property
    def listeners(self) -> list[Listener]:
        return [served.listener for served in self._served.values()]


async def _stop(served: _Served, grace: float) -> None:
    # Health says NOT_SERVING first, so that balancers look elsewhere while the last RPCs end.
    await served.health.enter_graceful_shutdown()
    for streams in served.streams:
        streams.stop()
    try:
        await served.server.stop(grace)
    finally:
        if served.bound is not None:
            served.bound.remove()
    _log.info("stopped serving", listener=str(served.listener))
