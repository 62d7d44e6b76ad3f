"""Tiny programs, written as instructions, that try what a kernel lets us load and attach. No compiler, no object file.

Everything that is attached here only returns, and is detached before the function returns.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bpf.libbpf import library

# enum bpf_prog_type, enum bpf_attach_type, enum bpf_map_type, helper numbers: include/uapi/linux/bpf.h
KPROBE, CGROUP_SKB, CGROUP_DEVICE, RAW_TRACEPOINT, CGROUP_SOCK_ADDR, TRACING, LSM = 2, 8, 15, 17, 18, 26, 29
INGRESS, EGRESS, DEVICE, CONNECT4, CONNECT6, SENDMSG4, SENDMSG6 = 0, 1, 6, 10, 11, 14, 15
RAW_TP, FENTRY, LSM_MAC, ITER = 23, 24, 27, 28
RINGBUF, PERCPU_HASH = 27, 5
SEND_SIGNAL, PROBE_WRITE_USER, PROBE_READ_KERNEL = 109, 36, 113
_FUNC, _TYPEDEF = 12, 8  # BTF kinds
_PERF_EVENT_OPEN: Final = {"x86_64": 298, "aarch64": 241, "riscv64": 241}


def _instruction(code: int, dst: int = 0, src: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, dst | src << 4, offset, value)


def _set(register: int, value: int) -> bytes:
    return _instruction(0xB7, register, value=value)


_EXIT: Final = _instruction(0x95)
RETURN_0: Final = _set(0, 0) + _EXIT
RETURN_1: Final = _set(0, 1) + _EXIT
STOP_SELF: Final = _set(1, 19) + _instruction(0x85, value=SEND_SIGNAL) + RETURN_0
_STACK_R1: Final = _instruction(0x7A, 10, 0, -8, 0) + _instruction(0xBF, 1, 10) + _instruction(0x07, 1, value=-8)
READ_KERNEL: Final = _STACK_R1 + _set(2, 8) + _set(3, 0) + _instruction(0x85, value=PROBE_READ_KERNEL) + RETURN_0
# write_user(NULL, stack, 8): destination, source, size
WRITE_USER: Final = (
    _STACK_R1
    + _instruction(0xBF, 2, 1)
    + _set(1, 0)
    + _set(3, 8)
    + _instruction(0x85, value=PROBE_WRITE_USER)
    + RETURN_0
)


class _LoadOptions(ctypes.Structure):
    """struct bpf_prog_load_opts of libbpf 1.0; later versions take the shorter one by its size."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_char_p),
    )


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


class KernelTypes:
    """The kernel's BTF, opened once. Raises OSError where there is none."""

    def __init__(self) -> None:
        self._btf: int | None = library().btf__load_vmlinux_btf()
        if not self._btf:
            code = ctypes.get_errno() or errno.ENOENT
            raise OSError(code, os.strerror(code))

    def _find(self, name: str, kind: int) -> int:
        return _checked(library().btf__find_by_name_kind(self._btf, name.encode(), kind))

    def tracepoint(self, name: str) -> int:
        return self._find(f"btf_trace_{name}", _TYPEDEF)

    def function(self, name: str) -> int:
        return self._find(name, _FUNC)

    def close(self) -> None:
        library().btf__free(self._btf)
        self._btf = None


def kernel_has_function(name: str) -> bool:
    """As the kernel's BTF says; False where there is none."""
    try:
        types = KernelTypes()
    except OSError:
        return False
    try:
        return types.function(name) > 0
    except OSError:
        return False
    finally:
        types.close()


@contextmanager
def loaded(kind: int, code: bytes, *, attach: int = 0, btf_id: int = 0) -> Iterator[int]:
    """A program's descriptor. Raises OSError with the kernel's reason."""
    options = _LoadOptions(sz=ctypes.sizeof(_LoadOptions), expected_attach_type=attach, attach_btf_id=btf_id)
    fd = _checked(library().bpf_prog_load(kind, b"corral_trial", b"GPL", code, len(code) // 8, ctypes.byref(options)))
    try:
        yield fd
    finally:
        os.close(fd)


def attach_traced(fd: int) -> None:
    """To its tracepoint, function or hook, and off again."""
    os.close(_checked(library().bpf_raw_tracepoint_open(None, fd)))


def attach_to(fd: int, target: int, attach: int) -> None:
    """A link (to the cgroup ``target``; 0 for an iterator), and off again."""
    os.close(_checked(library().bpf_link_create(fd, target, attach, None)))


def create_map(kind: int, key_size: int, value_size: int, entries: int) -> None:
    os.close(_checked(library().bpf_map_create(kind, b"corral_trial", key_size, value_size, entries, None)))


def open_kprobe(function: str) -> None:
    """A perf event on a kernel function, opened and closed."""
    try:
        kind = int(Path("/sys/bus/event_source/devices/kprobe/type").read_text())
    except FileNotFoundError:
        raise OSError(errno.EOPNOTSUPP, "the kernel has no kprobe events (CONFIG_KPROBES is not set)") from None
    number = _PERF_EVENT_OPEN.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"not known how to open one on {platform.machine()}")
    name = ctypes.create_string_buffer(function.encode())
    # struct perf_event_attr, first published size of 112: type, size, five words, two halves, config1, config2
    attr = struct.pack("=II5QIIQQ", kind, 112, 0, 0, 0, 0, 0, 0, 0, ctypes.addressof(name), 0).ljust(112, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(ctypes.c_long(number), attr, -1, 0, -1, ctypes.c_ulong(8))  # 8: close on exec
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    os.close(fd)
