"""A thin binding of libbpf 1.x: typed, and with libbpf's own log in the errors.

Only what the loader needs. Pointers of libbpf stay inside this module; outside there are file descriptors (maps,
links) and ``Object``. None of it is thread safe beyond ``Object.load``, which takes a lock, because libbpf prints
through one function for the whole process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import threading
from collections.abc import Callable, Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

from bpf.errors import AttachFailed, LoadFailed, MapError, PinError, Unavailable, VerifierRejected

BPF_ANY: Final = 0
BPF_NOEXIST: Final = 1
_BPF_F_SLEEPABLE: Final = 1 << 4
_BPF_F_LINK: Final = 1 << 13
_BPF_STRUCT_OPS: Final = 44  # enum bpf_attach_type
_LOG_LINES: Final = 24  # kept in an error's text: the verifier says what is wrong at the end
_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_SAMPLE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

_P, _I, _S, _U, _Z = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_size_t
_SIGNATURES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "libbpf_set_print": (_P, (_PRINT,)),
    "libbpf_num_possible_cpus": (_I, ()),
    "bpf_object__open_file": (_P, (_S, _P)),
    "bpf_object__load": (_I, (_P,)),
    "bpf_object__close": (None, (_P,)),
    "bpf_object__next_map": (_P, (_P, _P)),
    "bpf_object__next_program": (_P, (_P, _P)),
    "bpf_map__name": (_S, (_P,)),
    "bpf_map__fd": (_I, (_P,)),
    "bpf_map__type": (_I, (_P,)),
    "bpf_map__key_size": (_U, (_P,)),
    "bpf_map__value_size": (_U, (_P,)),
    "bpf_map__max_entries": (_U, (_P,)),
    "bpf_map__map_flags": (_U, (_P,)),
    "bpf_map__is_internal": (ctypes.c_bool, (_P,)),
    "bpf_map__set_pin_path": (_I, (_P, _S)),
    "bpf_map__set_map_flags": (_I, (_P, _U)),
    "bpf_map__attach_struct_ops": (_P, (_P,)),
    "bpf_program__name": (_S, (_P,)),
    "bpf_program__section_name": (_S, (_P,)),
    "bpf_program__set_autoload": (_I, (_P, ctypes.c_bool)),
    "bpf_program__set_flags": (_I, (_P, _U)),
    "bpf_program__attach": (_P, (_P,)),
    "bpf_program__attach_cgroup": (_P, (_P, _I)),
    "bpf_link__pin": (_I, (_P, _S)),
    "bpf_link__destroy": (_I, (_P,)),
    "bpf_link__disconnect": (None, (_P,)),
    "bpf_link__fd": (_I, (_P,)),
    "bpf_obj_get": (_I, (_S,)),
    "bpf_obj_get_info_by_fd": (_I, (_I, _P, ctypes.POINTER(_U))),
    "bpf_iter_create": (_I, (_I,)),
    "bpf_map_lookup_elem": (_I, (_I, _P, _P)),
    "bpf_map_update_elem": (_I, (_I, _P, _P, ctypes.c_uint64)),
    "bpf_map_delete_elem": (_I, (_I, _P)),
    "bpf_map_get_next_key": (_I, (_I, _P, _P)),
    "bpf_map_lookup_batch": (_I, (_I, _P, _P, _P, _P, ctypes.POINTER(_U), _P)),
    "bpf_prog_load": (_I, (_I, _S, _S, _P, _Z, _P)),
    "bpf_raw_tracepoint_open": (_I, (_S, _I)),
    "bpf_link_create": (_I, (_I, _I, _I, _P)),
    "bpf_map_create": (_I, (_I, _S, _U, _U, _U, _P)),
    "btf__load_vmlinux_btf": (_P, ()),
    "btf__find_by_name_kind": (_I, (_P, _S, _U)),
    "btf__free": (None, (_P,)),
    "ring_buffer__new": (_P, (_I, _SAMPLE, _P, _P)),
    "ring_buffer__free": (None, (_P,)),
    "bpf_prog_query": (_I, (_I, _I, ctypes.c_uint32, _P, _P, _P)),
    "bpf_prog_get_fd_by_id": (_I, (ctypes.c_uint32,)),
    "bpf_prog_attach": (_I, (_I, _I, _I, ctypes.c_uint32)),
    "ring_buffer__consume": (_I, (_P,)),
    "ring_buffer__epoll_fd": (_I, (_P,)),
}

_log_lock = threading.Lock()
_log: list[str] = []


@cache
def library() -> ctypes.CDLL:
    """libbpf.so.1 with its signatures set and its log captured. Raises Unavailable where it is not installed."""
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(lib, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError) as err:
        raise Unavailable(
            f"libbpf.so.1 cannot be used: {err}", remedy="install libbpf 1.0 or later (Debian: libbpf1)"
        ) from err
    lib.libbpf_set_print(_printer)
    return lib


def _print(level: int, template: bytes | None, arguments: int | None) -> int:
    # 2 is debug. vsnprintf reads the va_list; on x86-64 and arm64 it is passed as a pointer.
    if level >= 2 or template is None:
        return 0
    text = ctypes.create_string_buffer(65_536)
    _libc().vsnprintf(text, ctypes.c_size_t(len(text)), template, ctypes.c_void_p(arguments))
    _log.extend(text.value.decode("utf-8", "replace").splitlines())
    return 0


_printer = _PRINT(_print)  # kept for the process's life: libbpf holds the pointer


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def reason(number: int) -> str:
    return f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"


def possible_cpus() -> int:
    return max(1, int(library().libbpf_num_possible_cpus()))


class Link:
    """A program that is attached. Without a pin it is detached when this is closed."""

    def __init__(self, pointer: int) -> None:
        self.pointer: int | None = pointer

    def close(self) -> None:
        if self.pointer is not None:
            library().bpf_link__destroy(self.pointer)
            self.pointer = None


class Object:
    """One compiled object file: opened, then loaded as a whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lib = library()
        with _log_lock:
            _log.clear()
            self._object: int | None = self._lib.bpf_object__open_file(os.fsencode(path), None)
            code, log = ctypes.get_errno(), tuple(_log)
        if not self._object:
            raise LoadFailed(
                f"{path.name} cannot be opened: {reason(code)}",
                log=log,
                errno=code,
                remedy="build the objects with scripts/build-bpf",
            )

    def _each(self, step: str, after: int | None = None) -> Iterator[int]:
        function = getattr(self._lib, step)
        while after := function(self._object, after):
            yield after

    def maps(self) -> dict[str, tuple[int, int, int, int, int]]:
        """Declared maps: name → (type, key size, value size, entries, flags)."""
        lib = self._lib
        return {
            lib.bpf_map__name(m).decode(): (
                lib.bpf_map__type(m),
                lib.bpf_map__key_size(m),
                lib.bpf_map__value_size(m),
                lib.bpf_map__max_entries(m),
                lib.bpf_map__map_flags(m),
            )
            for m in self._each("bpf_object__next_map")
            if not lib.bpf_map__is_internal(m)
        }

    def programs(self) -> dict[str, str]:
        """Name → section."""
        lib = self._lib
        return {
            lib.bpf_program__name(p).decode(): lib.bpf_program__section_name(p).decode()
            for p in self._each("bpf_object__next_program")
        }

    def leave_out(self, names: Collection[str]) -> None:
        """These programs are not loaded. To be called before ``load``."""
        for p in self._each("bpf_object__next_program"):
            if self._lib.bpf_program__name(p).decode() in names:
                self._lib.bpf_program__set_autoload(p, False)  # fails only for an object that is loaded

    def pin_maps(self, directory: Path) -> None:
        """Have every map be the one pinned in ``directory``, or be pinned there when the object is loaded."""
        for m in self._each("bpf_object__next_map"):
            if self._lib.bpf_map__is_internal(m):
                continue
            path = directory / self._lib.bpf_map__name(m).decode()
            if code := -self._lib.bpf_map__set_pin_path(m, os.fsencode(path)):
                raise PinError(f"{path}: {reason(code)}", errno=code, remedy="check the pin directory")

    def load(self) -> None:
        """Raises VerifierRejected, or LoadFailed for every other cause."""
        with _log_lock:
            _log.clear()
            code = -self._lib.bpf_object__load(self._object)
            log = tuple(_log)
        if not code:
            return
        text = "\n".join(log)
        refused = re.search(r"prog '([^']+)': BPF program load failed", text)
        tail = "\n  ".join(log[-_LOG_LINES:])
        if refused and "BEGIN PROG LOAD LOG" in text:
            raise VerifierRejected(
                f"{self.path.name}: the verifier refused program {refused[1]}: {reason(code)}\n  {tail}\n",
                program=refused[1],
                log=log,
                errno=code,
            )
        remedy = (
            "run agentd as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
            if code in (errno.EPERM, errno.EACCES)
            else "the log has what libbpf said; `corral doctor` shows what this kernel lacks"
        )
        raise LoadFailed(
            f"{self.path.name} cannot be loaded: {reason(code)}\n  {tail}\n", log=log, errno=code, remedy=remedy
        )

    def attach_and_pin(self, name: str, path: Path, cgroup_fd: int) -> None:
        """Attach the program ``name`` (to the cgroup, if it is of that kind) and pin its link at ``path``."""
        link = self.attach(name, cgroup_fd)
        try:
            if code := -self._lib.bpf_link__pin(link.pointer, os.fsencode(path)):
                raise PinError(f"{path}: {reason(code)}", errno=code, remedy="check the pin directory")
        finally:
            link.close()  # our descriptor: the pin keeps the link alive

    def attach(self, name: str, cgroup_fd: int = -1) -> Link:
        """Attach the program ``name`` for as long as the link that is returned stays open."""
        lib = self._lib
        program = next(p for p in self._each("bpf_object__next_program") if lib.bpf_program__name(p).decode() == name)
        section = lib.bpf_program__section_name(program).decode()
        ctypes.set_errno(0)
        if section.startswith("cgroup"):
            link = lib.bpf_program__attach_cgroup(program, cgroup_fd)
        else:
            link = lib.bpf_program__attach(program)
        if not link:
            code = ctypes.get_errno()
            raise AttachFailed(
                f"program {name} ({section}) cannot be attached: {reason(code)}",
                errno=code,
                remedy="see `corral doctor` for what this kernel lacks",
            )
        return Link(int(link))

    def map_fd(self, name: str) -> int:
        """The descriptor of a map of this object, which is loaded; it is closed with the object."""
        return int(self._lib.bpf_map__fd(self._map(name)))

    def _map(self, name: str) -> int:
        return next(m for m in self._each("bpf_object__next_map") if self._lib.bpf_map__name(m).decode() == name)

    def prepare_struct_ops(self, name: str, *, sleepable: Collection[str] = ()) -> None:
        """Before ``load``: operations that are registered by a link and so end with it. libbpf before 1.3 knows neither
        the section ``.struct_ops.link`` nor ``struct_ops.s``; the flags behind them it hands on."""
        self._lib.bpf_map__set_map_flags(self._map(name), _BPF_F_LINK)
        for p in self._each("bpf_object__next_program"):
            if self._lib.bpf_program__name(p).decode() in sleepable:
                self._lib.bpf_program__set_flags(p, _BPF_F_SLEEPABLE)

    def attach_struct_ops(self, name: str) -> int:
        """Register the operations ``name``, which were prepared and loaded. Returns the descriptor of the link, which
        is the caller's: they are in force until it is closed."""
        lib, of_map = self._lib, self._map(name)
        ctypes.set_errno(0)
        link = lib.bpf_map__attach_struct_ops(of_map)
        if link:
            map_fd, fd = lib.bpf_map__fd(of_map), lib.bpf_link__fd(link)
            if fd != map_fd:  # libbpf 1.3 and later make the link
                fd = os.dup(fd)
                lib.bpf_link__destroy(link)
                return int(fd)
            lib.bpf_link__disconnect(link)
            lib.bpf_link__destroy(link)  # before, they only filled in the map
            fd = lib.bpf_link_create(map_fd, 0, _BPF_STRUCT_OPS, None)
            if fd >= 0:
                return int(fd)
            code = -fd
        else:
            code = ctypes.get_errno()
        raise AttachFailed(
            f"the operations {name} of {self.path.name} cannot be registered: {reason(code)}",
            errno=code,
            remedy="only one can be at a time: end the other one"
            if code == errno.EBUSY
            else "the kernel's log (dmesg) may say why",
        )

    def close(self) -> None:
        if self._object:
            self._lib.bpf_object__close(self._object)
            self._object = None


