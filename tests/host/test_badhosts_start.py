"""Starts that must fail, each with one line that has the cause and the remedy, and with nothing left behind."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentd.embedded import REPOSITORY, Table, cgroup_mounts
from tests.host.badhosts_support import NOBODY, BadHost, agentd, bad_host, hidden, one_line, ran
from tests.support.daemons import missing_for_daemon

pytestmark = [pytest.mark.host, pytest.mark.skipif(bool(missing_for_daemon()), reason=missing_for_daemon() or "-")]

EX_CONFIG = 78


@pytest.fixture
async def running(short_tmp: Path) -> AsyncIterator[BadHost]:
    async with bad_host(short_tmp) as daemon:
        yield daemon


@pytest.mark.parametrize("shared", ["tree", "broker", "operators", "state", "pins"])
async def test_a_second_daemon(running: BadHost, short_tmp: Path, shared: str) -> None:
    """Whatever it is that two would share; the first one goes on, and works."""
    settings: dict[str, dict[str, Table]] = {
        "tree": {"cgroup": {"root": running.name}},
        "broker": {"broker": {"socket": str(running.broker_socket)}},
        "operators": {"api": {"operator_socket": str(running.operator_socket)}},
        "state": {"daemon": {"state_dir": str(running.state_dir)}},
        "pins": {"bpf": {"pin_dir": str(running.pin_dir)}},
    }
    words = {
        "tree": "another cgroup.root",
        "broker": "choose another path",
        "operators": "another daemon",
        "state": "set a daemon.state_dir for this one",
        "pins": "a bpf.pin_dir of its own",
    }
    place = short_tmp / "second"
    place.mkdir()
    second = BadHost(place, tenants={"acme": {}}, settings=settings[shared])
    first_has = running.leftovers()
    text = one_line(await agentd(second.config_file))
    assert "another daemon" in text
    assert words[shared] in text
    assert running.leftovers() == first_has
    if shared not in ("tree", "pins"):
        assert not second.leftovers()
    if shared == "pins":
        purged = await agentd(second.config_file, "--purge")
        assert "another daemon's programs" in one_line(purged)
    good, _ = await running.proves_to_work(options=("--memory", "16M:64M"))
    assert good.outcome.usage.faults > 0  # its programs still count
    assert not await running.missing()


LOCKS = """
import fcntl, os, sys
held = []
for top in sys.argv[1:]:
    for path in [top, *(os.path.join(d, f) for d, _, files in os.walk(top) for f in files)]:
        try:
            held.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
            fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pass
