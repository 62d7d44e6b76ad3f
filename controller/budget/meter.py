"""How much of a running call has been charged, so that nothing is charged twice and nothing is left out.

Memory byte-seconds are the trapezoids between samples of memory.current (its groups' own count, on which PSI has no
say). With samples ``h`` seconds apart the error is at most ``h/2`` times the sum of all rises and falls of the memory
(the trapezoidal rule for functions of bounded variation). The last stretch, from the last sample to the end, counts
with that sample's memory, since at the end the memory is gone already; a call that was never sampled is a triangle up
to its peak.
"""

from __future__ import annotations

from controller.model import CallId, CallMark, Charges, Usage

_USEC = 1e-6


class CallMeter:
    """Of one call. ``at`` is monotonic seconds. ``active``: while a stock of its session or tenant counts it."""

    __slots__ = ("active", "at", "begun_charged", "cpu_usec", "gpu_seconds", "joules", "memory", "network_bytes")

    def __init__(self, at: float, *, active: bool, begun_charged: bool) -> None:
        self.at = at
        self.active = active
        self.begun_charged = begun_charged
        self.cpu_usec = 0
        self.network_bytes = 0
        self.gpu_seconds = 0.0
        self.joules = 0.0
        self.memory = 0

    def rebase(self, usage: Usage, at: float) -> None:
        """What was used so far is not charged: it was used before any stock counted it."""
        self.advance(usage, at)
        self.begun_charged = True

    def advance(self, usage: Usage, at: float, *, last: bool = False) -> Charges:
        """What was used since the last time."""
        cpu = max(0, usage.cpu_usec - self.cpu_usec)
        network = max(0, (usage.net_rx_bytes or 0) + (usage.net_tx_bytes or 0) - self.network_bytes)
        gpu = max(0.0, (usage.gpu_seconds or 0.0) - self.gpu_seconds)
        joules = max(0.0, (usage.gpu_joules or 0.0) - self.joules)
        seconds = max(0.0, at - self.at)
        memory = (self.memory or usage.memory_peak or 0) if last else (usage.memory_now or 0)
        byte_seconds = (self.memory + memory) / 2 * seconds
        self.cpu_usec += cpu
        self.network_bytes += network
        self.gpu_seconds += gpu
        self.joules += joules
        self.at += seconds
        self.memory = memory
        return Charges(
            cpu_seconds=cpu * _USEC,
            memory_byte_seconds=byte_seconds,
            network_bytes=float(network),
            gpu_seconds=gpu,
            joules=joules,
        )

    def mark(self, call_id: CallId, clock: float) -> CallMark:
        """For the ledger. ``clock``: unix time less monotonic time, now."""
        return CallMark(
            call_id=call_id,
            cpu_usec=self.cpu_usec,
            network_bytes=self.network_bytes,
            gpu_seconds=self.gpu_seconds,
            joules=self.joules,
            at=self.at + clock,
            memory=self.memory,
        )

    @classmethod
    def resumed(cls, mark: CallMark, clock: float, *, active: bool) -> CallMeter:
        """Goes on where an earlier daemon stopped charging; its begin is charged."""
        meter = cls(mark.at - clock, active=active, begun_charged=True)
        meter.cpu_usec = mark.cpu_usec
        meter.network_bytes = mark.network_bytes
        meter.gpu_seconds = mark.gpu_seconds
        meter.joules = mark.joules
        meter.memory = mark.memory
        return meter
