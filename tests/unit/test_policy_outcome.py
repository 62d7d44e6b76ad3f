"""Properties of explanations: total over whatever the records say, silent where nothing was done, true to numbers."""

from __future__ import annotations

import re
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.model import (
    Action,
    Decision,
    Grant,
    Intent,
    Limits,
    Network,
    Reason,
    TenantId,
    Tripwire,
    Usage,
)
from controller.policy.advice import Expected, declared
from controller.policy.done import LONG_WAIT
from controller.policy.outcome import Proof, explain, reason_of, signal_name
from controller.policy.text import human_bytes, human_seconds

MIB = 1 << 20
GRANT = Grant(
    limits=Limits(memory_max=200 * MIB, pids_max=77), tripwire=Tripwire(brake=100 * MIB), priority=50, enforced=True
)
QUIET = frozenset({Reason.EXITED, Reason.FAILED, Reason.SIGNALLED, Reason.UNKNOWN})
counts = st.integers(0, 3)


@st.composite
def decisions(draw: st.DrawFn) -> Decision:
    return Decision(
        at=draw(st.floats(0, 1e9)),
        action=draw(st.sampled_from(Action)),
        policy=draw(st.sampled_from(["brake", "kernel", "operator"])),
        reason="used too much",
        tenant_id=TenantId("t-1"),
        evidence=draw(st.dictionaries(st.sampled_from(["usage_bytes", "brake_bytes"]), st.floats(0, 1e12))),
    )


@st.composite
def proofs(draw: st.DrawFn) -> Proof:
    return Proof(
        wait_status=draw(st.none() | st.integers(0, 0xFFFF)),
        killed_as=draw(st.none() | st.sampled_from([*Reason])),
        oom_kills=draw(counts),
        oom_tenant_kills=draw(counts),
        oom_host_kills=draw(counts),
        pids_refused=draw(counts),
        connects_refused=draw(counts),
        launcher_lost=draw(st.booleans()),
        decisions=draw(st.lists(decisions(), max_size=5)),
        no_space=draw(counts),
        full_disk=draw(st.sampled_from(["", "/work has 0 B left of 5 GiB"])),
        packets_held=draw(counts),
        squeezed_seconds=draw(st.sampled_from([0.0, 2.0])),
        queued_seconds=draw(st.sampled_from([0.0, 1.0, 61.0])),
    )


def proof(**changes: object) -> Proof:
    facts: dict[str, object] = {
        "wait_status": 0,
        "killed_as": None,
        "oom_kills": 0,
        "oom_tenant_kills": 0,
        "oom_host_kills": 0,
        "pids_refused": 0,
        "connects_refused": 0,
        "launcher_lost": False,
        "decisions": (),
    }
    return Proof(**(facts | changes))  # type: ignore[arg-type]  # a table of one type would say less


def told(case: Proof, *, intent: Intent | None = None, usage: Usage | None = None) -> str:
    return explain(
        intent=intent or Intent(),
        grant=GRANT,
        usage=usage or Usage(cpu_usec=1_500_000, memory_peak=123 * MIB),
        proof=case,
        wall_seconds=7.0,
        held_seconds=3.0,
    ).summary


@given(proofs(), st.booleans())
def test_every_record_has_an_explanation(case: Proof, declared: bool) -> None:
    intent = Intent(memory_peak=100 * MIB, tool="job") if declared else Intent()
    explained = explain(
        intent=intent, grant=GRANT, usage=Usage(memory_peak=150 * MIB), proof=case, wall_seconds=1.0, held_seconds=0.5
    )
    assert explained.reason is reason_of(case)
    assert "\n" not in explained.summary
    assert "None" not in explained.summary
    assert not (explained.suggestions and not explained.summary)


@given(proofs())
def test_silent_exactly_when_nothing_was_done(case: Proof) -> None:
    acted = {d.action for d in case.decisions} & {Action.BRAKE, Action.FREEZE}
    throttled = any(d.action is Action.THROTTLE for d in case.decisions) and case.squeezed_seconds > 0
    acted |= {Action.THROTTLE} if throttled else set()
    acted |= {Action.QUEUE} if case.queued_seconds >= LONG_WAIT else set()
    survived = case.oom_kills and case.killed_as is None and case.wait_status == 0
    if reason_of(case) in QUIET and not acted and not survived:
        assert told(case) == ""
    elif reason_of(case) not in {*QUIET, Reason.REFUSED, Reason.BRAKED}:
        assert told(case)


