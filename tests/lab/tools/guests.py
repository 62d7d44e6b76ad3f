"""One command in one guest after the other: builds what is missing, brings the tree, boots, fetches what was left."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tests.lab.tools import extras, kernels, machine, packages, root
from tests.lab.tools.errors import LabError
from tests.lab.tools.host import Log, alone, ensure_programs
from tests.lab.tools.payload import Payload

CANNOT: Final = 125  # the guest, or this machine, could not do it
SPARE_MB: Final = 1024  # of the payload's disk, for what the command writes below /payload


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a guest is to do. ``timeout`` in seconds. ``bring``: pairs of a path here and a name below /payload.

    ``extras``: sets of packages that are laid over the guest's /usr.
    ``out``: where files of /payload/out go; with several kernels each has a directory of its own below it.
    """

    command: str
    kernels: Sequence[str] = (kernels.NEWEST,)
    timeout: float = 1800.0
    out: Path | None = None
    tree: bool = True
    bring: Sequence[tuple[Path, str]] = ()
    extras: Sequence[str] = ()
    memory: str = "3G"
    cpus: int = 2
    append: str = ""
    network: bool = False
    journal: bool = False
    verbose: bool = False


@dataclass(frozen=True, slots=True)
class Lab:
    """What guests boot from."""

    kernels: dict[str, kernels.Kernel]
    root: Path
    python: Path


def build(cache: Path, log: Log, *, update: bool = False) -> Lab:
    """Whatever of it is missing or out of date. Raises LabError."""
    ensure_programs(log)
    cache.mkdir(parents=True, exist_ok=True)
    found = kernels.fetch(cache, log, update=update)
    return Lab(found, root.build(cache, found.values(), log), packages.build(cache, log))


def run(request: Request, cache: Path, log: Log, *, within: float | None = None) -> int:
    """The command's exit status (124: killed for its time; 125: the guest died); of several kernels the first that is
    not 0. Raises LabError when a guest could not be started, or others had theirs for ``within`` seconds."""
    status = 0
    with alone(cache, "guest", within=within):
        lab = build(cache, log)
        chosen = [kernels.choose(lab.kernels, name) for name in request.kernels]
        for kernel in chosen:
            into = request.out
            if len(chosen) > 1:
                print(f"lab: ===== {kernel.release} =====", file=sys.stderr, flush=True)
                into = into / kernel.name if into is not None else None
            laid = [(extras.build(cache, name, kernel, log), f"with-{name}") for name in request.extras]
            found = _one(replace(request, bring=[*request.bring, *laid]), lab, kernel, into, log)
            status = status or found
    return status


def _one(request: Request, lab: Lab, kernel: kernels.Kernel, out: Path | None, log: Log) -> int:
    begun = time.monotonic()
    with _temporary() as work:
        payload = _payload(request, work, log)
        packed = time.monotonic() - begun
        guest = machine.Machine(
            kernel=kernel.image,
            root=lab.root,
            python=lab.python,
            payload=payload.image,
            console=work / "console",
            memory=request.memory,
            cpus=request.cpus,
            append=request.append,
            network=request.network,
        )
        times = machine.run(guest, timeout=request.timeout, temporary=work, output=machine.to_stdout)
        if out is not None:
            payload.fetch(out)
        if request.verbose:
            parts = f"payload {packed:.1f} s, boot {times.boot:.1f} s, command {times.command:.1f} s"
            _say(f"{kernel.release}: {parts}, all {time.monotonic() - begun:.1f} s")
        if times.timed_out:
            _say(f"killed after {request.timeout:g} s; a larger --timeout gives more")
            return machine.TIMED_OUT
        status = payload.status()
        if status is None:
            _say(f"the guest died under the command; its console ends with:\n{machine.console_tail(guest.console)}")
            return CANNOT
        return status


def _payload(request: Request, work: Path, log: Log) -> Payload:
    payload = Payload(work, log)
    if request.tree:
        payload.bring_tree()
    for source, name in request.bring:
        if not source.exists():
            raise LabError(f"{source} cannot be brought into the guest: it does not exist")
        payload.bring(source, name)
    payload.command(extras.prelude(list(request.extras)) + request.command, journal=request.journal)
    payload.pack(spare_mb=SPARE_MB)
    return payload


def _say(text: str) -> None:
    print(f"lab: {text}", file=sys.stderr, flush=True)


def temporary_directory() -> Path:
    return Path(os.environ.get("TMPDIR", "/var/tmp"))


@contextlib.contextmanager
def _temporary() -> Iterator[Path]:
    """On disk, not in a memory file system: a payload and the guest's changes may take gigabytes."""
    path = Path(tempfile.mkdtemp(prefix="corral-lab-", dir=temporary_directory()))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
