"""For tests on this machine's kernel: why one is skipped, and daemons to test with."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.host import bpf_support
from tests.support.daemons import DaemonFactory, missing_for_daemon


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests below this directory need root: without, each is skipped and counted, with the reason."""
    if os.geteuid() == 0:
        return
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.skip(reason="needs root: cgroups and eBPF of this machine"))


@pytest.fixture(scope="session", autouse=True)
def signals_of_a_terminal() -> Iterator[None]:
    """A shell ignores SIGINT and SIGQUIT for what it runs in the background, and whatever that starts inherits it: a
    daemon, a launcher or a call that is to be ended by one would not be."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGQUIT)}
    if before[signal.SIGINT] == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if before[signal.SIGQUIT] == signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The helper that tests of the kernel side put into groups; the eBPF objects are built, too."""
    bpf_support.need_root()
    bpf_support.build_objects()
    return bpf_support.build(tmp_path_factory.mktemp("bpf"))


@pytest.fixture
def host(program: Path) -> Iterator[bpf_support.Host]:
    """Groups, helpers and pins for one test of the kernel side."""
    with bpf_support.host(program) as made:
        yield made


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
