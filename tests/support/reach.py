"""Whether another user can run what is tested: not in a checkout below root's home, nor with a Python there."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

_REPOSITORY: Final = Path(__file__).resolve().parent.parent.parent
_WHY_NOT: Final = "another user cannot reach this checkout or its Python: clone it outside of root's home"


def skip_unless_others_can_reach_us(*, python: str = sys.executable) -> None:
    """Skips the running test where user "nobody" cannot read this checkout with ``python``."""
    if not _tried(python):
        pytest.skip(_WHY_NOT)


@functools.cache
def _tried(python: str) -> bool:
    if os.geteuid() != 0:  # only root can try to be somebody else
        return True
    code = f"open({str(_REPOSITORY / 'agentd' / '__init__.py')!r}).close()"
    tried = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--", python, "-c", code],
        cwd="/",
        capture_output=True,
        check=False,
        timeout=60,
    )
    return tried.returncode == 0


def skip_unless_user_namespaces() -> None:
    """Skips the running test where the kernel makes none: forbidden by a sysctl, or in a chroot."""
    tried = subprocess.run(["unshare", "--user", "true"], capture_output=True, text=True, check=False, timeout=60)
    if tried.returncode:
        pytest.skip(f"this host gives no user namespace: {tried.stderr.strip()}")
