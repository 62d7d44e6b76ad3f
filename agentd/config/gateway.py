"""The gateway's section: what must fit together, and which engine it is for."""

from __future__ import annotations

import ipaddress
from typing import Final

from agentd.config.addresses import split_address
from agentd.config.convert import Report, suggest
from agentd.config.model import Config

_MAX_SOCKET: Final = 107  # bytes of a path in sockaddr_un, without its NUL


def gateway_engine(config: Config) -> str:
    """Name of the engine that turns go to; "" where none is named and there is not just one."""
    if config.gateway.engine:
        return config.gateway.engine
    thinking = [name for name, engine in config.engines.items() if engine.kind != "lmcache"]
    return thinking[0] if len(thinking) == 1 else ""


def check_gateway(config: Config, report: Report) -> None:
    gateway = config.gateway
    if gateway.engine and gateway.engine not in config.engines:
        remedy = suggest(gateway.engine, config.engines) if config.engines else "name it as [engines.NAME] url = ..."
        report(("gateway", "engine"), "no such engine", remedy, gateway.engine)
    elif gateway.on and not gateway_engine(config):
        few = "no engine is configured" if not config.engines else "there is more than one engine"
        report(("gateway", "engine"), few, "name the one that turns go to: [engines.NAME], gateway.engine", None)
    if gateway.listen:
        _check_listen(config, report)
    if gateway.socket is not None and len(bytes(gateway.socket)) > _MAX_SOCKET:
        size = len(bytes(gateway.socket))
        report(
            ("gateway", "socket"),
            f"its path has {size} bytes, a unix socket's has at most {_MAX_SOCKET}",
            "give a shorter one",
            str(gateway.socket),
        )


def _check_listen(config: Config, report: Report) -> None:
    listen = config.gateway.listen
    try:
        host, _ = split_address(listen)
    except ValueError as err:
        report(("gateway", "listen"), str(err), 'give an IP address and a port, e.g. "127.0.0.1:8090"', listen)
        return
    if not ipaddress.ip_address(host).is_loopback and not config.gateway.allow_remote:
        report(
            ("gateway", "listen"),
            "other hosts could reach it, and what they send, tokens included, can be read on the way",
            "listen on 127.0.0.1 or [::1], or set gateway.allow_remote = true",
            listen,
        )
