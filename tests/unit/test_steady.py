"""The interpreter's settings of a running daemon."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from agentd.steady import SWITCH_INTERVAL, steady


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """As they were, afterwards: they are the whole process's."""
    interval = sys.getswitchinterval()
    yield
    sys.setswitchinterval(interval)
    gc.unfreeze()


def test_what_a_start_made_is_not_looked_through_again() -> None:
    before = gc.get_freeze_count()
    steady()
    assert gc.get_freeze_count() > before + 1_000
    assert gc.isenabled()  # what comes later is


def test_a_thread_that_computes_gives_way_soon() -> None:
    assert sys.getswitchinterval() > SWITCH_INTERVAL
    steady()
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL)