@given(proofs())
def test_the_numbers_are_those_of_the_records(case: Proof) -> None:
    text = told(case, intent=Intent(memory_peak=100 * MIB, deadline=11.0))
    known = " ".join(
        [
            *(human_bytes(n) for n in (100 * MIB, 123 * MIB, 200 * MIB)),
            declared(123 * MIB),
            case.full_disk,
            *(human_bytes(d.evidence.get("brake_bytes", 0)) for d in case.decisions),
            *(human_seconds(s) for s in (1.5, 7.0, 3.0, 11.0, case.squeezed_seconds, case.queued_seconds)),
            *(str(n) for n in (77, case.oom_kills, case.pids_refused, case.connects_refused, len(case.decisions))),
            *(str(n) for n in (case.no_space, case.packets_held)),
            *(str(sum(d.action is action for d in case.decisions)) for action in Action),
        ]
    )
    for number in re.findall(r"\d+(?:\.\d+)?(?:e\+\d+)?", text):
        assert number in known, (number, text)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (proof(), Reason.EXITED),
        (proof(wait_status=3 << 8), Reason.FAILED),
        (proof(wait_status=137 << 8), Reason.FAILED),  # a shell's word for a kill proves nothing
        (proof(wait_status=signal.SIGKILL), Reason.SIGNALLED),
        (proof(wait_status=signal.SIGKILL, oom_kills=1), Reason.OOM_CALL),
        (proof(wait_status=signal.SIGKILL, oom_tenant_kills=1), Reason.OOM_TENANT),
        (proof(wait_status=signal.SIGKILL, oom_host_kills=1), Reason.OOM_HOST),
        (proof(oom_kills=1), Reason.EXITED),  # it lost a worker and ended well
        (proof(wait_status=signal.SIGKILL, killed_as=Reason.TIMEOUT, oom_kills=1), Reason.TIMEOUT),
        (proof(wait_status=None, launcher_lost=True), Reason.CANCELLED),
        (proof(wait_status=None), Reason.UNKNOWN),
        (proof(wait_status=1 << 8, pids_refused=1), Reason.PIDS_LIMIT),
        (proof(wait_status=1 << 8, connects_refused=1), Reason.NETWORK_DENIED),
        (proof(connects_refused=1), Reason.EXITED),
        (proof(wait_status=1 << 8, no_space=1), Reason.DISK_FULL),
        (proof(wait_status=signal.SIGBUS, no_space=1), Reason.DISK_FULL),
        (proof(no_space=1), Reason.EXITED),  # it made do
        (proof(wait_status=1 << 8, full_disk="/x has 0 B left"), Reason.FAILED),  # a hint is no proof
    ],
)
def test_reasons(case: Proof, reason: Reason) -> None:
    assert reason_of(case) is reason


def test_paragraphs_name_what_to_try() -> None:
    text = told(proof(wait_status=9, oom_kills=1), intent=Intent(tool="pytest", memory_peak=100 * MIB))
    assert text == (
        "The 'pytest' call was killed by the kernel when it reached its memory limit of 200 MiB. "
        "It declared a peak of 100 MiB and used up to 123 MiB. "
        "It ran 7 s and used 1.5 s of CPU and at most 123 MiB of memory. "
        "What to try: do the work in smaller pieces or with fewer workers; "
        "or declare a memory peak above 200 MiB."
    )
    denied = told(proof(wait_status=256, connects_refused=2), intent=Intent(network=Network.NONE))
    assert "2 connections were refused: its intent allows no network." in denied


def decision(action: Action, reason: str, **evidence: float) -> Decision:
    return Decision(
        at=1.0, action=action, policy="p", reason=reason, tenant_id=TenantId("t-1"), evidence=dict(evidence)
    )


def test_a_full_disk_proven_and_only_suspected() -> None:
    where = "/work has 0 B left of 5 GiB"
    proven = told(proof(wait_status=256, no_space=3, full_disk=where))
    assert f"failed; 3 of its writes found no space on the disk, or a quota used up: {where}." in proven
    assert "What to try: remove what is not needed there" in proven
    wrote = Usage(written_bytes=5, memory_peak=MIB)
    suspected = told(proof(wait_status=256, full_disk=where), usage=wrote)
    assert f"It may be for want of space, which was not watched: {where}." in suspected
    assert told(proof(wait_status=256, full_disk=where), usage=Usage(memory_peak=MIB)) == "", "it wrote nothing"
    assert told(proof(wait_status=0, full_disk=where), usage=wrote) == ""


