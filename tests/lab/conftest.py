"""Tests that only make sense in a guest of the lab: they install services and change the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Elsewhere each is skipped and counted, with what to run instead."""
    if os.environ.get("CORRAL_LAB") == "1":
        return
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.skip(reason="runs in a guest of the lab: scripts/test --lab"))
