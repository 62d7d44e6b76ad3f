"""Coroutines that run at once and become tasks only when they wait."""

from __future__ import annotations

import asyncio

import pytest

from agentd.broker.eager import start


async def test_what_never_waits_has_run_when_start_returns() -> None:
    done: list[int] = []

    async def work() -> None:
        done.append(1)

    assert start(work(), asyncio.get_running_loop()) is None
    assert done == [1]


async def test_what_waits_goes_on_in_a_task() -> None:
    loop = asyncio.get_running_loop()
    gate: asyncio.Future[int] = loop.create_future()
    seen: list[int] = []

    async def work() -> None:
        seen.append(await gate)
        await asyncio.sleep(0)
        seen.append(2)

    task = start(work(), loop)
    assert task is not None
    gate.set_result(1)
    await task
    assert seen == [1, 2]


async def test_a_failure_before_the_first_wait_is_raised_at_once_and_after_it_by_the_task() -> None:
    loop = asyncio.get_running_loop()

    async def at_once() -> None:
        raise ValueError("now")

    async def later() -> None:
        await asyncio.sleep(0)
        raise ValueError("later")

    with pytest.raises(ValueError, match="now"):
        start(at_once(), loop)
    task = start(later(), loop)
    assert task is not None
    with pytest.raises(ValueError, match="later"):
        await task


async def test_a_cancellation_reaches_the_coroutine() -> None:
    loop = asyncio.get_running_loop()
    cleaned: list[str] = []

    async def work() -> None:
        try:
            await loop.create_future()
        except asyncio.CancelledError:
            cleaned.append("cancelled")
            await asyncio.sleep(0)  # undoing may wait, too
            cleaned.append("undone")
            raise

    task = start(work(), loop)
    assert task is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned == ["cancelled", "undone"]


async def test_a_coroutine_may_survive_its_cancellation() -> None:
    loop = asyncio.get_running_loop()

    async def work() -> None:
        try:
            await loop.create_future()
        except asyncio.CancelledError:
            return

    task = start(work(), loop)
    assert task is not None
    task.cancel()
    await task