def get_pinned(path: Path) -> int:
    """A descriptor of the map or link that is pinned at ``path``."""
    fd = int(library().bpf_obj_get(os.fsencode(path)))
    if fd < 0:
        raise PinError(f"{path}: {reason(-fd)}", errno=-fd, remedy="check that it is a pin and that we may use it")
    return fd


def info(fd: int, size: int = 256) -> bytes:
    """What the kernel tells about a map or a link (struct bpf_map_info, bpf_link_info)."""
    buffer, length = ctypes.create_string_buffer(size), ctypes.c_uint32(size)
    if code := -library().bpf_obj_get_info_by_fd(fd, buffer, ctypes.byref(length)):
        raise MapError(f"descriptor {fd}: no information: {reason(code)}", errno=code)
    return buffer.raw


class Map:
    """One pinned map: fixed sizes of key and value (``per_cpu``: one value per possible CPU, in a row)."""

    def __init__(self, name: str, fd: int, key_size: int, value_size: int, *, per_cpu: int = 1) -> None:
        self.name, self.fd = name, fd
        self.key_size, self.value_size = key_size, value_size * per_cpu
        self._lib = library()
        self._value = ctypes.create_string_buffer(self.value_size)

    def _failed(self, what: str, code: int) -> MapError:
        return MapError(f"map {self.name}: {what}: {reason(code)}", errno=code, remedy="restart the daemon")

    def get(self, key: bytes) -> bytes | None:
        code = -self._lib.bpf_map_lookup_elem(self.fd, key, self._value)
        if code == errno.ENOENT:
            return None
        if code:
            raise self._failed("lookup", code)
        return self._value.raw

    def put(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
        if len(value) != self.value_size or len(key) != self.key_size:
            raise MapError(
                f"map {self.name}: {len(key)} and {len(value)} bytes, not {self.key_size} and {self.value_size}"
            )
        if code := -self._lib.bpf_map_update_elem(self.fd, key, value, flags):
            raise self._failed("update", code)

    def put_new(self, key: bytes, value: bytes) -> bool:
        """Put unless the key is there; whether it was put."""
        try:
            self.put(key, value, BPF_NOEXIST)
        except MapError as err:
            if err.errno != errno.EEXIST:
                raise
            return False
        return True

    def delete(self, key: bytes) -> None:
        """Absent keys are fine."""
        code = -self._lib.bpf_map_delete_elem(self.fd, key)
        if code and code != errno.ENOENT:
            raise self._failed("delete", code)

    def batch(self, expected: int) -> tuple[bytes, bytes, int]:
        """All entries of a hash, in as few system calls as fit ``expected`` entries: (keys, values, how many)."""
        room = max(expected, 64) + 64  # a bucket is read as a whole: some slack, or the kernel answers ENOSPC
        keys = ctypes.create_string_buffer(room * self.key_size)
        values = ctypes.create_string_buffer(room * self.value_size)
        at = ctypes.create_string_buffer(max(self.key_size, 8))
        all_keys, all_values, total, first = b"", b"", 0, True
        while True:
            count = ctypes.c_uint32(room)
            code = -self._lib.bpf_map_lookup_batch(
                self.fd, None if first else at, at, keys, values, ctypes.byref(count), None
            )
            if code not in (0, errno.ENOENT):
                raise self._failed("batch lookup", code)
            n = count.value
            all_keys += keys.raw[: n * self.key_size]
            all_values += values.raw[: n * self.value_size]
            total, first = total + n, False
            if code == errno.ENOENT:  # the end
                return all_keys, all_values, total


class Ring:
    """The reading end of a ring buffer. ``drain`` returns at most ``most`` records, as bytes."""

    def __init__(self, map_fd: int, most: int = 4096) -> None:
        self._lib, self._most, self._records = library(), most, list[bytes]()
        self._callback: Callable[..., int] = _SAMPLE(self._sample)
        self._ring: int | None = self._lib.ring_buffer__new(map_fd, self._callback, None, None)
        if not self._ring:
            code = ctypes.get_errno()
            raise MapError(f"ring buffer: {reason(code)}", errno=code, remedy="check the memory limit of the daemon")

    def _sample(self, context: int | None, data: int, size: int) -> int:
        self._records.append(ctypes.string_at(data, size))
        # A negative answer ends the round, this record included: a flood must not hold the loop.
        return -1 if len(self._records) >= self._most else 0

    def fileno(self) -> int:
        return int(self._lib.ring_buffer__epoll_fd(self._ring))

    def drain(self) -> list[bytes]:
        if self._ring is None:
            return []
        self._records = []
        code = self._lib.ring_buffer__consume(self._ring)
        if code < 0 and len(self._records) < self._most:
            raise MapError(f"ring buffer: {reason(-code)}", errno=-code, remedy="restart the daemon")
        return self._records

    def close(self) -> None:
        if self._ring:
            self._lib.ring_buffer__free(self._ring)
            self._ring = None
