"""``corral budget``, and ``corral show`` of sessions and tenants, in processes of their own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.unit.cli_support import ACME, ROLLOUT, FakeDaemon, corral, serve


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[FakeDaemon]:
    fake, server = await serve(tmp_path / "api.sock")
    yield fake
    await server.stop(None)


async def test_all_budgets(daemon: FakeDaemon) -> None:
    done = await corral("budget", api=daemon.target)
    assert done.code == 0, done.err
    title, tenant, session = done.out.splitlines()
    assert title.split()[:5] == ["WHOSE", "RESOURCE", "LEFT", "OF", "USED"]
    assert tenant.split()[:2] == ["acme", "cpu_seconds"]
    for part in ("30 min 0 s", "10 h 0 min", "critical", "hard", "in 1h (", "each 1d"):
        assert part in tenant
    assert session.startswith(f"beta/rollout ({ROLLOUT})  tokens")
    for part in ("1.99 M", "2 M", "plenty", "soft", "never"):
        assert part in session
    one = await corral("budget", "rollout", "--json", api=daemon.target)
    (only,) = json.loads(one.out)["budgets"]
    assert (only["resource"], only["band"], only["refills_at"]) == ("tokens", "plenty", None)
    none = await corral("budget", "coder", api=daemon.target)
    assert "cpu_seconds" in none.out, "its tenant's count for its calls, too"


async def test_no_budget_says_how_to_set_one(daemon: FakeDaemon) -> None:
    done = await corral("budget", "beta", api=daemon.target)
    assert done.out.startswith("no budget of tenant beta; try: corral budget set")


async def test_set_and_remove(daemon: FakeDaemon) -> None:
    done = await corral("budget", "set", "acme", "cpu_seconds", "10h", "--hard", "--per", "1d", api=daemon.target)
    assert done.code == 0, done.err
    assert daemon.last(pb.SetBudgetRequest) == pb.SetBudgetRequest(
        target=ACME, resource="cpu_seconds", limit=36_000, hard=True, period_seconds=86_400
    )
    assert done.out.splitlines()[0] == "tenant acme"
    await corral("budget", "set", "acme", "cpu_seconds", "1h", "--end", api=daemon.target)
    assert daemon.last(pb.SetBudgetRequest) == pb.SetBudgetRequest(
        target=ACME, resource="cpu_seconds", limit=3600, hard=True, ends_calls=True
    )
    await corral("budget", "set", "rollout", "tokens", "2M", api=daemon.target)
    assert daemon.last(pb.SetBudgetRequest) == pb.SetBudgetRequest(target=ROLLOUT, resource="tokens", limit=2e6)
    done = await corral("budget", "remove", "rollout", "tokens", api=daemon.target)
    assert daemon.last(pb.SetBudgetRequest) == pb.SetBudgetRequest(target=ROLLOUT, resource="tokens")
    assert done.out == f"session {ROLLOUT} (rollout) has no budget now\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("set", "acme", "cpu_seconds"), "not complete"),
        (("set", "acme", "apples", "5"), "'apples' is nothing that can be used up; one of cpu_seconds"),
        (("set", "acme", "tokens", "10h"), "'10h' is no amount of tokens; write a number such as 50000 or 2M"),
        (("set", "acme", "tokens", "5", "--hard", "--soft"), "contradicts"),
        (("set", "acme", "tokens", "5", "--per", "often"), "--per: 'often' is not a duration"),
        (("remove", "acme"), "not complete"),
        (("acme", "beta"), "not understood"),
        (("acme", "--hard"), "belong to 'budget set'"),
    ],
)
async def test_wrong_lines_are_told(daemon: FakeDaemon, words: tuple[str, ...], said: str) -> None:
    done = await corral("budget", *words, api=daemon.target)
    assert (done.code, said in done.err) == (2, True), done.err
    assert not any(isinstance(asked, pb.SetBudgetRequest) for asked in daemon.asked)


async def test_budgets_of_nobody(daemon: FakeDaemon) -> None:
    done = await corral("budget", "set", "nobody", "tokens", "5", api=daemon.target)
    assert done.code == 5
    assert "no session or tenant 'nobody'" in done.err


async def test_show_a_session_and_a_tenant(daemon: FakeDaemon) -> None:
    session = await corral("show", "rollout", api=daemon.target)
    assert session.code == 0, session.err
    for part in ("its budgets", "1.99 M", "turns of its model", "3 in 12 s", "1,000 computed, 4,000 cached", "calls"):
        assert part in session.out, part
    tenant = await corral("show", "acme", api=daemon.target)
    for part in ("tenant acme", "its budgets", "cpu_seconds", "critical", "sessions", "memory max"):
        assert part in tenant.out, part
    plain = json.loads((await corral("show", "acme", "--json", api=daemon.target)).out)
    assert plain["tenant"]["budgets"][0]["band"] == "critical"
    nothing = await corral("show", "nowhere", api=daemon.target)
    assert nothing.code == 5
    assert "no call, session or tenant 'nowhere'" in nothing.err
