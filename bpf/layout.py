"""The layouts of bpf/src/corral.h in Python. tests/unit/test_bpf_layout.py compares both with a C compiler."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from typing import Final

from bpf.types import (
    BrakeEvent,
    Counters,
    DeniedEvent,
    DeniedWhat,
    Event,
    ExecEvent,
    NetworkPolicy,
    NetworkRule,
    NotifyEvent,
    OomEvent,
)

# "=": native byte order, no padding of our own: corral.h is padded explicitly.
KEY: Final = struct.Struct("=Q")
CONFIG: Final = struct.Struct("=QQQQIIII")  # page_size, pass, settle, stride, armed, generation, paced, pad
CALL: Final = struct.Struct("=QQQIIII")  # notify, brake, memory_id, epoch, network, gpu, pad
PACE: Final = struct.Struct("=QQQ")  # rate, depth, next
STATE: Final = struct.Struct("=QQIIIIII")
USAGE_FIELDS: Final = (
    "faults",
    "major_faults",
    "read_bytes",
    "written_bytes",
    "disk_read_bytes",
    "disk_written_bytes",
    "run_wait_nsec",
    "switches",
)
COUNTER_FIELDS: Final = (
    *USAGE_FIELDS,
    "net_rx_bytes",
    "net_tx_bytes",
    "net_rx_packets",
    "net_tx_packets",
    "forks",
    "execs",
    "exits",
    "brakes",
    "denied_connects",
    "denied_devices",
    "execs_suppressed",
    "oom_kills",
    "paced_packets",
    "no_space",
)
N_USAGE: Final = len(USAGE_FIELDS)
N_COUNTERS: Final = len(COUNTER_FIELDS) + 1  # and `harvests`, which is for readers alone
COUNTERS: Final = struct.Struct(f"={N_COUNTERS}Q")
LIVE: Final = struct.Struct(f"=QQ{N_USAGE}Q")  # pass, tasks, usage
RULE: Final = struct.Struct("=16s16sHH")
RULES_SIZE: Final = 4 + 64 * RULE.size
MAJOR: Final = struct.Struct("=I")

HEADER: Final = struct.Struct("=IIQQ")
MEMORY_EVENT: Final = struct.Struct("=IIQQIIQQ")
EXEC_EVENT: Final = struct.Struct("=IIQQIIII16s128s")
OOM_EVENT: Final = struct.Struct("=IIQQII16s")
DENIED_EVENT: Final = struct.Struct("=IIQQIIII16sIIII16s")

BRAKE, NOTIFY, EXEC, OOM, DENIED = 1, 2, 3, 4, 5
_WHAT: Final = {1: DeniedWhat.CONNECT, 2: DeniedWhat.SEND, 3: DeniedWhat.PACKET, 4: DeniedWhat.DEVICE}
_MAPPED: Final = b"\0" * 10 + b"\xff\xff"  # ::ffff:0:0/96


def counters_from(harvested: Sequence[int], used: Sequence[int]) -> Counters:
    """Counters of one call: the kernel's sums, with the task-borne ones replaced by ``used``."""
    return Counters(
        faults=used[0],
        major_faults=used[1],
        read_bytes=used[2],
        written_bytes=used[3],
        disk_read_bytes=used[4],
        disk_written_bytes=used[5],
        run_wait_nsec=used[6],
        switches=used[7],
        net_rx_bytes=harvested[8],
        net_tx_bytes=harvested[9],
        net_rx_packets=harvested[10],
        net_tx_packets=harvested[11],
        forks=harvested[12],
        execs=harvested[13],
        exits=harvested[14],
        brakes=harvested[15],
        denied_connects=harvested[16],
        denied_devices=harvested[17],
        execs_suppressed=harvested[18],
        oom_kills=harvested[19],
        paced_packets=harvested[20],
        no_space=harvested[21],
    )


def encode_rule(rule: NetworkRule) -> bytes:
    network = rule.network
    if isinstance(network, ipaddress.IPv6Network):
        packed, mask = network.network_address.packed, network.netmask.packed
        # A mapped network is an IPv4 one: that is how the gates see the addresses in it.
        family = 4 if packed[:12] == _MAPPED and network.prefixlen >= 96 else 6
    else:
        packed = _MAPPED + network.network_address.packed
        mask = b"\xff" * 12 + network.netmask.packed
        family = 4
    return RULE.pack(packed, mask, rule.port, family)


def encode_rules(policy: NetworkPolicy) -> bytes:
    body = b"".join(map(encode_rule, policy.rules))
    return (struct.pack("=I", len(policy.rules)) + body).ljust(RULES_SIZE, b"\0")


def decode_event(raw: bytes) -> Event | None:
    """The event, or None when its kind or size is not one of ours (left in the buffer by another version)."""
    if len(raw) < HEADER.size:
        return None
    kind, size, cgroup_id, at = HEADER.unpack_from(raw)
    layout = _EVENTS.get(kind)
    if layout is None or size != layout.size or len(raw) < size:
        return None
    fields = layout.unpack_from(raw)[4:]
    if kind in (BRAKE, NOTIFY):
        tgid, tid, usage, threshold = fields
        made = BrakeEvent if kind == BRAKE else NotifyEvent
        return made(cgroup_id=cgroup_id, at_nsec=at, tgid=tgid, tid=tid, usage=usage, threshold=threshold)
    if kind == EXEC:
        tgid, ppid, uid, _, comm, path = fields
        return ExecEvent(
            cgroup_id=cgroup_id, at_nsec=at, pid=tgid, ppid=ppid, uid=uid, comm=text_of(comm), path=text_of(path)
        )
    if kind == OOM:
        tgid, uid, comm = fields
        return OomEvent(cgroup_id=cgroup_id, at_nsec=at, pid=tgid, uid=uid, comm=text_of(comm))
    tgid, number, family, protocol, address, port, major, minor, _, comm = fields
    what = _WHAT.get(number)
    if what is None:
        return None
    return DeniedEvent(
        cgroup_id=cgroup_id,
        at_nsec=at,
        what=what,
        pid=tgid,
        comm=text_of(comm),
        address=_address_of(family, address),
        port=port,
        protocol=protocol,
        major=major,
        minor=minor,
    )


_EVENTS: Final = {BRAKE: MEMORY_EVENT, NOTIFY: MEMORY_EVENT, EXEC: EXEC_EVENT, OOM: OOM_EVENT, DENIED: DENIED_EVENT}


def text_of(raw: bytes) -> str:
    """Up to the first NUL, printable: names come from hostile processes and end up on terminals."""
    text = raw.split(b"\0", 1)[0].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _address_of(family: int, packed: bytes) -> str:
    if family == 4:
        return str(ipaddress.IPv4Address(packed[12:]))
    return str(ipaddress.IPv6Address(packed)) if family == 6 else ""
