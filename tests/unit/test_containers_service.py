"""Following containers over an engine that fails, and beside one that cannot be attached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agentd.api.attached import Selector
from agentd.containers import service
from agentd.containers.engine import Container, Engine, Happened
from agentd.containers.follow import Follow, FollowFile
from agentd.containers.service import Containers
from controller.host import Host
from controller.model import ControllerError, WrongState
from controller.recognise.recogniser import Recogniser

FOLLOWED = Selector(labels=("role=agent",), follow=True)


class FakeEngine:
    """Finds ``boxes``; its first streams of events raise what is in ``breaks``."""

    def __init__(self, boxes: list[Container], breaks: list[Exception]) -> None:
        self.boxes, self.breaks = boxes, breaks

    async def find(self, selector: Selector) -> list[Container]:
        return self.boxes

    async def events(self) -> AsyncGenerator[Happened, None]:
        if self.breaks:
            raise self.breaks.pop(0)
        await asyncio.Event().wait()
        yield Happened("lost")

    async def close(self) -> None: ...


class FakeRecogniser:
    def __init__(self) -> None:
        self.attached: list[str] = []
        self.all_there = asyncio.Event()

    def attach_group(self, *, container: str, **_: Any) -> SimpleNamespace:
        if container.startswith("bad"):
            raise ControllerError("its first process has ended", remedy="start it again")
        self.attached.append(container)
        self.all_there.set()
        return SimpleNamespace(id="s-1")

    def of_container(self, container: str) -> str | None:
        return "s-1" if container in self.attached else None

    def containers(self) -> dict[str, Any]:
        return {}

    def check_rules(self, rules: str) -> None: ...


def box(name: str) -> Container:
    return Container(id=name * 16, name=name, pid=77, labels={"role": "agent"})


def following(tmp_path: Path, engine: FakeEngine, recogniser: FakeRecogniser) -> Containers:
    host = SimpleNamespace(registry=SimpleNamespace(tenant=lambda name: name))
    return Containers(cast(Host, host), cast(Recogniser, recogniser), cast(Engine, engine), FollowFile(tmp_path))


async def test_one_that_cannot_be_attached_keeps_no_other_out(tmp_path: Path) -> None:
    FollowFile(tmp_path).save([Follow(tenant="acme", selector=FOLLOWED)])
    recogniser = FakeRecogniser()
    followed = following(tmp_path, FakeEngine([box("bad"), box("good")], []), recogniser)
    await followed.start()
    await asyncio.wait_for(recogniser.all_there.wait(), 10)
    assert recogniser.attached == ["good" * 16]
    await followed.stop()


async def test_an_answer_that_nobody_foresaw_does_not_end_the_following(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_RETRY", (0.0,))
    FollowFile(tmp_path).save([Follow(tenant="acme", selector=FOLLOWED)])
    recogniser, engine = FakeRecogniser(), FakeEngine([], [KeyError("State"), ValueError("Pid")])
    followed = following(tmp_path, engine, recogniser)
    find = engine.find

    async def found_later(selector: Selector) -> list[Container]:
        engine.boxes = [] if engine.breaks else [box("late")]  # found once both have passed
        return await find(selector)

    monkeypatch.setattr(engine, "find", found_later)
    await followed.start()
    await asyncio.wait_for(recogniser.all_there.wait(), 10)
    assert engine.breaks == []
    await followed.stop()


async def test_a_file_that_cannot_be_read_is_not_written_over(tmp_path: Path) -> None:
    file = FollowFile(tmp_path)
    file.path.write_text("{")
    followed = following(tmp_path, FakeEngine([], []), FakeRecogniser())
    await followed.start()
    with pytest.raises(WrongState, match="is damaged"):
        await followed.attach(tenant="acme", name="", labels={}, selector=FOLLOWED, rules="")
    assert file.path.read_text() == "{"
    await followed.stop()
