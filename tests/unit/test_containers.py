"""What is made of a container engine's words, and the file of those that are followed."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from agentd.api.attached import Selector
from agentd.containers.engine import Container, Engine, check, limits_of, matches, names
from agentd.containers.errors import BadContainer, EngineAway
from agentd.containers.follow import Follow, FollowFile
from controller.model import ControllerError, Limits


@pytest.mark.parametrize(
    ("host", "limits"),
    [
        ({}, Limits()),
        ({"Memory": 0, "PidsLimit": None, "NanoCpus": 0, "CpuQuota": -1}, Limits()),
        ({"Memory": 64 << 20, "PidsLimit": 100}, Limits(memory_max=64 << 20, pids_max=100)),
        ({"NanoCpus": 1_500_000_000}, Limits(cpu_max=1.5)),
        ({"CpuQuota": 50_000, "CpuPeriod": 0}, Limits(cpu_max=0.5)),
        ({"CpuQuota": 50_000, "CpuPeriod": 25_000}, Limits(cpu_max=2.0)),
        ({"PidsLimit": -1}, Limits()),
    ],
)
def test_a_containers_ceilings(host: dict[str, Any], limits: Limits) -> None:
    assert limits_of(host) == limits


BOX = Container(
    id="a" * 64,
    name="box",
    pid=77,
    labels={"role": "agent", "com.docker.compose.project": "p"},
    networks=frozenset({"agents"}),
)


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        (Selector(name="box"), True),
        (Selector(name="a" * 64), True),
        (Selector(name="bo"), False),
        (Selector(labels=("role",)), True),
        (Selector(labels=("role=agent", "x")), False),
        (Selector(labels=("role=web",)), False),
        (Selector(network="agents", project="p"), True),
        (Selector(network="bridge"), False),
        (Selector(project="q"), False),
    ],
)
def test_what_a_selector_matches(selector: Selector, wanted: bool) -> None:
    assert matches(BOX, selector) is wanted


@pytest.mark.parametrize(("word", "wanted"), [("role", True), ("p", True), ("box", True), ("n", True), ("", False)])
def test_by_which_words_a_following_is_ended(word: str, wanted: bool) -> None:
    assert names(Selector(name="box", labels=("role",), network="n", project="p"), word) is wanted
    assert not names(Selector(labels=("role",)), "box")


def test_a_container_without_a_process_here_is_refused() -> None:
    check(BOX)
    with pytest.raises(BadContainer, match="no process of its own"):
        check(Container(id="b" * 64, name="far", pid=0))


async def test_an_engine_that_is_not_there_is_named_with_a_remedy(tmp_path: Path) -> None:
    engine = Engine(f"unix://{tmp_path}/none.sock")
    with pytest.raises(EngineAway, match=r"none\.sock does not answer.*attach\.docker"):
        await engine.find(Selector(name="x"))
    await engine.close()


def test_what_is_followed_outlives_the_daemon(tmp_path: Path) -> None:
    file = FollowFile(tmp_path)
    assert file.load() == []
    follow = [Follow(tenant="acme", labels={"a": "b"}, selector=Selector(labels=("role=agent",), follow=True))]
    file.save(follow)
    assert file.load() == follow
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["attach.json"]


@pytest.mark.parametrize(
    ("text", "cause"), [("{", "is damaged"), ('{"version": 2}', "newer version"), ('{"follow": [{}]}', "is damaged")]
)
def test_a_file_that_cannot_be_read_is_not_guessed_at(tmp_path: Path, text: str, cause: str) -> None:
    file = FollowFile(tmp_path)
    file.path.write_text(text)
    with pytest.raises(ControllerError, match=cause):
        file.load()
