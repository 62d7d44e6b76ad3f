"""Daemons on hosts that lack something: each in private namespaces of its own, so that nothing of this host changes.

A prelude of shell lines runs as root in a mount namespace that nobody else sees (``mount``, ``umount``), and then
becomes the daemon, in the end with other rights where the test wants those.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agentd.embedded import REPOSITORY, EmbeddedError, Table
from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.support.daemons import LAUNCHER, DaemonUnderTest

NOBODY: Final = 65_534


def hidden(path: str) -> str:
    """Shell: an empty file system over the directory ``path``."""
    return f"mount -t tmpfs -o size=64k none {shlex.quote(path)}"


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: str
    err: str


async def ran(*command: str | Path, environment: Mapping[str, str] | None = None, cwd: Path = REPOSITORY) -> Ran:
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1", **(environment or {})},
        cwd=cwd,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return Ran(process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))


async def agentd(config: Path, *options: str, prelude: str = "") -> Ran:
    """``agentd`` with ``config``, until it ends by itself: for starts that must fail."""
    program = (sys.executable, "-m", "agentd.main", "--config", str(config), *options)
    if prelude:
        return await ran("unshare", "--mount", "--propagation", "private", *_shell(prelude), *program)
    return await ran(*program)


def one_line(ended: Ran) -> str:
    """What a person was told by a start that failed: one line on standard error, and no traceback."""
    assert ended.code != 0, ended.err
    assert "Traceback" not in ended.err
    said = [line for line in ended.err.splitlines() if line.startswith("agentd: ")]
    assert len(said) == 1, ended.err
    assert said[0] == ended.err.splitlines()[-1], "the last line is the one that is read"
    return said[0]


def _shell(prelude: str) -> tuple[str, ...]:
    return ("/bin/sh", "-e", "-c", f'{prelude}\nexec "$@"', "sh")


class BadHost(DaemonUnderTest):
    """A daemon below a prelude. ``rights``: options of setpriv(1), e.g. another user, for the daemon alone.
    ``namespaces``: options of unshare(1) for others than that of mounts."""

    def __init__(
        self,
        directory: Path,
        *,
        prelude: str = "",
        rights: Sequence[str] = (),
        uid: int = 0,
        namespaces: Sequence[str] = (),
        tenants: Mapping[str, Table],
        settings: Mapping[str, Table] | None = None,
    ) -> None:
        super().__init__(directory, tenants=tenants, settings=settings)
        self._uid = uid
        words = ["exec", "unshare", "--mount", "--propagation", "private", *namespaces]
        words += _shell(prelude.replace("@STATE", str(self.state_dir)) or ":")
        words += ["setpriv", *rights] if rights else []
        wrapper = directory / "host.sh"
        wrapper.write_text(f'#!/bin/sh\n{shlex.join(words)} {shlex.quote(sys.executable)} "$@"\n')
        wrapper.chmod(0o755)
        self._wrapper = str(wrapper)
        for path in (directory, self.runtime_dir, self.state_dir, self.config_file):
            os.chown(path, uid, uid)

    async def _spawn(self, notify: Path) -> asyncio.subprocess.Process:
        os.chown(notify, self._uid, self._uid)
        python, self._python = self._python, self._wrapper
        try:
            return await super()._spawn(notify)
        finally:
            self._python = python  # a purge is not to be kept from its work

    @property
    def log(self) -> str:
        return self.log_file.read_text("utf-8", "replace")

    async def missing(self) -> str:
        """HostStatus.missing, one thing a line: each must be one line."""
        missing = (await self.snapshot()).host.missing
        assert not any("\n" in text for text in missing)
        return "\n".join(missing)

    async def inside(self, *command: str) -> Ran:
        """A command in the daemon's mount namespace, as root."""
        return await ran("nsenter", "--mount", "--target", str(self.pid), "--", *command)

    async def corral(self, *words: str) -> Ran:
        return await ran(sys.executable, "-m", "agentd.cli", "--api", self.operator_target, *words)

    async def doctor(self) -> dict[str, Any]:
        """``corral doctor --json``: whatever it found, it answers, and calls the host's faults by their names."""
        ended = await self.corral("doctor", "--json")
        assert "Traceback" not in ended.err
        told: dict[str, Any] = json.loads(ended.out)
        return told

    async def says_everywhere(self, *parts: str) -> None:
        """The same words in the log, in HostStatus (so on the dashboard), in `corral ps` and in `corral doctor`."""
        missing = await self.missing()
        listed = await self.corral("ps")
        assert listed.code == 0
        features = (await self.doctor())["features"]
        details = "\n".join(feature["detail"] for feature in features if not feature["found"])
        for part in parts:
            assert part in missing
            assert part in self.log
            assert part in listed.err
            assert part in details
        assert "Traceback" not in self.log

    async def proves_to_work(self, *, options: Sequence[str] = ()) -> tuple[pb.Call, pb.Call]:
        """Two real calls through corral-exec, of which one fails; both records as the ledger has them."""
        session = await self.open_session("acme")
        good = await self.call(session, "/bin/sh", "-c", "echo here; exec sleep 0.2", options=options)
        assert (good[0], good[1]) == (0, "here\n"), good[2]
        bad = await self.call(session, "/bin/sh", "-c", "exit 3", options=options)
        assert bad[0] == 3
        newest, oldest = (await self.history(session, ended=2)).calls
        assert oldest.outcome.reason == "exited"
        assert newest.outcome.reason == "failed"
        assert os.waitstatus_to_exitcode(newest.outcome.wait_status) == 3
        assert oldest.outcome.wall_seconds >= 0.2
        return oldest, newest

    async def refuses(self, *options: str, field: str) -> str:
        """corral-exec with an intent that this host cannot give: refused in words, and no record of a call."""
        session = await self.open_session("acme", "refused")
        code, out, err = await self.call(session, "/bin/echo", "ran", options=options)
        assert (code, out) == (125, "")
        assert f"intent.{field}" in err
        assert not (await self.history(session)).calls
        assert not [call for call in (await self.snapshot()).calls if call.session_id == session.id]
        return err


@asynccontextmanager
async def bad_host(
    directory: Path,
    prelude: str = "",
    *,
    rights: Sequence[str] = (),
    uid: int = 0,
    namespaces: Sequence[str] = (),
    tenants: Mapping[str, Table] | None = None,
    settings: Mapping[str, Table] | None = None,
) -> AsyncIterator[BadHost]:
    """A running daemon, gone with all that it made at the end."""
    place = directory / "bad"
    place.mkdir()
    daemon = BadHost(
        place,
        prelude=prelude,
        rights=rights,
        uid=uid,
        namespaces=namespaces,
        tenants={"acme": {}} if tenants is None else tenants,
        settings=settings,
    )
    try:
        await daemon.start()
        yield daemon
    finally:
        try:
            await daemon.close()
        except EmbeddedError as err:
            raise AssertionError(str(err)) from err


__all__ = ["LAUNCHER", "NOBODY", "BadHost", "Ran", "agentd", "bad_host", "hidden", "one_line", "ran"]
