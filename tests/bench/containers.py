"""A container in which ``docker exec`` can start a command: of the host's Docker Engine, or of one of our own."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import secrets
import shutil
import tarfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

from agentd.embedded import cgroup_mounts
from tests.bench.harness import Context

READY_WITHIN: Final = 120.0  # seconds until a Docker Engine answers; in an emulated guest it takes 15 and more


class Unavailable(Exception):
    """Why there is no container on this machine."""


@contextlib.asynccontextmanager
async def container(context: Context) -> AsyncIterator[list[str]]:
    """The words that run a program which does nothing in a running container. Raises Unavailable."""
    docker = shutil.which("docker")
    if docker is None:
        raise Unavailable("no docker command here")
    true, hold = context.compile("nothing"), context.compile("hold")
    name = f"corral-bench-{os.getpid()}-{secrets.token_hex(3)}"
    async with _engine(context, docker, name) as client:
        await _done([*client, "import", "-", name], given=_image(true, hold))
        try:
            # unconfined: a kernel may have AppArmor where its tools, which load Docker's profile, are not installed
            fixed = ("--detach", "--network=none", "--security-opt=apparmor=unconfined", f"--name={name}")
            await _done([*client, "run", *fixed, name, "/hold"])
            yield [*client, "exec", name, "/true"]
        finally:
            # our own names only; an engine of our own is removed with all that it has
            for words in (["rm", "--force", name], ["rmi", "--force", name]):
                with contextlib.suppress(Unavailable):
                    await _done([*client, *words])


@contextlib.asynccontextmanager
async def _engine(context: Context, docker: str, name: str) -> AsyncIterator[list[str]]:
    with contextlib.suppress(Unavailable):
        await _done([docker, "info"])
        yield [docker]
        return
    dockerd = shutil.which("dockerd")
    if dockerd is None:
        raise Unavailable("no Docker Engine runs here, and dockerd is not installed")
    if os.geteuid() != 0:
        raise Unavailable("no Docker Engine runs here, and only root may start one")
    home = context.directory / "docker"
    home.mkdir()
    client = [docker, "--host", f"unix://{home}/docker.sock"]
    # on v2 the cgroup driver is systemd's, which has a slice of its own for containers and takes no path as a parent
    parent = [] if Path("/sys/fs/cgroup/cgroup.controllers").exists() else [f"--cgroup-parent=/{name}"]
    with (home / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(dockerd, "--iptables=false", "--ip6tables=false", "--bridge=none", *parent),
            *(f"--data-root={home}/data", f"--exec-root={home}/exec", f"--pidfile={home}/pid"),
            *("-H", f"unix://{home}/docker.sock"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        await _answers(process, client, home / "log")
        yield client
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 20)
        except TimeoutError:
            process.kill()
            await process.wait()
        _remove_groups(name)


async def _answers(process: asyncio.subprocess.Process, client: Sequence[str], log: Path) -> None:
    deadline = asyncio.get_running_loop().time() + READY_WITHIN
    while True:
        try:
            await _done([*client, "info"])
        except Unavailable:
            if process.returncode is not None or asyncio.get_running_loop().time() > deadline:
                words = log.read_text("utf-8", "replace").strip().splitlines()[-3:]
                raise Unavailable(f"dockerd did not become ready: {' | '.join(words)[-400:]}") from None
            await asyncio.sleep(0.2)
        else:
            return


def _remove_groups(name: str) -> None:
    """The parent group that our own engine made, in each hierarchy; its containers' groups go with them."""
    for mount in cgroup_mounts():
        for directory, _, _ in os.walk(mount / name, topdown=False):
            with contextlib.suppress(OSError):
                Path(directory).rmdir()


def _image(*programs: Path) -> bytes:
    """An image of static programs: each at the root, by its name; "nothing" is called "true"."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for program in programs:
            data = program.read_bytes()
            entry = tarfile.TarInfo("true" if program.name == "nothing" else program.name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


async def _done(command: Sequence[str], given: bytes = b"") -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    out, _ = await process.communicate(given)
    if process.returncode:
        words = out.decode("utf-8", "replace").strip()[-300:]
        raise Unavailable(f"{' '.join((command[0], *command[-2:]))} ended with {process.returncode}: {words}")
