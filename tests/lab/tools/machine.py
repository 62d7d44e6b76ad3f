"""Boots a guest under software emulation (no KVM is needed), streams what its command says, knows how long it took."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.lab.tools.errors import GuestFailed
from tests.lab.tools.host import environment

TIMED_OUT: Final = 124  # as timeout(1)
CONSOLE_TAIL: Final = 30  # lines
MARK: Final = b"@@lab-"
START, END = MARK + b"start", MARK + b"end"
# A named model, so that the guest is the same everywhere; without what TCG cannot emulate, which it would warn of.
CPU: Final = "Haswell-v4,-pcid,-x2apic,-tsc-deadline,-invpcid,-spec-ctrl"
# One thread for all of the guest's CPUs. With one for each, a CPU may run translated code that another has patched: the
# kernel (6.12) died of a breakpoint that it had just taken out of a tracepoint (trace_rss_stat), after some dozens
# of daemons' starts. For these tests one thread is as fast.
ACCELERATOR: Final = "tcg,thread=single,tb-size=512"
# No initramfs: nvme and ext4 are built into Debian's cloud kernels. Time-outs of hardware watchdogs mean nothing here.
APPEND: Final = (
    "root=/dev/nvme0n1 rw rootfstype=ext4 console=ttyS0 quiet loglevel=4 mitigations=off panic=-1 tsc=reliable "
    "no_timer_check audit=0 random.trust_cpu=on nowatchdog systemd.show_status=no psi=1"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """``memory``: as QEMU takes it (3G). ``network``: user-mode, outgoing only."""

    kernel: Path
    root: Path
    python: Path
    payload: Path
    console: Path
    memory: str = "3G"
    cpus: int = 2
    append: str = ""
    network: bool = False

    def command(self) -> list[str]:
        words = [
            "qemu-system-x86_64", "-M", "q35,sata=off,smbus=off", "-accel", ACCELERATOR, "-cpu", CPU,
            "-smp", str(self.cpus), "-m", self.memory, "-nodefaults", "-no-user-config", "-display", "none",
            "-monitor", "none", "-no-reboot", "-kernel", str(self.kernel), "-append", f"{APPEND} {self.append}".strip(),
            "-serial", f"file:{self.console}",
            # the images that are shared between runs are never written: snapshot=on keeps changes in a temporary file
            "-drive", f"file={self.root},if=none,id=root,format=raw,snapshot=on,cache=unsafe",
            "-drive", f"file={self.python},if=none,id=python,format=raw,readonly=on",
            "-drive", f"file={self.payload},if=none,id=payload,format=raw,cache=unsafe",
            # one NVMe disk alone: with two, which is nvme0n1 is a race
            "-device", "nvme,drive=root,serial=root",
            "-device", "virtio-blk-pci,drive=python,serial=python",
            "-device", "virtio-blk-pci,drive=payload,serial=payload",
            # not "stdio": with stdin at /dev/null the guest's writes to it block
            "-device", "virtio-serial-pci", "-chardev", "file,id=out,path=/dev/stdout",
            "-device", "virtserialport,chardev=out,name=lab.out", "-device", "virtio-rng-pci",
        ]  # fmt: skip
        if self.network:
            words += ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"]
        return words


@dataclass(slots=True)
class Times:
    """Seconds. ``boot``: to the command's start; ``command``: it ran."""

    boot: float = 0.0
    command: float = 0.0
    timed_out: bool = False
    started: bool = False
    begun: float = field(default_factory=time.monotonic)


def run(machine: Machine, *, timeout: float, temporary: Path, output: Callable[[bytes], None]) -> Times:
    """Boots, and returns once the guest is off or ``timeout`` seconds are over; then it was killed.

    Raises GuestFailed when the command was never started, with the end of the guest's console.
    """
    times = Times()
    qemu = subprocess.Popen(
        machine.command(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment() | {"TMPDIR": str(temporary)},
    )

    def give_up() -> None:
        times.timed_out = True
        qemu.kill()

    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    previous = signal.signal(signal.SIGTERM, lambda *_: qemu.kill())
    complaint: list[bytes] = []
    reader = threading.Thread(target=lambda: complaint.append(qemu.stderr.read() if qemu.stderr else b""), daemon=True)
    reader.start()
    try:
        assert qemu.stdout is not None
        for piece in pieces(qemu.stdout.fileno()):
            if piece.startswith(START):
                times.started = True
                times.boot = time.monotonic() - times.begun
            elif piece.startswith(END):
                times.command = time.monotonic() - times.begun - times.boot
            else:
                output(piece)
        status = qemu.wait()
    except BaseException:
        qemu.kill()
        qemu.wait()
        raise
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, previous)
        reader.join()  # its end of the pipe is closed: the process has ended
        for stream in (qemu.stdout, qemu.stderr):
            if stream is not None:
                stream.close()
    if not times.started:
        why = f"not within {timeout:g} s" if times.timed_out else f"qemu ended with status {status}"
        said = b"".join(complaint).decode("utf-8", "replace").strip()
        raise GuestFailed(
            f"the guest ({machine.kernel}) never started the command: {why} {said}; "
            f"its console ends with:\n{console_tail(machine.console)}"
        )
    return times


def pieces(descriptor: int) -> Iterator[bytes]:
    """What comes, as soon as it comes (a test run's dots have no line ends); lines that may be our marks only whole."""
    held, fresh = b"", True  # fresh: at the beginning of a line
    while data := os.read(descriptor, 65536):
        for part in data.splitlines(keepends=True):
            held += part
            if fresh and not held.endswith(b"\n") and (held.startswith(MARK) or MARK.startswith(held)):
                continue
            yield held
            fresh = held.endswith(b"\n")
            held = b""
    if held:
        yield held


def console_tail(path: Path) -> str:
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return "  (nothing)"
    return "\n".join(f"  | {line}" for line in lines[-CONSOLE_TAIL:]) or "  (nothing)"


def to_stdout(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
