"""For tests of real cgroups: a tree of the test's own, and children that wait until they are told to go."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator

import pytest

from controller.cgroup import CgroupHost, Group, Tree, detect
from controller.model import SessionId, TenantId, new_call_id, new_session_id, new_tenant_id


def root_name() -> str:
    return f"corral-test-{os.getpid()}-{secrets.token_hex(4)}"


@contextlib.contextmanager
def temporary_tree(host: CgroupHost | None = None) -> Iterator[Tree]:
    """A prepared tree, removed with all of its processes at the end."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes cgroups")
    tree = Tree(host or detect(), root_name())
    try:
        tree.prepare()
        yield tree
    finally:
        tree.remove_all(kill=True)


@contextlib.contextmanager
def child(code: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs ``code`` once it has read a line: write it with ``go``. Reaped at the end."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", f"import sys\nsys.stdin.readline()\n{code}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def line(process: subprocess.Popen[str]) -> str:
    """The child's next line."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


class Session:
    """A tenant and a session, made; and calls in it."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.tenant_id: TenantId = new_tenant_id()
        self.session_id: SessionId = new_session_id()
        self.tenant = tree.tenant(self.tenant_id)
        self.group = tree.session(self.tenant_id, self.session_id)
        self.tenant.create()
        self.group.create()

    def call(self) -> Group:
        return self.tree.call(self.tenant_id, self.session_id, new_call_id())

    def agent(self) -> Group:
        return self.tree.agent(self.tenant_id, self.session_id)
