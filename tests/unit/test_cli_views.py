"""What a host looks like on the screen: golden text from fixed messages, and the words for what happened."""

from __future__ import annotations

import pytest

from agentd.cli import views, words
from agentd.cli.detail import Known, ended_in_words, living_in_words
from agentd.cli.errors import NotFoundError, UsageError
from agentd.cli.plain import enum_word, to_plain
from agentd.cli.table import render
from agentd.cli.targets import calls_of, find
from agentd.processes import processes_of, unified_mount
from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.unit.cli_support import (
    BRAKED,
    CODER,
    FROZEN,
    KILLED,
    NOW,
    QUEUED,
    ROLLOUT,
    TESTING,
    brake_decision,
    ended_call,
    kill_decision,
    snapshot,
)

WIDE = """\
CALL                TENANT  SESSION  TOOL  CLASS  STATE       AGE    CPU   MEMORY     PEAK    BRAKE  PIDS  COMMAND
c-01hx00000000d4xy  beta    rollout  -     -      frozen    1h 1m  50 ms    3 MiB        -        -     1  tar czf all…
c-01hx00000000e5xy  beta    rollout  Bash  data   ended      40 s  3.2 s        -  130 MiB  128 MiB     -  python burs…
c-01hx00000000b2xy  beta    rollout  Bash  data   braked     20 s    2 s  129 MiB  129 MiB  128 MiB     2  python �[31…
c-01hx00000000a1xy  acme    coder    Bash  test   running  12.5 s  9.8 s  210 MiB  231 MiB  512 MiB     5  pytest -q t…
c-01hx00000000c3xy  beta    rollout  -     build  queued      1 s    0 s        -        -        -     -  make -j4
"""


def _calls(width: int | None) -> list[str]:
    whole = snapshot(with_ended=True)
    names = views.Names.of(whole)
    return render(views.CALL_COLUMNS, views.call_rows(views.select(whole), names, whole.at), width=width)


def test_calls_on_a_narrow_terminal() -> None:
    assert _calls(80) == [
        "CALL                TENANT  SESSION  TOOL  STATE      CPU   MEMORY  COMMAND",
        "c-01hx00000000d4xy  beta    rollout  -     frozen   50 ms    3 MiB  tar czf all…",
        "c-01hx00000000e5xy  beta    rollout  Bash  ended    3.2 s        -  python burs…",
        "c-01hx00000000b2xy  beta    rollout  Bash  braked     2 s  129 MiB  python �[31…",
        "c-01hx00000000a1xy  acme    coder    Bash  running  9.8 s  210 MiB  pytest -q t…",
        "c-01hx00000000c3xy  beta    rollout  -     queued     0 s        -  make -j4",
    ]


def test_calls_on_a_wide_terminal() -> None:
    assert _calls(119) == WIDE.splitlines()


def test_calls_in_a_pipe_are_not_cut() -> None:
    lines = _calls(None)
    assert lines[0].split()[-3:] == ["PIDS", "PRIO", "COMMAND"]
    assert lines[3].endswith("python \N{REPLACEMENT CHARACTER}[31mburst.py rm -rf")


def test_history() -> None:
    whole = snapshot()
    rows = views.history_rows([ended_call()], views.Names.of(whole))
    assert render(views.HISTORY_COLUMNS, rows, width=100) == [
        "CALL                TENANT  SESSION  TOOL  CLASS  WALL    CPU     PEAK  REASON        DONE TO IT",
        "c-01hx00000000e5xy  beta    rollout  Bash  data   40 s  3.2 s  130 MiB  brake_killed  braked, killed",
    ]


def test_tenants_and_sessions() -> None:
    whole = snapshot(with_ended=True)
    assert render(views.TENANT_COLUMNS, views.tenant_rows(whole), width=105) == [
        "TENANT  ID                  PRIO   MEMORY  MEMORY MAX     CPU    CPU MAX  PIDS MAX  SESSIONS  CALLS",
        "acme    t-01hx0000000000aa    70  210 MiB       4 GiB   9.8 s  unlimited         -         1      1",
        "beta    t-01hx0000000000bb    20        -           -  2.05 s          -         -         1      3",
    ]
    assert render(views.SESSION_COLUMNS, views.session_rows(whole, whole.sessions), width=120) == [
        "SESSION             TENANT  NAME     STATE    UID     AGE  CALLS   MEMORY  LABELS",
        "s-01hx0000000000aa  acme    coder    open    1000  1m 40s      1  210 MiB  a=b task=fix",
        "s-01hx0000000000bb  beta    rollout  open    1001   1h 6m      3  132 MiB  -",
        "s-01hx0000000000cc  beta    -        closed  1001    10 s      0        -  -",
    ]


def test_the_host_in_one_line_and_what_it_lacks_in_another() -> None:
    assert views.host_lines(snapshot()) == [
        "2 CPUs · memory 2 GiB of 8 GiB · pressure cpu 12.3 %, memory 0.0 %, io - · hybrid · Linux 6.18.2 · "
        "agentd 0.1.0",
        "this host cannot: memory.high (cgroup v1) (see: corral doctor)",
    ]
    observing = pb.HostStatus(mode="observe")
    assert views.limitations(observing) == ["observe-only: usage is seen, no limit is enforced on this host"]