print(len(held), flush=True)
sys.stdin.read()
"""


async def test_no_user_can_keep_the_daemon_from_starting(running: BadHost) -> None:
    """What holds the tree, the pins, the state and the sockets for one daemon can be held by no other user."""
    await running.stop()
    tree = next(mount / running.name for mount in cgroup_mounts() if (mount / running.name / "cgroup.events").exists())
    places = (tree, running.pin_dir, running.runtime_dir, running.state_dir)
    running.directory.chmod(0o755)
    rights = ("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups")
    hostile = await asyncio.create_subprocess_exec(
        *(*rights, "/usr/bin/python3", "-c", LOCKS, *map(str, places)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert hostile.stdout is not None
    try:
        assert int(await hostile.stdout.readline()) > 0  # it could open something
        await running.start()
        await running.proves_to_work()
    finally:
        hostile.kill()
        await hostile.wait()


async def start_of(directory: Path, **settings: Table) -> str:
    daemon = BadHost(directory, tenants={"acme": {}}, settings=settings)
    try:
        text = one_line(await agentd(daemon.config_file))
        assert not daemon.leftovers()
        return text
    finally:
        await daemon.close()


async def test_runtime_directory_that_cannot_be_made(short_tmp: Path) -> None:
    text = await start_of(short_tmp, daemon={"runtime_dir": "/proc/corral/run"})
    assert "daemon.runtime_dir /proc/corral/run cannot be made" in text
    assert "set daemon.runtime_dir" in text


async def test_runtime_directory_without_room_for_sockets(short_tmp: Path) -> None:
    """/sys takes no files, whoever asks: the tree and the programs that were made before are taken down again."""
    text = await start_of(short_tmp, daemon={"runtime_dir": "/sys/kernel"})
    assert "/sys/kernel/operator.sock" in text


async def test_runtime_directory_that_others_can_write(short_tmp: Path) -> None:
    open_to_all = short_tmp / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    text = await start_of(short_tmp, daemon={"runtime_dir": str(open_to_all)})
    assert "others could put a socket in its place" in text
    assert "take away others' write permission" in text


@pytest.mark.parametrize(
    ("settings", "line", "words"),
    [
        ({"daemon": {"runtime_dir": "/tmp/" + "x" * 100}}, "broker.socket", "at most 107"),
        ({"api": {"operator_group": "corral-no-such-group"}}, "api.operator_group", "no such group on this host"),
        ({"daemon": {"mode": "enforced"}}, "daemon.mode", "enforce"),
        ({"call": {"pids_max": -5}}, "call.pids_max", "-5"),
        ({"demon": {"mode": "auto"}}, "demon", "daemon"),
    ],
    ids=["long-socket", "no-group", "no-such-mode", "out-of-range", "misspelt-table"],
)
async def test_wrong_configuration(short_tmp: Path, settings: dict[str, Table], line: str, words: str) -> None:
    daemon = BadHost(short_tmp, tenants={"acme": {}}, settings=settings)
    ended = await agentd(daemon.config_file)
    assert ended.code == EX_CONFIG
    assert "Traceback" not in ended.err
    (said,) = [text for text in ended.err.splitlines() if line in text]
    assert words in said
    assert str(daemon.config_file) in said
    if line != "broker.socket":  # which the file does not name: it follows from another key
        number = int(said.split(f"{daemon.config_file}:", 1)[1].split(":", 1)[0])
        key = line.rpartition(".")[2]
        assert key in daemon.config_file.read_text("utf-8").splitlines()[number - 1]
    assert not daemon.leftovers()


async def test_no_configuration_file(short_tmp: Path) -> None:
    ended = await agentd(short_tmp / "none.toml")
    assert ended.code == EX_CONFIG
    assert "none.toml: no such file" in one_line(ended)


async def test_a_defect_is_told_in_one_line(short_tmp: Path) -> None:
    """A part that is not installed is no start error of ours; still no traceback reaches a person."""
    daemon = BadHost(short_tmp, tenants={"acme": {}})
    broken = short_tmp / "broken"
    broken.mkdir()
    (broken / "notify.py").write_text("raise RuntimeError('this file is damaged')\n")
    prelude = f"mount --bind {broken}/notify.py {REPOSITORY}/agentd/notify.py"
    try:
        ended = await agentd(daemon.config_file, prelude=prelude)
        assert "internal error: RuntimeError: this file is damaged" in one_line(ended)
        assert not daemon.leftovers()
    finally:
        await daemon.close()


async def test_no_launcher(short_tmp: Path) -> None:
    """`corral run` and `corral doctor` name what is not built, and how to build it."""
    corral = (sys.executable, "-m", "agentd.cli")
    place = ("unshare", "--mount", "--propagation", "private", "/bin/sh", "-ec")
    script = f'{hidden(str(REPOSITORY / "agentd/launcher"))}; exec "$@"'
    environment = {"PATH": "/usr/bin:/bin", "CORRAL_API": f"unix:{short_tmp}/none.sock"}
    run = await ran(*place, script, "sh", *corral, "run", "--", "true", environment=environment)
    assert run.code not in (0, 1)
    assert run.err.startswith("corral: corral-exec is not in")
    assert "scripts/build-launcher" in run.err
    assert run.err.count("\n") == 1
    doctor = await ran(*place, script, "sh", *corral, "doctor", environment=environment)
    assert doctor.code == 1
    assert "scripts/build-launcher" in doctor.out
    assert "essential and missing: corral-exec" in doctor.err


async def test_unprivileged_purge_says_so(running: BadHost) -> None:
    rights = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    running.config_file.chmod(0o644)
    ended = await ran(*rights, sys.executable, "-m", "agentd.main", "--config", running.config_file, "--purge")
    assert "Traceback" not in ended.err
    assert running.leftovers()
