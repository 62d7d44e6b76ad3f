"""Python's layouts against the C header, by a compiler; and the codecs."""

from __future__ import annotations

import ipaddress
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpf import layout
from bpf.types import (
    MAX_CALLS,
    MAX_RULES,
    BrakeEvent,
    Counters,
    DeniedEvent,
    DeniedWhat,
    ExecEvent,
    NetworkMode,
    NetworkPolicy,
    NetworkRule,
    NotifyEvent,
    OomEvent,
)

SOURCES = Path(__file__).resolve().parents[2] / "bpf/src"
SIZES = {
    "corral_config": layout.CONFIG.size,
    "corral_call": layout.CALL.size,
    "corral_pace": layout.PACE.size,
    "corral_state": layout.STATE.size,
    "corral_counters": layout.COUNTERS.size,
    "corral_live": layout.LIVE.size,
    "corral_rule": layout.RULE.size,
    "corral_rules": layout.RULES_SIZE,
    "corral_header": layout.HEADER.size,
    "corral_memory_event": layout.MEMORY_EVENT.size,
    "corral_exec_event": layout.EXEC_EVENT.size,
    "corral_oom_event": layout.OOM_EVENT.size,
    "corral_denied_event": layout.DENIED_EVENT.size,
}
HEAD = (0, 0)  # kind and size, filled in by `event`


