"""The kernel's features, tried with libbpf and plain system calls: nothing of bpf/ and agentd/doctor is used, so that
test_doctor_truth.py compares two answers and not one with itself. Each raises OSError where the kernel refuses."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

RETURN: Final = {value: bytes([0xB7, 0, 0, 0, value, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0]) for value in (0, 1)}
# r1 = SIGSTOP; call bpf_send_signal; r0 = 0; exit
SEND_SIGSTOP: Final = b"\xb7\1\0\0\x13\0\0\0\x85\0\0\0\x6d\0\0\0" + RETURN[0]
TRACING, CGROUP_SKB, CGROUP_DEVICE, CGROUP_SOCK_ADDR, LSM = 26, 8, 15, 18, 29  # enum bpf_prog_type
RAW_TP, FENTRY, LSM_MAC, ITER = 23, 24, 27, 28  # enum bpf_attach_type
RINGBUF: Final = 27  # enum bpf_map_type
_PERF_EVENT_OPEN: Final = 298  # x86-64
_ATTR_BYTES: Final = 112  # PERF_ATTR_SIZE_VER5


def _libbpf() -> ctypes.CDLL:
    made = ctypes.CDLL("libbpf.so.1", use_errno=True)
    made.libbpf_set_print(None)
    return made


def _checked(status: int) -> int:
    if status < 0:
        raise OSError(-status, os.strerror(-status))
    return status


@contextmanager
def closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def loaded(kind: int, attach: int, code: bytes, target: str = "") -> Iterator[int]:
    """A program as the verifier took it; ``target``: the tracepoint, function, hook or iterator."""
    library = _libbpf()
    btf_id = _checked(library.libbpf_find_vmlinux_btf_id(target.encode(), attach)) if target else 0
    # struct bpf_prog_load_opts, as far as attach_btf_id
    options = ctypes.create_string_buffer(struct.pack("<QIIIIIIII", 40, 0, attach, 0, 0, 0, 0, btf_id, 0), 40)
    descriptor = library.bpf_prog_load(kind, b"truth", b"GPL", code, ctypes.c_size_t(len(code) // 8), options)
    with closing(_checked(descriptor)) as program:
        yield program


def traced(target: str, attach: int = RAW_TP, kind: int = TRACING) -> None:
    with loaded(kind, attach, RETURN[0], target) as program:
        os.close(_checked(_libbpf().bpf_raw_tracepoint_open(None, program)))


def iterator(target: str) -> None:
    with loaded(TRACING, ITER, RETURN[0], target) as program:
        os.close(_checked(_libbpf().bpf_link_create(program, 0, ITER, None)))


def brake() -> None:
    """Loaded, not attached: it would stop every process."""
    with loaded(TRACING, RAW_TP, SEND_SIGSTOP, "rss_stat"):
        traced("rss_stat")


def gate(group: Path, kind: int, attach: int) -> None:
    with (
        loaded(kind, attach, RETURN[1]) as program,
        closing(os.open(group, os.O_RDONLY | os.O_DIRECTORY)) as directory,
    ):
        _checked(_libbpf().bpf_prog_attach(program, directory, attach, 0))
        _checked(_libbpf().bpf_prog_detach2(program, directory, attach))


def ring_buffer() -> None:
    os.close(_checked(_libbpf().bpf_map_create(RINGBUF, b"truth", 0, 0, 4096, None)))


def kprobe(function: str) -> None:
    kind = int(Path("/sys/bus/event_source/devices/kprobe/type").read_text("ascii"))
    name = ctypes.create_string_buffer(function.encode())
    attr = bytearray(_ATTR_BYTES)
    struct.pack_into("<II", attr, 0, kind, _ATTR_BYTES)
    struct.pack_into("<Q", attr, 56, ctypes.addressof(name))
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = library.syscall(_PERF_EVENT_OPEN, ctypes.create_string_buffer(bytes(attr)), -1, 0, -1, 8)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.close(descriptor)


def holds(trial: object) -> bool:
    """Whether it did not raise OSError."""
    if not callable(trial):
        raise TypeError(f"{trial!r} cannot be tried")
    try:
        trial()
    except OSError:
        return False
    return True
