"""Leftovers: by configuration, and by pressure."""

from __future__ import annotations

from typing import Literal

import pytest

from controller.policy.leftovers import judge

MIB = 1 << 20


@pytest.mark.parametrize(
    ("configured", "usage", "unused", "adopt"),
    [
        ("adopt", 500 * MIB, 0, True),
        ("adopt", 500 * MIB, -1, False),
        ("adopt", 15 * MIB, -1, True),
        ("adopt", 0, -500 * MIB, True),
        ("kill", 0, 500 * MIB, False),
    ],
)
def test_who_stays(configured: Literal["adopt", "kill"], usage: int, unused: int, adopt: bool) -> None:
    verdict = judge(configured, usage=usage, unused=unused)
    assert verdict.adopt is adopt
    assert bool(verdict.why) is not adopt
