"""What the gateway adds to a turn, and what following the tier costs: against the same engine without a gateway.

The gateway is a real daemon's, its process and the daemon's books included; agents speak TCP. Two engines: a stand-in
that sends tokens on a beat (what is added stands out), and the real llama.cpp server (what is lost where the engine
needs the machine, too). Direct and through the gateway take turns, stream by stream and round by round.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import sys
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from agentd.embedded import Table
from agentd.gateway import Upstream
from tests.bench import tier_sampling
from tests.bench.harness import BenchError, Context, corral, ended, line_of, start
from tests.bench.procstat import read
from tests.bench.result import REPOSITORY, Figure, Result
from tests.bench.stats import median
from tests.support import tiny_gguf
from tests.support.llamacpp import llamacpp

STREAMS: Final = 16
TOKENS: Final = 96  # of each stream
BEAT: Final = 0.01  # seconds between two tokens of the stand-in: 1,600 a second in all
_numbers: Final = itertools.count(1000)
PROMPT: Final = "Say what the file holds, and then what it lacks. " * 3


async def measure(context: Context) -> Result:
    result = Result(runs=context.count(full=12, quick=2))
    model = await asyncio.to_thread(tiny_gguf.write, context.directory / "tiny.gguf")
    async with contextlib.AsyncExitStack() as stack:
        stand_in = await stack.enter_async_context(_stand_in())
        # a slot for each stream; what it computes of a prompt is the same on both ways
        real = await stack.enter_async_context(llamacpp(model, None, slots=STREAMS, context=STREAMS * 1024))
        for engine, url in (("stand-in", stand_in), ("llama.cpp", real)):
            await _engine(context, result, engine, url)
    _figures(result)
    if result.notes:
        return result
    await tier_sampling.sampling(context, result, runs=1, seconds=10.0 if context.quick else 60.0)
    return result


async def _engine(context: Context, result: Result, engine: str, url: str) -> None:
    port = _free_port()
    settings: dict[str, Table] = {
        "engines": {"local": {"url": url, "kind": "llamacpp"}},
        "gpu": {"enabled": "off"},
        "gateway": {"listen": f"127.0.0.1:{port}"},
    }
    async with corral(context, settings=settings) as host:
        result.mode = host.mode
        token = host.environment["CORRAL_TOKEN"]
        ways = {
            "direct": Upstream(url, engine="direct"),
            "gateway": Upstream(f"http://127.0.0.1:{port}", engine="gateway", api_key=token),
        }
        for client in ways.values():  # connections are made, the engine is warm
            await _stream(client, number=0)
        for run in range(result.runs):
            for sample in range(20):
                for way in _turn_about(ways, sample):
                    first, _ = await _stream(ways[way], tokens=2, number=0)
                    result.rows.append(
                        {"kind": "ttft", "engine": engine, "way": way, "run": run, "sample": sample, "ms": first * 1e3}
                    )
            for way in _turn_about(ways, run):
                rate, first = await _together(ways[way])
                result.rows.append(
                    {"kind": "throughput", "engine": engine, "way": way, "run": run, "rate": rate, "ms": first * 1e3}
                )
            context.say(f"{engine}: {run + 1} of {result.runs} rounds")
        pid = host.daemon.pid
        if pid is not None:
            result.rows.append({"kind": "daemon", "engine": engine, "cpu_seconds": read(pid).cpu_seconds})
        for client in ways.values():
            client.close()


def _turn_about(ways: dict[str, Upstream], number: int) -> list[str]:
    return sorted(ways, reverse=bool(number % 2))


async def _together(client: Upstream) -> tuple[float, float]:
    """Tokens a second of all streams at once, and the median time to a first token in them."""
    clock = asyncio.get_running_loop().time
    began = clock()
    found = await asyncio.gather(*(_stream(client) for _ in range(STREAMS)))
    return sum(count for _, count in found) / (clock() - began), median([first for first, _ in found])


async def _stream(client: Upstream, *, tokens: int = TOKENS, number: int | None = None) -> tuple[float, int]:
    """Seconds to the first token, and how many came.

    ``number`` None: the prompt begins as no other did, so that a cache helps neither way. Else it is found in the cache
    both ways: what is added to a first token stands out when the engine does little for it.
    """
    body = {
        "prompt": f"{next(_numbers) if number is None else number} {PROMPT}",
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "logit_bias": [[token, False] for token in range(tiny_gguf.FIRST_LETTER)],
    }
    clock = asyncio.get_running_loop().time
    raw = msgspec.json.encode(body)
    began, first, count = clock(), None, 0
    async with client.exchange("POST", "/v1/completions", [], raw) as response:
        if response.head.status != 200:
            raise BenchError(f"a stream was answered with status {response.head.status}")
        while part := await response.read():
            if first is None:
                first = clock() - began
            count += part.count(b'"text":"')
    if first is None or count < tokens:
        raise BenchError(f"a stream of {tokens} tokens had {count}")
    return first, count


def _figures(result: Result) -> None:
    def values(kind: str, engine: str, way: str, key: str) -> list[float]:
        return [
            float(row[key] or 0)
            for row in result.rows
            if (row["kind"], row["engine"], row.get("way")) == (kind, engine, way)
        ]

    for engine, name in (("llama.cpp", ""), ("stand-in", "_stand_in")):
        direct, through = (values("ttft", engine, way, "ms") for way in ("direct", "gateway"))
        added = [one - other for one, other in zip(through, direct, strict=True)]  # each right beside the other
        result.summary[f"ttft_added_p50_ms{name}"] = Figure(value=median(added), unit="ms", at_most=2.0, samples=added)
        result.summary[f"ttft_direct_p50_ms{name}"] = Figure(value=median(direct), unit="ms", samples=direct)
        # Each round has both ways, one right after the other: what the machine does meanwhile hits both.
        pairs = zip(
            values("throughput", engine, "direct", "rate"), values("throughput", engine, "gateway", "rate"), strict=True
        )
        losses = [1 - gateway / plain for plain, gateway in pairs]
        result.summary[f"throughput_loss{name}"] = Figure(
            value=median(losses), unit="share", at_most=0.03, samples=losses
        )
        result.summary[f"tokens_per_second{name}"] = Figure(
            value=median(values("throughput", engine, "gateway", "rate")), unit="tokens/s"
        )


@contextlib.asynccontextmanager
async def _stand_in() -> AsyncIterator[str]:
    process = await start(
        (sys.executable, "-m", "tests.bench.stream_server", str(BEAT)),
        environment={"PYTHONPATH": str(REPOSITORY)},
        cwd=REPOSITORY,
    )
    try:
        yield await line_of(process)
    finally:
        await ended(process)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
