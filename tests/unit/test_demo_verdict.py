"""Each of the demo's checks holds on a good run, and fails when the one thing that it is about is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from agentd.demo import verdict
from agentd.demo.agents import ToolCall
from agentd.demo.runner import Run, Session
from agentd.demo.verdict import Findings, Record
from agentd.proto.corral.v1 import corral_pb2 as pb

MIB = 1 << 20


def record(
    call: ToolCall,
    *,
    status: int = 0,
    tenant: str = "acme",
    action: str = "",
    peak: int = 40 * MIB,
    cpu: int = 500_000,
    braked_at: int = 129 * MIB,
) -> Record:
    usage = pb.Usage(cpu_usec=cpu, memory_peak_bytes=peak, read_bytes=call.known_read, net_rx_bytes=call.known_received)
    outcome = pb.Outcome(
        reason="exited" if not status else "brake_killed",
        wait_status=-status if status < 0 else status << 8,
        usage=usage,
    )
    session = Session(tenant=tenant, name="one", id=f"s-{tenant}", token="")
    return Record(
        run=Run(session=session, call=call, status=status, begun_at=0.0, wall_seconds=1.0, output="the last line"),
        call=pb.Call(id="c-1", brakes=1 if action else 0, outcome=outcome),
        decisions=(pb.Decision(action=action, evidence={"usage_bytes": float(braked_at)}),) if action else (),
    )


SEARCH = ToolCall(tool="grep", call_class="search", argv=("grep",), known_read=10 * MIB)
FETCH = ToolCall(tool="fetch", call_class="data", argv=("fetch",), known_received=8 * MIB)
DATA = ToolCall(tool="python", call_class="data", argv=("data",), memory=(64, 128), needs_memory=96 * MIB)
GREEDY = replace(DATA, argv=("greedy",), overreaches=True, needs_memory=400 * MIB)


def good() -> Findings:
    return Findings(
        records=(
            record(SEARCH),
            record(FETCH),
            record(DATA, peak=110 * MIB),
            record(GREEDY, tenant="greedy", status=-9, action="brake", peak=300 * MIB),
        ),
        tenant_cpu_usec={"acme": 1_500_000, "greedy": 500_000},
        tenant_memory_max={"greedy": 320 * MIB},
        left=(),
        refused=replace(record(DATA).run, status=125),
    )


def with_record(number: int, changed: Record) -> Findings:
    findings = good()
    records = list(findings.records)
    records[number] = changed
    return replace(findings, records=tuple(records))


BAD: dict[str, tuple[Callable[[Findings], verdict.Check], Findings, str]] = {
    "not in the ledger": (verdict.recorded, with_record(0, replace(good().records[0], call=None)), "acme/one grep"),
    "no outcome": (verdict.recorded, with_record(0, replace(good().records[0], call=pb.Call())), "acme/one grep"),
    "not braked": (verdict.braked, with_record(3, record(GREEDY, tenant="greedy", status=-9)), "400 MiB"),
    "braked too late": (
        verdict.braked,
        with_record(3, record(GREEDY, tenant="greedy", status=-9, action="brake", braked_at=200 * MIB)),
        "declared 128 MiB, braked at 200 MiB",
    ),
    "nobody greedy": (verdict.braked, with_record(3, record(DATA)), "no call overreached"),
    "another died": (verdict.spared, with_record(2, record(DATA, status=-9)), "ended with -9: the last line"),
    "another failed": (verdict.spared, with_record(0, record(SEARCH, status=2)), "ended with 2"),
    "cpu lost": (verdict.cpu_adds_up, replace(good(), tenant_cpu_usec={"acme": 1_700_000}), "acme"),
    "cpu counted twice": (verdict.cpu_adds_up, replace(good(), tenant_cpu_usec={"acme": 1_000_000}), "acme"),
    "cpu unknown": (verdict.cpu_adds_up, replace(good(), tenant_cpu_usec={}), "no tenant"),
    "peak below what it touched": (verdict.peaks_plausible, with_record(2, record(DATA, peak=90 * MIB)), "96 MiB"),
    "peak far above": (verdict.peaks_plausible, with_record(2, record(DATA, peak=900 * MIB)), "900 MiB"),
    "no peak": (verdict.peaks_plausible, with_record(0, record(SEARCH, peak=0)), "no peak"),
    "ceiling passed": (
        verdict.peaks_plausible,
        with_record(3, record(GREEDY, tenant="greedy", status=-9, action="brake", peak=330 * MIB)),
        "above its tenant's",
    ),
    "something left": (verdict.nothing_left, replace(good(), left=("process 7 (sleep)",)), "process 7 (sleep)"),
    "limit ignored": (verdict.limit_refused, replace(good(), refused=record(DATA).run), "status 0"),
    "limit not tried": (verdict.limit_refused, replace(good(), refused=None), "not tried"),
    "no usage": (verdict.usage_seen, with_record(2, record(DATA, cpu=0)), "acme/one python"),
}


@pytest.mark.parametrize("enforced", [True, False])
def test_all_hold_on_a_good_run(enforced: bool) -> None:
    checks = verdict.judge(good(), enforced=enforced)
    assert [check for check in checks if not check.held] == []
    assert len({check.name for check in checks}) == len(checks)


@pytest.mark.parametrize(("check", "findings", "words"), BAD.values(), ids=BAD.keys())
def test_a_check_fails_and_says_why(check: Callable[[Findings], verdict.Check], findings: Findings, words: str) -> None:
    assert check(good()).held
    failed = check(findings)
    assert not failed.held
    assert words in failed.detail


@pytest.mark.parametrize(("counted", "held"), [(10 * MIB, True), (10 * MIB - 1, False), (30 * MIB, True)])
def test_bytes_read_are_at_least_those_that_are_known(counted: int, held: bool) -> None:
    changed = record(SEARCH)
    assert changed.call is not None
    changed.call.outcome.usage.read_bytes = counted  # a search also reads its libraries: there is no upper bound
    assert verdict.reads_counted(with_record(0, changed)).held is held


@pytest.mark.parametrize(("share", "held"), [(0.99, False), (1.0, True), (1.04, True), (1.2, False)])
def test_bytes_received_are_those_that_were_sent(share: float, held: bool) -> None:
    changed = record(FETCH)
    assert changed.call is not None
    changed.call.outcome.usage.net_rx_bytes = int(share * FETCH.known_received)
    assert verdict.network_counted(with_record(1, changed)).held is held


def test_ledger_status_must_be_what_the_agent_saw() -> None:
    changed = record(DATA, status=3)
    assert verdict.truthful(with_record(2, changed)).held
    assert changed.call is not None
    changed.call.outcome.wait_status = 0
    failed = verdict.truthful(with_record(2, changed))
    assert not failed.held
    assert "agent saw 3, ledger says 0" in failed.detail


def test_match_pairs_by_session_and_command() -> None:
    run = record(SEARCH).run
    calls = [
        pb.Call(id="c-1", session_id="s-acme", command="grep"),
        pb.Call(id="c-2", session_id="s-other", command="grep"),
        pb.Call(id="c-3", session_id="s-acme", command="git"),
    ]
    decisions = [pb.Decision(call_id="c-1", action="brake"), pb.Decision(call_id="c-2", action="kill")]
    (paired,) = verdict.match([run], calls, decisions)
    assert paired.call is calls[0]
    assert [decision.action for decision in paired.decisions] == ["brake"]
    (alone,) = verdict.match([run], calls[1:], decisions)
    assert alone.call is None
