"""For tests on this machine's kernel: why one is skipped, and daemons to test with."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.daemons import DaemonFactory, missing_for_daemon


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests below this directory need root: without, each is skipped and counted, with the reason."""
    if os.geteuid() == 0:
        return
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.skip(reason="needs root: cgroups and eBPF of this machine"))


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A temporary directory whose path leaves room for a socket's name (107 bytes), open for other users to pass."""
    path = Path(tempfile.mkdtemp(prefix="corral-test-", dir="/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def daemons(short_tmp: Path) -> AsyncIterator[DaemonFactory]:
    """Starts real daemons (tests/support/daemons.py); ends and purges all of them when the test is over."""
    missing = missing_for_daemon()
    if missing:
        pytest.skip(missing)
    factory = DaemonFactory(short_tmp)
    yield factory
    await factory.close()
