"""Two network namespaces of a test's own with a cable between them, and streams that go from one to the other."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

ADDRESS = "10.231.77.2"  # of the far side; both are in namespaces, so no route of the host is touched
NEAR_ADDRESS = "10.231.77.1"

SENDER = """
import selectors, socket, sys
host, port, streams, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
print("ready", flush=True)
sys.stdin.readline()
left = {socket.create_connection((host, port)): bytes([i]) * size for i in range(streams)}
ready = selectors.DefaultSelector()
for sock in left:
    sock.setblocking(False)
    ready.register(sock, selectors.EVENT_WRITE)
while left:
    for key, _ in ready.select():
        sock = key.fileobj
        left[sock] = left[sock][sock.send(left[sock][:1 << 18]):]
        if not left[sock]:
            ready.unregister(sock)
            sock.shutdown(socket.SHUT_WR)
            del left[sock]
print("sent", flush=True)
sys.stdin.readline()
"""

RECEIVER = """
import hashlib, json, selectors, socket, sys, time
host, streams = sys.argv[1], int(sys.argv[2])
server = socket.create_server((host, 0))
print(server.getsockname()[1], flush=True)
ready, sums, count, began = selectors.DefaultSelector(), {}, 0, None
for _ in range(streams):
    sock, _peer = server.accept()
    ready.register(sock, selectors.EVENT_READ)
    sums[sock] = hashlib.sha256()
while sums:
    for key, _ in ready.select():
        data = key.fileobj.recv(1 << 20)
        began = began or time.monotonic()
        count += len(data)
        if data:
            sums[key.fileobj].update(data)
        else:
            ready.unregister(key.fileobj)
            print(json.dumps(sums.pop(key.fileobj).hexdigest()), flush=True)
print(json.dumps({"bytes": count, "began": began, "ended": time.monotonic()}), flush=True)
"""


@dataclass(frozen=True)
class Cable:
    near: list[str]  # what a command is prefixed with to run there
    far: list[str]


@contextlib.contextmanager
def cable() -> Iterator[Cable]:
    if shutil.which("ip") is None:
        pytest.skip("needs iproute2 (ip) to make network namespaces")
    names = [f"corral-{os.getpid()}-{secrets.token_hex(2)}-{side}" for side in "ab"]
    made: list[str] = []
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            made.append(name)
        near, far = names
        veth = subprocess.run(
            ["ip", "link", "add", "name", "near0", "netns", near, "type", "veth", "peer", "name", "far0", "netns", far],
            check=False,
            capture_output=True,
            text=True,
        )
        if "Unknown device type" in veth.stderr:
            pytest.skip(f"this kernel has no veth: {veth.stderr.strip()}")
        assert veth.returncode == 0, veth.stderr
        for name, device, address in ((near, "near0", NEAR_ADDRESS), (far, "far0", ADDRESS)):
            subprocess.run(["ip", "-n", name, "address", "add", f"{address}/30", "dev", device], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", device, "up"], check=True)
        yield Cable(["ip", "netns", "exec", near], ["ip", "netns", "exec", far])
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], check=True)


@dataclass(frozen=True)
class Received:
    """``began`` and ``ended``: of the first byte and the last, on the clock that all processes of a machine share."""

    size: int
    began: float
    ended: float
    intact: bool

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Receiver:
    """Takes ``streams`` streams and tells what came."""

    def __init__(self, cable: Cable, streams: int = 1) -> None:
        self.streams = streams
        self.process = subprocess.Popen(
            [*cable.far, sys.executable, "-S", "-c", RECEIVER, ADDRESS, str(streams)], stdout=subprocess.PIPE, text=True
        )
        self.port = self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def result(self, size: int) -> Received:
        """Once every stream has ended. ``size``: bytes that each should have brought."""
        sums = sorted(json.loads(self._line()) for _ in range(self.streams))
        wanted = sorted(hashlib.sha256(bytes([i]) * size).hexdigest() for i in range(self.streams))
        said = json.loads(self._line())
        return Received(said["bytes"], said["began"], said["ended"], sums == wanted)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def sender(receiver: Receiver, size: int) -> list[str]:
    """The command that sends ``size`` bytes on each stream, once it has read a line."""
    return [sys.executable, "-S", "-c", SENDER, ADDRESS, receiver.port, str(receiver.streams), str(size)]


def fastest(size: int, rate: int, burst: float) -> float:
    """Seconds that ``size`` bytes take at least, at ``rate`` after a burst of so many seconds of it. A packet may run
    into debt, of 64 KiB, and several at once on several CPUs."""
    return (size - rate * burst - 4 * 65_536) / rate


def together(results: list[Received]) -> float:
    """Seconds from the first byte of any to the last of any."""
    return max(got.ended for got in results) - min(got.began for got in results)
