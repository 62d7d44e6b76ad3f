"""The exceptions of the metrics.

MetricsError
 └─ CannotListen    the address cannot be had: names it, the cause and the remedy
"""

from __future__ import annotations


class MetricsError(Exception):
    """Base of all."""


class CannotListen(MetricsError):
    def __init__(self, host: str, port: int, cause: str) -> None:
        self.host = host
        self.port = port
        super().__init__(
            f"metrics cannot listen on {host} port {port}: {cause}; "
            "give another metrics.listen, or end the program that holds the port (ss -ltnp)"
        )
