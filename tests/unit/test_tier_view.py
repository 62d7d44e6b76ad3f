"""The tier's picture as messages, as metrics and on the command line: nothing is lost on the way."""

from __future__ import annotations

import io

import pytest
from prometheus_client import generate_latest

from agentd.api.tier import tier_to_proto
from agentd.cli import tier as command
from agentd.cli.context import Context
from agentd.cli.parser import build
from agentd.cli.views import Names
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.tier.view import TierView
from tests.unit.tier_objects import SESSION, TENANT, full_collector, full_view


def test_every_field_of_the_messages_is_filled() -> None:
    status = tier_to_proto(full_view())

    def empty(message: object, path: str) -> list[str]:
        found = []
        assert hasattr(message, "DESCRIPTOR")
        for field in message.DESCRIPTOR.fields:
            value = getattr(message, field.name)
            where = f"{path}.{field.name}"
            if field.message_type is not None and not field.message_type.GetOptions().map_entry:
                found += [where] if not len(value) else [w for one in value[:1] for w in empty(one, where)]
            elif not value:
                found.append(where)
        return found

    # index 0 is a device's, and the first one is no slice and well
    assert empty(status, "tier") == [
        "tier.nvml_detail",
        "tier.devices.index",
        "tier.devices.detail",
        "tier.devices.parent_uuid",
        "tier.engines.detail",
    ]
    (session,) = status.sessions
    assert (session.session_id, session.residency, session.keep_until) == (SESSION, "offloaded", 9.0)
    assert not status.devices[1].HasField("power_watts")
    assert not status.devices[0].processes[1].HasField("memory_bytes")


def test_what_was_never_computed_is_none_in_the_api() -> None:
    view = full_view()
    absent = TierView(
        at=1.0,
        nvml="",
        nvml_detail="",
        sessions=tuple(
            type(one)(**{**{f: getattr(one, f) for f in one.__slots__}, "residency": "absent"}) for one in view.sessions
        ),
    )
    assert tier_to_proto(absent).sessions[0].residency == "none"


def test_metrics() -> None:
    text = generate_latest(full_collector()).decode()
    for row in (
        'corral_gpu_memory_used_bytes{gpu="0",uuid="GPU-1"} 1.073741824e+09',
        'corral_gpu_energy_joules_total{gpu="0",uuid="GPU-1"} 1234.0',
        'corral_tenant_gpu_joules_total{tenant="acme"} 60.0',
        'corral_engine_up{engine="local"} 1.0',
        'corral_kv_tokens{engine="local",residency="offloaded"} 3001.0',
        'corral_kv_tokens{engine="local",residency="resident"} 0.0',
        'corral_kv_switches_total{engine="local",kind="offloaded"} 4.0',
        'corral_kv_pause_byte_seconds_total{engine="local",residency="resident"} 1e+09',
    ):
        assert row in text, text
    assert "MIG-1" not in text  # a slice is part of its device
    assert SESSION not in text  # nothing unbounded


def shown(status: pb.TierStatus, switches: int = 20) -> str:
    out = io.StringIO()
    context = Context(build().parse_args(["tier"]), out=out)
    command._print(context, status, Names({TENANT: "acme"}, {SESSION: "fix-1"}), switches)
    return out.getvalue()


def test_the_command_line() -> None:
    text = shown(tier_to_proto(full_view()))
    for word in (
        "Fake GPU",
        "40 %",
        "350 W",
        "└ 0",
        "nobody's",
        "fix-1",
        "acme",
        "XID 79",
        "corral",
        "3,001",
        "offloaded",
        "set something",
    ):
        assert word in text, text


@pytest.mark.parametrize("nvml", ["no_driver", ""])
def test_an_empty_tier_says_what_to_do(nvml: str) -> None:
    status = pb.TierStatus(nvml=nvml, nvml_detail="the module is not loaded", hints=["name engines"])
    text = shown(status)
    assert f"no GPU ({nvml or 'off'}): the module is not loaded" in text
    assert "to configure: name engines" in text
    assert "ENGINE" not in text


def test_only_the_newest_switches_are_shown() -> None:
    status = pb.TierStatus(switches=[pb.ContextSwitch(session_id=f"s-{n}", kind="dropped") for n in range(9)])
    text = shown(status, switches=2)
    assert "s-8" in text
    assert "s-7" in text
    assert "s-6" not in text
