"""A stand-in for an engine: ``python -m tests.bench.stream_server SECONDS`` streams as many tokens as a request's
``max_tokens``, one each SECONDS, to any number of requests at once; prints its URL. Ends with its stdin."""

from __future__ import annotations

import asyncio
import sys
from typing import Final

import msgspec

_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
# as long as llama.cpp's
_TOKEN: Final = (
    b'data: {"choices":[{"text":"a","index":0,"logprobs":null,"finish_reason":null}],"created":1795538365,'
    b'"model":"tiny.gguf","system_fingerprint":"b0-unknown","object":"text_completion",'
    b'"id":"chatcmpl-k6tW8KvKFcw26vVzqhmRdslSMdgq7a1Y"}\n\n'
)
_LAST: Final = (
    b'data: {"choices":[{"text":"","index":0,"finish_reason":"length"}],"usage":{"completion_tokens":%d,'
    b'"prompt_tokens":40},"timings":{"cache_n":0,"prompt_n":40,"prompt_ms":1.0,"predicted_n":%d}}\n\n'
)


class _Request(msgspec.Struct):
    max_tokens: int = 1


async def main(seconds: float) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await _answer(reader, writer, seconds)
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0)
    body = await reader.readexactly(length)
    if not head.startswith(b"post"):
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        return
    count = msgspec.json.decode(body, type=_Request).max_tokens
    writer.write(_HEAD)
    loop = asyncio.get_running_loop()
    due = loop.time()
    for _ in range(count):
        writer.write(b"%x\r\n%b\r\n" % (len(_TOKEN), _TOKEN))
        await writer.drain()
        due += seconds
        await asyncio.sleep(due - loop.time())
    last = _LAST % (count, count) + b"data: [DONE]\n\n"
    writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))
    await writer.drain()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
