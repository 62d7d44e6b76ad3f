"""The gateway of a configuration, put together with the rest of the daemon."""

from __future__ import annotations

from agentd.config import Config, split_address
from agentd.config.gateway import gateway_engine
from agentd.gateway.control import Begin
from agentd.gateway.errors import CannotServe
from agentd.gateway.host import HostTurns
from agentd.gateway.metrics import TurnTotals
from agentd.gateway.service import GatewayService, Settings
from agentd.tier.sink import GatewayTurns
from agentd.tier.tier import Tier
from controller.host import Host
from controller.model import TenantId
from gpu.engines import EngineKind

_MAX_KEY = 4096  # bytes of an API key's file


def start_gateway(config: Config, host: Host, tier: Tier) -> GatewayService | None:
    """None where the configuration wants none. Raises CannotServe."""
    settings = gateway_settings(config)
    if settings is None:
        return None
    name = settings.begin.engine
    totals = TurnTotals()

    def tenant_name(tenant_id: TenantId) -> str:
        tenant = host.registry.tenants.get(tenant_id)
        return tenant.name if tenant is not None else ""

    def tells_usage() -> bool:
        watch = tier.watches.get(name)
        if watch is None:
            return False
        if watch.section.kind != "auto":
            return watch.section.kind == "llamacpp"
        return watch.info is not None and watch.info.kind is EngineKind.LLAMACPP

    port = HostTurns(
        host,
        engine=name,
        sink=GatewayTurns(tier),
        tells_usage=tells_usage,
        tenant_name=tenant_name,
        totals=totals,
    )
    service = GatewayService(port, settings, totals=totals)
    service.start()
    return service


def gateway_settings(config: Config) -> Settings | None:
    """None: off. Raises CannotServe where the engine's key cannot be read."""
    gateway = config.gateway
    if not gateway.on:
        return None
    name = gateway_engine(config)
    engine = config.engines[name]
    return Settings(
        begin=Begin(
            engine=name,
            url=engine.url,
            api_key=_key(config, name),
            connections=gateway.max_connections,
            streams=gateway.max_streams,
            body=gateway.max_body,
            buffered=gateway.max_buffered,
            first_byte=gateway.first_byte,
            between=gateway.between,
        ),
        listen=split_address(gateway.listen) if gateway.listen else None,
        socket=gateway.socket,
        socket_mode=gateway.socket_mode,
        user=gateway.user,
        log_level=config.daemon.log_level,
        log_format=config.daemon.log_format,
        instance=config.daemon.instance,
    )


def _key(config: Config, name: str) -> str:
    path = config.engines[name].api_key_file
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_KEY).split(b"\n", 1)[0].strip().decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise CannotServe(
            f"engines.{name}.api_key_file {path} cannot be read: {error}; let the daemon's user read it"
        ) from None
