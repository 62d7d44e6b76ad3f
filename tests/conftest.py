"""For every suite: nothing that a test starts may outlive the run.

Every process of the run inherits CORRAL_TEST_RUN; the names of cgroup roots and pin directories that tests make begin
with ``corral-test-<pid of pytest>-``. At the end of the run whatever is left of either is named, ended and reported as
an error.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest

from tests.support.leaks import RUN_VARIABLE, Leaks


@pytest.fixture(scope="session", autouse=True)
def no_leaks() -> Iterator[Leaks]:
    """Fails the run, naming what is left, when processes, cgroups or pins outlive it."""
    run = f"{os.getpid()}-{secrets.token_hex(4)}"
    outer = os.environ.get(RUN_VARIABLE)  # a test that runs pytest has a run of its own inside ours
    os.environ[RUN_VARIABLE] = run
    leaks = Leaks(run=run, prefix=f"corral-test-{os.getpid()}-")
    try:
        yield leaks
        found = leaks.find()
        if found:
            leaks.remove()
            pytest.fail("left behind by this run, and removed now:\n  " + "\n  ".join(found), pytrace=False)
    finally:
        if outer is None:
            del os.environ[RUN_VARIABLE]
        else:
            os.environ[RUN_VARIABLE] = outer
