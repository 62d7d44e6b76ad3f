"""What goes into the kernel side and comes out of it, as frozen values. Times are CLOCK_MONOTONIC nanoseconds."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import ClassVar, Final

from bpf.errors import InvalidPolicy

MAX_CALLS: Final = 16_384
MAX_RULES: Final = 64
MAX_PACES: Final = 32_768

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Of one call, since it was registered. ``forks`` and ``exits`` count processes, not threads."""

    faults: int = 0  # minor and major
    major_faults: int = 0
    read_bytes: int = 0  # through read(2) and its kin, from files, pipes and sockets, page cache included
    written_bytes: int = 0
    disk_read_bytes: int = 0  # fetched from storage
    disk_written_bytes: int = 0  # dirtied for storage; counted when written, also if it is later truncated
    run_wait_nsec: int = 0  # runnable, waiting for a CPU; summed over threads
    switches: int = 0  # context switches, voluntary or not
    net_rx_bytes: int = 0  # with IP headers, loopback included
    net_tx_bytes: int = 0
    net_rx_packets: int = 0
    net_tx_packets: int = 0
    forks: int = 0
    execs: int = 0
    exits: int = 0
    brakes: int = 0  # times that a process was sent SIGSTOP
    denied_connects: int = 0  # connects, sends and packets that the network policy refused
    denied_devices: int = 0
    execs_suppressed: int = 0  # execs beyond the first 64, of which no event was sent
    oom_kills: int = 0
    paced_packets: int = 0  # turned back because of a rate, its own or one above it
    no_space: int = 0  # writes that found the disk full or a quota used up, while the trace of that was on


@dataclass(frozen=True, slots=True, kw_only=True)
class BrakeEvent:
    """The process ``tgid`` was sent SIGSTOP, because its call's memory went past the brake. Bytes.

    One process may be told twice within microseconds: the kernel delivers the signal a moment after it was sent.
    """

    cgroup_id: int
    at_nsec: int
    tgid: int
    tid: int
    usage: int
    threshold: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyEvent:
    """The call's memory went past its notice, for the first time since it was armed. Bytes."""

    cgroup_id: int
    at_nsec: int
    tgid: int
    tid: int
    usage: int
    threshold: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecEvent:
    """``comm`` and ``path`` are the agent's own words: made printable, not to be trusted."""

    cgroup_id: int
    at_nsec: int
    pid: int
    ppid: int
    uid: int
    comm: str
    path: str  # as it was given to execve, at most 127 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OomEvent:
    """The kernel's OOM killer chose this process."""

    cgroup_id: int
    at_nsec: int
    pid: int
    uid: int
    comm: str


class DeniedWhat(StrEnum):
    CONNECT = "connect"
    SEND = "send"
    PACKET = "packet"  # dropped on its way out: pid is 0, the socket's maker is not known
    DEVICE = "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeniedEvent:
    """A gate refused something. At most 16 a second are told per call; Counters has them all."""

    cgroup_id: int
    at_nsec: int
    what: DeniedWhat
    pid: int
    comm: str
    address: str = ""
    port: int = 0
    protocol: int = 0  # IPPROTO_*
    major: int = 0
    minor: int = 0


Event = BrakeEvent | NotifyEvent | ExecEvent | OomEvent | DeniedEvent


class NetworkMode(IntEnum):
    """The numbers are those of corral.h."""

    ANY = 0
    NONE = 1
    LIST = 2


@dataclass(frozen=True, slots=True)
class NetworkRule:
    """A network that may be reached, on one port or (0) on every one."""

    network: IpNetwork
    port: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise InvalidPolicy(f"rule {self.network}: {self.port} is no port", remedy="0 (every port) to 65535")

    @classmethod
    def parse(cls, network: str, port: int = 0) -> NetworkRule:
        try:
            return cls(ipaddress.ip_network(network, strict=False), port)
        except ValueError as err:
            raise InvalidPolicy(f"rule {network!r}: {err}", remedy="give an address or a CIDR network") from None


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """What a call may connect or send to. NONE refuses everything, this host's own loopback included."""

    mode: NetworkMode
    rules: tuple[NetworkRule, ...] = ()

    ANY: ClassVar[NetworkPolicy]
    NONE: ClassVar[NetworkPolicy]

    def __post_init__(self) -> None:
        if len(self.rules) > MAX_RULES:
            raise InvalidPolicy(f"network policy: {len(self.rules)} rules", remedy=f"at most {MAX_RULES}; use networks")
        if self.rules and self.mode is not NetworkMode.LIST:
            raise InvalidPolicy(
                f"network policy: rules with mode {self.mode.name.lower()}", remedy="rules go with mode LIST"
            )

    @classmethod
    def listed(cls, rules: Iterable[tuple[str, int]]) -> NetworkPolicy:
        """Only these (CIDR network, port or 0); an empty list refuses everything."""
        return cls(NetworkMode.LIST, tuple(NetworkRule.parse(network, port) for network, port in rules))


NetworkPolicy.ANY = NetworkPolicy(NetworkMode.ANY)
NetworkPolicy.NONE = NetworkPolicy(NetworkMode.NONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One thing that a host has or has not. ``found`` is None where it cannot be known (``detail`` says why)."""

    name: str
    found: bool | None
    detail: str
    cost: str  # what its absence costs
    remedy: str  # how to get it
