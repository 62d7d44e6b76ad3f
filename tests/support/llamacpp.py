"""The real llama.cpp server (xllamacpp), in a process of its own: its threads outlive nothing but that process.

As a module it is that process: ``python -m tests.support.llamacpp MODEL SLOTS CONTEXT CACHE_RAM_MIB BATCH SAVE_DIR``;
prints its URL once it listens, and ends when its stdin closes, so that it cannot outlive the test run.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def llamacpp(
    model: Path, save: Path | None, *, slots: int = 2, context: int = 4096, cache_ram_mib: int = 0, batch: int = 2048
) -> AsyncIterator[str]:
    """Its base URL. ``save``: where it may write slots (None: nowhere). ``context``: tokens of all slots together.

    ``batch``: tokens that are computed in one step, between which other requests are looked at.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, str(model), str(slots), str(context), str(cache_ram_mib), str(batch)),
        *(() if save is None else (str(save),)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,  # llama.cpp logs there without end
    )
    try:
        if process.stdout is None or process.stdin is None:
            raise AssertionError("the server has no pipes")
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        if not line.startswith("http"):
            raise AssertionError(f"the llama.cpp server did not start: {line!r}")
        yield line.strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        # the transport of a killed process closes its pipes one turn of the loop later
        await asyncio.sleep(0)


def main() -> None:
    import xllamacpp

    model, slots, context, cache, batch = sys.argv[1], *map(int, sys.argv[2:6])
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = 0  # any that is free
    params.n_parallel = slots
    params.n_ctx = context
    params.n_batch = batch
    params.kv_unified = False
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.endpoint_props = True
    params.cache_ram_mib = cache
    params.warmup = False
    if len(sys.argv) > 6:
        params.slot_save_path = f"{sys.argv[6]}/"
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()  # until the test lets go of us


if __name__ == "__main__":
    main()
