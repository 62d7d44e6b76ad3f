"""Prometheus metrics of the daemon. docs/metrics.md lists every series."""

from agentd.metrics.errors import CannotListen, MetricsError
from agentd.metrics.metrics import Health, Metrics
from agentd.metrics.server import MetricsServer

__all__ = ["CannotListen", "Health", "Metrics", "MetricsError", "MetricsServer"]
