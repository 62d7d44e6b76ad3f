"""Addresses as the configuration writes them."""

from __future__ import annotations

import ipaddress


def split_address(text: str) -> tuple[str, int]:
    """``"127.0.0.1:9464"`` or ``"[::1]:9464"`` as address and port (0: any free one). Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65_535:
        raise ValueError(f"{text[:80]!r} has no port from 0 to 65535")
    if host.startswith("[") and host.endswith("]"):
        return str(ipaddress.IPv6Address(host[1:-1])), int(port)
    # names are refused: what they resolve to may change, and with it who can reach the socket
    return str(ipaddress.IPv4Address("127.0.0.1" if host == "localhost" else host)), int(port)
