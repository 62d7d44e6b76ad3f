"""`corral doctor` where no daemon answers: on every kind of host it gives its whole table, and no traceback."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.host.badhosts_support import hidden, ran
from tests.host.bpf_support import V2
from tests.support.reach import skip_unless_user_namespaces

pytestmark = pytest.mark.host


@pytest.mark.parametrize(
    ("prelude", "namespaces", "name", "words"),
    [
        (hidden("/sys/kernel/btf"), (), "btf", ("No such",)),
        ("umount /sys/fs/bpf", (), "bpffs", ("mount -t bpf",)),
        (hidden("/proc/pressure"), (), "psi", ("psi=1",)),
        (f"umount -l {V2}", (), "cgroup", ("no cgroup v2 hierarchy is mounted",)),
        (f"mount -o remount,bind,ro {V2}", (), "cgroup", ("read-only",)),
        (hidden("/sys/fs/cgroup"), (), "cgroup", ("no cgroup v2 hierarchy is mounted",)),
        ("mount --bind /dev/null /proc/meminfo", (), "meminfo", ("no MemAvailable",)),
        (":", ("--user", "--map-root-user"), "tp_btf", ("not permitted",)),
    ],
    ids=["btf", "bpffs", "psi", "no-v2", "read-only", "no-cgroups", "meminfo", "user-namespace"],
)
async def test_the_whole_table(
    short_tmp: Path, prelude: str, namespaces: tuple[str, ...], name: str, words: tuple[str, ...]
) -> None:
    if "--user" in namespaces:
        skip_unless_user_namespaces()
    place = ("unshare", "--mount", "--propagation", "private", *namespaces)
    program = (sys.executable, "-m", "agentd.cli", "doctor", "--json")
    environment = {"CORRAL_API": f"unix:{short_tmp}/none.sock"}
    ended = await ran(*place, "/bin/sh", "-ec", f'{prelude}\nexec "$@"', "sh", *program, environment=environment)
    assert "Traceback" not in ended.err
    told: dict[str, Any] = json.loads(ended.out)
    lines = {feature["name"]: feature for feature in told["features"]}
    assert len(lines) >= 20
    line = lines[name]
    assert not line["found"]
    assert line["cost"]
    assert line["remedy"]
    for word in words:
        assert word.lower() in " ".join((line["detail"], line["remedy"])).lower()
    assert ended.code == (1 if told["essential_missing"] else 0)
    assert (name in told["essential_missing"]) == (name == "cgroup")