def test_c_and_python_agree(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("clang-14") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    checks = [f'_Static_assert(sizeof(struct {name}) == {size}, "{name}");' for name, size in SIZES.items()]
    for index, field in enumerate(layout.COUNTER_FIELDS):
        path = f"used.{field}" if index < layout.N_USAGE else field
        checks.append(f'_Static_assert(__builtin_offsetof(struct corral_counters, {path}) == {8 * index}, "{field}");')
    offsets = {
        "corral_config": {
            "page_size": 0,
            "pass": 8,
            "settle": 16,
            "stride": 24,
            "armed": 32,
            "generation": 36,
            "paced": 40,
        },
        "corral_pace": {"rate": 0, "depth": 8, "next": 16},
        "corral_call": {"notify": 0, "brake": 8, "memory_id": 16, "epoch": 24, "network": 28, "gpu": 32},
        "corral_live": {"pass": 0, "tasks": 8, "used": 16},
        "corral_rule": {"net": 0, "mask": 16, "port": 32, "family": 34},
        "corral_rules": {"count": 0, "rule": 4},
        "corral_memory_event": {"tgid": 24, "tid": 28, "usage": 32, "threshold": 40},
        "corral_exec_event": {"tgid": 24, "ppid": 28, "uid": 32, "comm": 40, "path": 56},
        "corral_oom_event": {"tgid": 24, "uid": 28, "comm": 32},
        "corral_denied_event": {
            "tgid": 24,
            "what": 28,
            "family": 32,
            "protocol": 36,
            "address": 40,
            "port": 56,
            "major": 60,
            "minor": 64,
            "comm": 72,
        },
    }
    for name, fields in offsets.items():
        checks += [
            f'_Static_assert(__builtin_offsetof(struct {name}, {field}) == {at}, "{name}.{field}");'
            for field, at in fields.items()
        ]
    checks += [
        f'_Static_assert(CORRAL_MAX_CALLS == {MAX_CALLS}, "calls");',
        f'_Static_assert(CORRAL_MAX_RULES == {MAX_RULES}, "rules");',
        *(f'_Static_assert(CORRAL_NET_{mode.name} == {mode.value}, "{mode}");' for mode in NetworkMode),
        f'_Static_assert(CORRAL_EV_BRAKE == {layout.BRAKE} && CORRAL_EV_DENIED == {layout.DENIED}, "kinds");',
    ]
    source = tmp_path / "check.c"
    source.write_text(
        f'#include <linux/types.h>\n#include "{SOURCES}/corral.h"\n' + "\n".join(checks) + "\nint main(void) {}\n"
    )
    done = subprocess.run([compiler, "-fsyntax-only", str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def event(packer: struct.Struct, kind: int, *fields: object) -> bytes:
    return packer.pack(kind, packer.size, 77, 123, *fields)


def test_every_event_is_decoded() -> None:
    assert layout.decode_event(event(layout.MEMORY_EVENT, 1, 10, 11, 2000, 1000)) == BrakeEvent(
        cgroup_id=77, at_nsec=123, tgid=10, tid=11, usage=2000, threshold=1000
    )
    assert isinstance(layout.decode_event(event(layout.MEMORY_EVENT, 2, 10, 11, 2000, 1000)), NotifyEvent)
    assert layout.decode_event(event(layout.EXEC_EVENT, 3, 5, 4, 1000, 0, b"sh", b"/bin/sh")) == ExecEvent(
        cgroup_id=77, at_nsec=123, pid=5, ppid=4, uid=1000, comm="sh", path="/bin/sh"
    )
    assert layout.decode_event(event(layout.OOM_EVENT, 4, 5, 1000, b"hog")) == OomEvent(
        cgroup_id=77, at_nsec=123, pid=5, uid=1000, comm="hog"
    )
    mapped = b"\0" * 10 + b"\xff\xff" + bytes((10, 1, 2, 3))
    assert layout.decode_event(event(layout.DENIED_EVENT, 5, 5, 1, 4, 6, mapped, 443, 0, 0, 0, b"curl")) == DeniedEvent(
        cgroup_id=77, at_nsec=123, what=DeniedWhat.CONNECT, pid=5, comm="curl", address="10.1.2.3", port=443, protocol=6
    )
    v6 = ipaddress.IPv6Address("2001:db8::1").packed
    found = layout.decode_event(event(layout.DENIED_EVENT, 5, 5, 2, 6, 17, v6, 53, 0, 0, 0, b"dig"))
    assert isinstance(found, DeniedEvent)
    assert found.address == "2001:db8::1"


def test_hostile_names_are_made_printable() -> None:
    found = layout.decode_event(event(layout.EXEC_EVENT, 3, 5, 4, 0, 0, b"\x1b[31mred\n", b"/tmp/\xff\x00rest"))
    assert isinstance(found, ExecEvent)
    assert (found.comm, found.path) == ("\ufffd[31mred\ufffd", "/tmp/\ufffd")


@given(st.binary(max_size=400))
def test_foreign_records_are_no_events(raw: bytes) -> None:
    # A record of the right kind and size is the only one that is decoded.
    found = layout.decode_event(raw)
    if found is not None:
        kind, size = struct.unpack_from("=II", raw)
        assert kind in (1, 2, 3, 4, 5)
        assert len(raw) >= size


@pytest.mark.parametrize(
    ("network", "port", "net", "mask", "family"),
    [
        ("10.0.0.0/8", 443, b"\0" * 10 + b"\xff\xff\x0a\0\0\0", b"\xff" * 13 + b"\0" * 3, 4),
        ("0.0.0.0/0", 0, b"\0" * 10 + b"\xff\xff\0\0\0\0", b"\xff" * 12 + b"\0" * 4, 4),
        ("::ffff:10.0.0.0/104", 0, b"\0" * 10 + b"\xff\xff\x0a\0\0\0", b"\xff" * 13 + b"\0" * 3, 4),
        ("::/0", 0, b"\0" * 16, b"\0" * 16, 6),
        ("2001:db8::/32", 1, bytes.fromhex("20010db8") + b"\0" * 12, b"\xff" * 4 + b"\0" * 12, 6),
    ],
)
def test_rules(network: str, port: int, net: bytes, mask: bytes, family: int) -> None:
    assert layout.RULE.unpack(layout.encode_rule(NetworkRule.parse(network, port))) == (net, mask, port, family)


def test_a_list_of_rules() -> None:
    raw = layout.encode_rules(NetworkPolicy.listed([("10.0.0.0/8", 0), ("::1", 80)]))
    assert len(raw) == layout.RULES_SIZE
    assert struct.unpack_from("=I", raw) == (2,)
    assert raw[4 + 2 * layout.RULE.size :].strip(b"\0") == b""


def test_counters_come_from_the_right_places() -> None:
    names = layout.COUNTER_FIELDS
    made = layout.counters_from(range(100, 100 + layout.N_COUNTERS), range(layout.N_USAGE))
    expected = {name: i if i < layout.N_USAGE else 100 + i for i, name in enumerate(names)}
    assert made == Counters(**expected)