@pytest.mark.parametrize(
    ("sort", "first"),
    [("memory", TESTING), ("cpu", TESTING), ("age", FROZEN), ("begun", FROZEN), ("priority", TESTING)],
)
def test_sorting(sort: str, first: str) -> None:
    assert views.select(snapshot(), sort=sort)[0].id == first
    assert views.select(snapshot(), sort=sort, reverse=True)[-1].id == first


def test_filters_take_ids_and_names() -> None:
    whole = snapshot()
    assert {c.id for c in views.select(whole, tenant="beta")} == {BRAKED, QUEUED, FROZEN}
    assert {c.id for c in views.select(whole, session=CODER)} == {TESTING}
    assert [c.id for c in views.select(whole, state="queued")] == [QUEUED]
    assert views.select(whole, tenant="nobody") == []


def test_a_target_is_found_by_id_name_and_piece() -> None:
    whole = snapshot()
    assert find(whole, "acme").kind == "tenant"
    assert find(whole, "rollout").id == ROLLOUT
    assert find(whole, TESTING).id == TESTING
    assert find(whole, TESTING[-5:]).id == TESTING
    assert {c.id for c in calls_of(whole, find(whole, "beta"))} == {BRAKED, QUEUED, FROZEN}


def test_a_target_that_is_not_there_or_not_clear() -> None:
    whole = snapshot()
    with pytest.raises(NotFoundError, match="no call or session or tenant 'gone'"):
        find(whole, "gone")
    with pytest.raises(NotFoundError):
        find(whole, "a1x")  # a piece of fewer than four characters is none
    with pytest.raises(NotFoundError):
        find(whole, "acme", kinds=("call",))
    with pytest.raises(UsageError, match="can mean 4 things"):
        find(whole, "c-01hx", kinds=("call",))
    for wrong in ("", "x" * 1000, "a\x1b[0m"):
        with pytest.raises(UsageError, match="names nothing"):
            find(whole, wrong)


def _living(call_id: str, *decisions: pb.Decision) -> str:
    whole = snapshot()
    call = next(c for c in whole.calls if c.id == call_id)
    return " ".join(living_in_words(Known(call, list(decisions), views.Names.of(whole), NOW)))


def test_a_living_call_is_explained_with_its_numbers() -> None:
    assert _living(BRAKED, brake_decision()) == (
        f"{BRAKED} was stopped at its memory threshold (brake 128 MiB, usage now 129 MiB) and has been held for 4 s "
        "because: its memory passed the armed threshold. A policy decides within its bound whether it gets more room "
        "or is ended."
    )
    assert _living(TESTING) == (
        f"{TESTING} has been running for 12.5 s: 9.8 s of CPU, 210 MiB of memory now, brake at 512 MiB."
    )
    assert _living(QUEUED) == f"{QUEUED} has waited 1 s for room and has not started."
    assert f"'corral thaw {FROZEN}' lets it go on" in _living(FROZEN)


def test_an_ended_call_is_explained_with_its_outcome() -> None:
    first, second = ended_in_words(ended_call().outcome)
    assert first == (
        f"{KILLED} ended with signal 9 (SIGKILL) (reason: brake_killed) after 40 s, using 3.2 s of CPU, "
        "at most 130 MiB of memory."
    )
    assert second == ended_call().outcome.summary
    assert ended_in_words(pb.Outcome(call_id="c", reason="exited", wait_status=0))[1] == "Nothing was done to it."


def test_what_was_done_and_the_evidence() -> None:
    assert words.what_was_done([brake_decision(), brake_decision(), kill_decision()]) == "braked 2×, killed"
    assert words.what_was_done([]) == "-"
    assert words.evidence(brake_decision()) == "brake 128 MiB, usage 129 MiB"
    assert words.evidence(kill_decision()) == "headroom 0 B, waited 30 s"
    assert words.wait_status(256) == "exit status 1"
    assert words.wait_status(11) == "signal 11 (SIGSEGV)"


def test_plain_values_keep_numbers_nulls_and_words() -> None:
    plain = to_plain(snapshot().calls[0])
    assert plain["state"] == "running"
    assert plain["held_since"] is None
    assert plain["outcome"] is None
    usage = plain["usage"]
    assert isinstance(usage, dict)
    assert usage["cpu_usec"] == 9_800_000  # a number, where protobuf's own JSON has a string
    assert usage["net_rx_bytes"] is None
    assert to_plain(brake_decision())["evidence"] == {"usage_bytes": 129.0 * 2**20, "brake_bytes": 128.0 * 2**20}
    assert to_plain(pb.Sample(at=float("nan")))["at"] is None


def test_a_state_from_a_newer_daemon_is_shown_and_not_fatal() -> None:
    call = pb.Call.FromString(b"\x40\x63")  # field 8, varint 99
    assert enum_word(pb.Call.DESCRIPTOR.fields_by_name["state"], call.state) == "unknown_99"
    assert words.state(call.state).text == "unknown 99"


def test_processes_are_only_looked_for_inside_the_hierarchy() -> None:
    assert processes_of("") == []
    assert processes_of("../../etc") == []
    assert processes_of("corral/no/such/leaf") == []


def test_the_unified_hierarchy_is_found_in_mountinfo() -> None:
    text = (
        "30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "31 24 0:27 / /sys/fs/cgroup/my\\040v2 rw,nosuid shared:9 - cgroup2 none rw\n"
    )
    assert str(unified_mount(text)) == "/sys/fs/cgroup/my v2"
    assert unified_mount("30 24 0:26 / / rw - ext4 /dev/vda rw\n") is None
