"""The real vLLM server on a CPU, from the environment that scripts/setup-vllm makes (CORRAL_VLLM_PYTHON)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

PYTHON: Final = os.environ.get("CORRAL_VLLM_PYTHON", "")
BLOCK: Final = 32
BLOCKS: Final = 128
CONTEXT: Final = 2048
_UP_WITHIN: Final = 300.0  # seconds; 30 on an idle machine


class RealVllm:
    """``start`` and ``stop`` as often as wanted, on the same port and sockets.

    :param directory: for sockets and the log; short, and this server's alone
    """

    def __init__(self, model: Path, directory: Path, *, development: bool = True) -> None:
        self._model = model
        self._directory = directory
        self._development = development
        self._process: subprocess.Popen[bytes] | None = None
        self.events = f"ipc://{directory}/kv.sock"
        self.replay = f"ipc://{directory}/replay.sock"
        self.topic = "kv"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    def _command(self) -> Sequence[str]:
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": self.events,
            "replay_endpoint": self.replay,
            "topic": self.topic,
        }
        return (
            *(PYTHON, "-m", "vllm.entrypoints.cli.main", "serve", str(self._model)),
            *("--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(self._port)),
            *("--load-format", "dummy", "--dtype", "float32", "--enforce-eager"),
            *("--block-size", str(BLOCK), "--num-gpu-blocks-override", str(BLOCKS), "--max-model-len", str(CONTEXT)),
            *("--enable-prefix-caching", "--scheduling-policy", "priority", "--enable-prompt-tokens-details"),
            *("--kv-events-config", json.dumps(events)),
        )

    def start(self) -> None:
        """Returns once it serves; blocks."""
        environment = {
            **os.environ,
            "VLLM_SERVER_DEV_MODE": str(int(self._development)),
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "HOME": str(self._directory),
        }
        log = (self._directory / "vllm.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self._directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # its engine and workers are its group, and end with it
            )
        deadline = time.monotonic() + _UP_WITHIN
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"vLLM did not start:\n{self.log_tail()}")
            time.sleep(0.2)

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:  # noqa: S310  # our own server
                return int(answer.status) == 200
        except OSError:
            return False

    def stop(self) -> None:
        """As a crash does: all of its processes at once."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """A request as an agent makes it, not through Corral."""

        def send() -> dict[str, Any]:
            request = urllib.request.Request(  # noqa: S310
                self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=100) as answer:  # noqa: S310
                told: dict[str, Any] = json.load(answer)
                return told

        return await asyncio.to_thread(send)

    def log_tail(self) -> str:
        return (self._directory / "vllm.log").read_text(errors="replace")[-3000:]