def test_the_hosts_end_and_that_of_what_corral_may_use() -> None:
    whole = told(proof(wait_status=9, oom_host_kills=1))
    assert "because the whole host ran out of memory. " in whole
    ours = told(proof(wait_status=9, oom_host_kills=1, oom_at_root=True))
    assert "because all that Corral may use of this host ran out of memory. " in ours


def test_what_was_done_how_long_and_why() -> None:
    """Waited, braked, frozen and slowed, one after the other, in a call that went well."""
    case = proof(
        queued_seconds=61.0,
        squeezed_seconds=42.0,
        decisions=(
            decision(Action.QUEUE, "the tenant runs 4 calls, 4 allowed at once"),
            decision(Action.BRAKE, "used 101 MiB", brake_bytes=100.0 * MIB),
            decision(Action.RAISE, "there is room"),
            decision(Action.FREEZE, "frozen by an operator"),
            decision(Action.THROTTLE, "the host is short of memory: CPU weight 10"),
            decision(Action.RELAX, "the host has room again"),
        ),
    )
    assert told(case).startswith(
        "The call waited 1 min 1 s in the queue before it began: the tenant runs 4 calls, 4 allowed at once. "
        "It was stopped when it used 100 MiB, and held for 3 s in all. "
        "There was room, so its threshold was raised once "
        "and it went on. It was frozen as well, by an operator. "
        "It was slowed for 42 s (the host is short of memory: CPU weight 10). "
    )
    ladder = proof(decisions=(decision(Action.FREEZE, "others must finish first"),))
    assert told(ladder).startswith("The call was held for 3 s (others must finish first). ")


@pytest.mark.parametrize(
    ("expected", "advice"),
    [
        (
            Expected(typical=1900 * MIB, high=2000 * MIB, lives=24, basis="session"),
            "declare a memory peak of about 2.15 GiB: 24 earlier calls of its kind in this session typically peaked at "
            "1.86 GiB and nearly all below 1.95 GiB, and it had 200 MiB; or run fewer workers, or smaller pieces, so "
            "that it stays below 200 MiB",
        ),
        (
            Expected(typical=50 * MIB, high=51 * MIB, lives=9, basis="class"),
            "look at what is different this time: 9 earlier calls of its class typically peaked at 50 MiB, within the "
            "200 MiB that it had",
        ),
        (Expected(typical=MIB, high=MIB, lives=2, basis="session"), "do the work in smaller pieces"),
        (Expected(typical=MIB, high=1 << 40, lives=900, basis="all calls"), "do the work in smaller pieces"),
        (None, "do the work in smaller pieces"),
    ],
)
def test_advice_comes_from_what_is_known(expected: Expected | None, advice: str) -> None:
    for killed in (proof(wait_status=9, oom_kills=1), proof(wait_status=9, killed_as=Reason.BRAKE_KILLED)):
        text = explain(
            intent=Intent(),
            grant=GRANT,
            usage=Usage(memory_peak=200 * MIB),
            proof=killed,
            wall_seconds=1.0,
            held_seconds=0.0,
            expected=expected,
        ).summary
        assert f"What to try: {advice}" in text


@pytest.mark.parametrize(("status", "name"), [(0, ""), (256, ""), (9, "SIGKILL"), (139, "SIGSEGV"), (63, "signal 63")])
def test_signal_names(status: int, name: str) -> None:
    assert signal_name(status) == name


@given(st.integers(0, 1 << 53))
def test_sizes_are_short(count: int) -> None:
    assert re.fullmatch(r"\d{1,4}(\.\d{1,2})? (B|KiB|MiB|GiB|TiB)", human_bytes(count))


@given(st.floats(0.0001, 1e7))
def test_times_are_short(seconds: float) -> None:
    text = human_seconds(seconds)
    assert re.fullmatch(r"(\d{1,4}(\.\d{1,2})? (ms|s)|\d+ min \d+ s|\d+ h \d+ min)", text), text
