"""What a call gets of its egress rate: TCP streams over a cable between two network namespaces, at several limits.

The first burst is left out: what counts is the rate from the second second on, as the receiver sees it (payload, while
the limit is of packets with their headers: 0.1 % of it at the veth's segments of 64 KiB). Beside it how evenly it came:
the share of 50 ms slices in which nothing did.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Final

from agentd.proto.corral.v1 import corral_pb2 as pb
from tests.bench.harness import BenchError, Context, Corral, corral, line_of, tell
from tests.bench.result import Figure, Result, Row
from tests.host.net_tools import ADDRESS, Cable, cable

MB: Final = 1_000_000
RATES: Final = (MB, 10 * MB, 100 * MB)
STREAMS: Final = (1, 8)
SLICE: Final = 0.05  # seconds
_SKIPPED: Final = 1.0  # seconds at the beginning: the first burst

_SENDER: Final = """
import selectors, socket, sys
host, port, streams = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
ready, block = selectors.DefaultSelector(), bytes(1 << 16)
for _ in range(streams):
    sock = socket.create_connection((host, port))
    sock.setblocking(False)
    ready.register(sock, selectors.EVENT_WRITE)
try:
    while True:
        for key, _ in ready.select():
            try:
                key.fileobj.send(block)
            except BlockingIOError:
                pass
except (BrokenPipeError, ConnectionResetError):
    pass
"""
_RECEIVER: Final = """
import json, selectors, socket, sys, time
host, streams, seconds, width = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
server = socket.create_server((host, 0))
print(server.getsockname()[1], flush=True)
ready = selectors.DefaultSelector()
for _ in range(streams):
    sock, _peer = server.accept()
    ready.register(sock, selectors.EVENT_READ)
began, slices = time.monotonic(), [0] * int(seconds / width)
while (at := int((time.monotonic() - began) / width)) < len(slices):
    for key, _ in ready.select(width):
        slices[at] += len(key.fileobj.recv(1 << 20))
print(json.dumps(slices), flush=True)
"""


async def measure(context: Context) -> Result:
    runs, seconds = context.count(full=5, quick=1), 3.0 if context.quick else 6.0
    result = Result(runs=runs)
    try:
        with cable() as made:
            async with corral(context) as daemon:
                result.mode = daemon.mode
                rig = _Rig(context, daemon, made, runs, seconds)
                for rate in RATES:
                    for streams in STREAMS:
                        await _cell(rig, result, rate, streams)
    except (OSError, subprocess.CalledProcessError) as err:
        raise BenchError(
            f"no network namespaces with a cable between them: {err}; install iproute2, run as root"
        ) from err
    return result


@dataclass(frozen=True, slots=True)
class _Rig:
    context: Context
    daemon: Corral
    cable: Cable
    runs: int
    seconds: float


async def _cell(rig: _Rig, result: Result, rate: int, streams: int) -> None:
    shares: list[float] = []
    still: list[float] = []
    for run in range(rig.runs):
        rig.context.say(f"{rate // MB} MB/s, {streams} streams, run {run + 1} of {rig.runs}")
        slices = await _stream(rig, rate, streams)
        counted = slices[int(_SKIPPED / SLICE) :]
        share = sum(counted) / (len(counted) * SLICE) / rate
        empty = counted.count(0) / len(counted)
        row: Row = {"rate": rate, "streams": streams, "run": run, "share": round(share, 4), "still": round(empty, 3)}
        result.rows.append(row)
        shares.append(share)
        still.append(empty)
    name = f"{rate // MB}mb_{streams}"
    result.summary[f"share_{name}"] = Figure(value=_middle(shares), unit="", at_least=0.9, samples=shares)
    result.summary[f"excess_{name}"] = Figure(value=max(shares), unit="", at_most=1.1)
    result.summary[f"still_{name}"] = Figure(value=_middle(still), unit="", samples=still)


async def _stream(rig: _Rig, rate: int, streams: int) -> list[int]:
    """Bytes of each slice, from the first connection on."""
    daemon, made, seconds = rig.daemon, rig.cable, rig.seconds
    receiver = await asyncio.create_subprocess_exec(
        *made.far,
        sys.executable,
        "-S",
        "-c",
        _RECEIVER,
        ADDRESS,
        str(streams),
        str(seconds),
        str(SLICE),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        port = await line_of(receiver)
        words = (*made.near, sys.executable, "-S", "-c", _SENDER, ADDRESS, port, str(streams))
        process = await daemon.start(*words)
        try:
            if await line_of(process) != "ready":
                raise BenchError(f"the sender does not start; agentd's log ends with:\n{daemon.daemon.log_tail()}")
            (call,) = (await daemon.snapshot()).calls
            request = pb.SetLimitsRequest(target=call.id, limits=pb.Limits(egress_bytes_per_second=rate))
            await daemon.client.call(daemon.client.operator.SetLimits, request)
            await tell(process)
            slices: list[int] = json.loads(await line_of(receiver, within=seconds + 20))
            return slices
        finally:
            await daemon.kill(daemon.session_id)
            await process.wait()
    finally:
        if receiver.returncode is None:
            receiver.kill()
        await receiver.wait()


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
