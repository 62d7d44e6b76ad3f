"""A Docker Engine of the tests' own, with an image of busybox that comes from nowhere: no hub, no network.

    async with docker_engine(directory) as docker:
        await docker.run("box", "sleep", "1000", options=("--memory=64m",))

The engine's groups, its data and its processes go at the end. ``missing_for_docker`` says why there can be none here.
"""

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

READY_WITHIN: Final = 60.0  # seconds
APPLETS: Final = ("sh", "sleep", "true", "false", "cat", "dd", "ps", "head", "id", "kill", "mkdir", "mknod", "setsid")


def missing_for_docker() -> str:
    if os.geteuid() != 0:
        return "a Docker Engine needs root"
    for program, package in (
        ("dockerd", "docker.io"),
        ("docker", "docker.io or docker-cli"),
        ("busybox", "busybox-static"),
    ):
        if shutil.which(program) is None:
            return f"{program} is not installed: apt-get install {package} (scripts/test --docker)"
    return ""


class DockerError(Exception):
    pass


class Docker:
    def __init__(self, socket: Path, image: str) -> None:
        self.url: Final = f"unix://{socket}"
        self.image: Final = image
        self._words = ["docker", "--host", self.url]

    async def __call__(self, *words: str, given: bytes = b"") -> str:
        """Its output. Raises DockerError with it when the status is not 0."""
        status, out = await self.status(*words, given=given)
        if status:
            raise DockerError(f"docker {' '.join(words[:3])}: {status}: {out[-400:]}")
        return out.strip()

    async def status(self, *words: str, given: bytes = b"") -> tuple[int, str]:
        process = await self.start(*words)
        out, _ = await process.communicate(given)
        assert process.returncode is not None
        return process.returncode, out.decode("utf-8", "replace")

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self._words,
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )

    async def run(self, name: str, *command: str, options: Sequence[str] = ()) -> str:
        """A container in the background; its id."""
        # unconfined: a kernel may have AppArmor where its tools, which load Docker's profile, are not installed
        fixed = ("--detach", "--network=none", "--security-opt=apparmor=unconfined", f"--name={name}")
        out = await self("run", *fixed, *options, self.image, *command)
        return out.splitlines()[-1]


@contextlib.asynccontextmanager
async def docker_engine(directory: Path) -> AsyncIterator[Docker]:
    name = f"corral-docker-{os.getpid()}-{secrets.token_hex(3)}"
    home = directory / "docker"
    home.mkdir()
    # on v2 under systemd the driver is systemd's, which makes a scope for each container in its own slice
    parent = [] if Path("/sys/fs/cgroup/cgroup.controllers").exists() else [f"--cgroup-parent=/{name}"]
    with (home / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *("dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none", *parent),
            *(f"--data-root={home}/data", f"--exec-root={home}/exec", f"--pidfile={home}/pid"),
            *("-H", f"unix://{home}/docker.sock"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    docker = Docker(home / "docker.sock", name)
    try:
        await _ready(docker, process, home / "log")
        await docker("import", "-", name, given=_image())
        yield docker
        left = (await docker("ps", "--all", "--quiet")).split()
        if left:
            await docker("rm", "--force", *left)
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 30)
        except TimeoutError:
            process.kill()
            await process.wait()
        for mount in cgroup_mounts():
            for path, _, _ in os.walk(mount / name, topdown=False):
                with contextlib.suppress(OSError):
                    Path(path).rmdir()


async def _ready(docker: Docker, process: asyncio.subprocess.Process, log: Path) -> None:
    deadline = asyncio.get_running_loop().time() + READY_WITHIN
    while (await docker.status("info"))[0]:
        if process.returncode is not None or asyncio.get_running_loop().time() > deadline:
            raise DockerError("dockerd did not become ready: " + log.read_text("utf-8", "replace")[-600:])
        await asyncio.sleep(0.2)


def _image() -> bytes:
    busybox = shutil.which("busybox")
    if busybox is None:
        raise DockerError("busybox is not installed")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        data = Path(busybox).read_bytes()
        entry = tarfile.TarInfo("bin/busybox")
        entry.size, entry.mode = len(data), 0o755
        archive.addfile(entry, io.BytesIO(data))
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
    return buffer.getvalue()
