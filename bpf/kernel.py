"""The kernel side as one object: thresholds and policies go in, counters and events come out.

Everything here is a handful of system calls on maps; nothing blocks. The programs and maps live on, pinned, when the
process ends, and the next one goes on with them.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final

from bpf import layout
from bpf.devices import gpu_majors
from bpf.disk import DiskTrace
from bpf.errors import InvalidPolicy, MapError, NotRegistered, TooManyCalls
from bpf.libbpf import Map, Ring, get_pinned, possible_cpus
from bpf.lineage import Lineage
from bpf.loader import Loader, run_iterator
from bpf.pace import Paces
from bpf.pins import PinDir
from bpf.trial import kernel_has_function
from bpf.types import MAX_CALLS, Counters, Event, NetworkMode, NetworkPolicy

_MAX_BYTES: Final = 1 << 62
_RETRIES: Final = 3  # readings of one call, while its tasks end under the reader
_ZERO_KEY: Final = b"\0\0\0\0"
_HUGE_PAGE: Final = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_LARGEST_HUGE_PAGE: Final = 512 << 20  # of arm64 with 64 KiB pages: where the kernel does not say


@dataclass(frozen=True, slots=True)
class _Call:
    """What the map `calls` holds of one call."""

    notify: int = 0
    brake: int = 0
    memory_id: int = 0
    epoch: int = 0
    network: NetworkMode = NetworkMode.ANY
    gpu: bool = False

    @property
    def armed(self) -> bool:
        return bool(self.notify or self.brake)

    def pack(self) -> bytes:
        return layout.CALL.pack(
            self.notify, self.brake, self.memory_id, self.epoch, self.network, 1 if self.gpu else 0, 0
        )


class KernelSide:
    """Made by ``open``. A call is known by the id of its cgroup in the v2 hierarchy (the inode of its directory).

    ``parts``: which of tripwire, accounting, lifecycle, network, gates are at work; ``problems``: why others are not;
    ``details``: those reasons in full, with libbpf's log; ``adopted``: which were found at work, left by a daemon.
    """

    parts: frozenset[str]
    adopted: frozenset[str]
    problems: tuple[str, ...]
    details: tuple[str, ...]

    def __init__(self, loader: Loader, pins: PinDir, on_event: Callable[[Event], None]) -> None:
        self.parts, self.problems = frozenset(loader.parts), tuple(loader.problems)
        self.adopted, self.details = frozenset(loader.adopted), tuple(loader.details)
        self._pins, self._on_event = pins, on_event
        self._cpus = possible_cpus()
        self._fds: list[int] = [loader.lock]
        self._pass, self._settle, self._armed, self._generation, self._undecodable = 0, 0, 0, 0, 0
        self._stride = self._cpus * huge_page_bytes()
        self._floor: dict[int, tuple[int, ...]] = {}
        self._known: dict[int, _Call] = {}
        self._ring: Ring | None = None
        self._disk = DiskTrace(loader.objects, pins)
        self._tasks: int | None = None
        try:
            self._config = self._map("config", 4, layout.CONFIG.size)
            self._calls = self._map("calls", 8, layout.CALL.size)
            self._states = self._map("states", 8, layout.STATE.size)
            self._counters = self._map("counters", 8, layout.COUNTERS.size, per_cpu=self._cpus)
            self._live = self._map("live", 8, layout.LIVE.size)
            self._rules = self._map("rules", 8, layout.RULES_SIZE)
            self.paces = Paces(self._map("paces", 8, layout.PACE.size))
            self._majors = self._map("gpu_majors", 4, 4)
            self._dropped = self._map("dropped", 4, 8)
            self._ring = Ring(self._open(pins.maps / "events"))
            if "accounting" in self.parts:
                self._tasks = self._open(loader.pinned_program("accounting", "corral_tasks"))
            self._take_over()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        *,
        cgroup: Path,
        pin_dir: Path,
        on_event: Callable[[Event], None],
        majors: Iterable[int] | None = None,
        objects: Path | None = None,
    ) -> KernelSide:
        """Load what can be loaded, adopt what is there.

        ``cgroup``: our root directory in the v2 hierarchy; the gates and packet programs are attached to it, beside
        whatever else is attached there. ``majors``: character devices that need a GPU grant; None: read from
        /proc/devices. Raises Unavailable when no part can be had and PinError when the pin directory cannot (PinsInUse:
        another daemon has it).
        """
        pins = PinDir(pin_dir)
        loader = Loader(pins, cgroup) if objects is None else Loader(pins, cgroup, objects)
        loader.run()
        side = cls(loader, pins, on_event)
        try:
            side.set_gpu_majors(gpu_majors() if majors is None else majors)
        except BaseException:
            side.close()
            raise
        return side

    # Calls ---------------------------------------------------------------------------------------------------------

    def register(
        self,
        cgroup_id: int,
        *,
        notify: int | None = None,
        brake: int | None = None,
        network: NetworkPolicy = NetworkPolicy.ANY,
        gpu: bool = False,
        memory_cgroup: int | None = None,
    ) -> None:
        """Begin to count and act upon a group. Registering again keeps its counters and replaces all else.

        ``notify`` and ``brake`` in bytes of its memory cgroup. ``memory_cgroup``: the id (inode) of the memory cgroup
        that they mean, which on hybrid hosts is the twin in the v1 memory hierarchy; a task that is charged elsewhere
        (it is still being moved) is not braked. None: whichever group the task is charged to.
        """
        key = self._key(cgroup_id)
        was = self._known.get(cgroup_id)
        if was is None and len(self._known) >= MAX_CALLS:
            raise TooManyCalls(f"group {cgroup_id}: {MAX_CALLS} are registered", remedy="forget calls that have ended")
        call = _Call(
            notify=_threshold("notify", notify),
            brake=_threshold("brake", brake),
            memory_id=memory_cgroup or 0,
            epoch=_next_epoch(was),
            network=network.mode,
            gpu=gpu,
        )
        try:
            self._states.put_new(key, bytes(layout.STATE.size))
            self._counters.put_new(key, bytes(layout.COUNTERS.size * self._cpus))
            self._live.put_new(key, bytes(layout.LIVE.size))
            if was is not None or network.mode is NetworkMode.LIST:
                self._put_rules(key, network)  # a group that is new has none: the kernel gives no id twice
            self._put_call(cgroup_id, call)
        except MapError as err:
            if was is None:
                self._delete(key)
            if err.errno in (errno.E2BIG, errno.ENOMEM):
                raise TooManyCalls(err.message, errno=err.errno, remedy="forget calls that have ended") from err
            raise

    def arm(self, cgroup_id: int, *, notify: int | None, brake: int | None) -> None:
        """Set both thresholds (None: disarm) and re-arm the notice."""
        call = self._call(cgroup_id)
        self._put_call(
            cgroup_id,
            replace(
                call,
                notify=_threshold("notify", notify),
                brake=_threshold("brake", brake),
                epoch=_next_epoch(call),
            ),
        )

    def set_network(self, cgroup_id: int, policy: NetworkPolicy) -> None:
        """From now on; connections that a listed policy would not have allowed go on, with NONE they end."""
        call = self._call(cgroup_id)
        key = self._key(cgroup_id)
        if policy.mode is NetworkMode.LIST:  # the list first: the mode must never stand without it
            self._put_rules(key, policy)
            self._put_call(cgroup_id, replace(call, network=policy.mode))
        else:
            self._put_call(cgroup_id, replace(call, network=policy.mode))
            self._put_rules(key, policy)

    def lineage(self) -> Lineage | None:
        """Forks, execs and exits of attached sessions; None where the part could not be loaded, or may lose events.
        The caller closes it."""
        if "lineage" not in self.parts or kernel_has_function("cgroup_task_dead"):
            return None  # see bpf/loader.py: tracepoints of such kernels may be preempted
        return Lineage(self._pins.maps)

    def pace(self, cgroup_id: int, rate: int | None) -> None:
        """How fast packets may leave this group and all below it, in bytes a second; None: as fast as they can.

        Any group below ours may have a rate, registered or not: a tenant's and a session's hold beside a call's."""
        self._key(cgroup_id)
        if self.paces.set(cgroup_id, rate):
            self._write_config()

    def paced(self) -> set[int]:
        return self.paces.rated()

    def trace_disk(self, on: bool) -> None:
        """Whether writes that find no space are counted. The first time takes some 50 ms; see bpf/disk.py."""
        self._disk.trace(on)

    def set_gpu(self, cgroup_id: int, granted: bool) -> None:
        self._put_call(cgroup_id, replace(self._call(cgroup_id), gpu=granted))

    def forget(self, cgroup_id: int) -> None:
        """Stop counting and acting; the counters are gone. Unknown groups are fine."""
        self._delete(self._key(cgroup_id))
        self.pace(cgroup_id, None)
        self._floor.pop(cgroup_id, None)
        was = self._known.pop(cgroup_id, None)
        if was is not None:
            self._armed -= was.armed
            self._new_generation()

    def registered(self) -> set[int]:
        return set(self._known)

    def thresholds(self, cgroup_id: int) -> tuple[int | None, int | None]:
        """(notify, brake) as the kernel has them, in bytes: what a new daemon adopts."""
        call = self._call(cgroup_id)
        return call.notify or None, call.brake or None

    def settle(self, cgroup_id: int) -> None:
        """Book what the live tasks used so far to this group for good. To be called before they are moved out of it."""
        self._call(cgroup_id)
        if self._tasks is None:
            return
        self._settle = cgroup_id
        try:
            self._run_pass()
        finally:
            self._settle = 0
            self._write_config()

    # Counters ------------------------------------------------------------------------------------------------------

    def counters(self, cgroup_id: int, *, live: bool = True) -> Counters | None:
        """Of one call, its live tasks included; None for a group that is not registered. ``live`` False: of those that
        have ended alone, which needs no pass over the tasks of the host.

        Read again when a task of the call ended meanwhile; a call whose tasks end all the time may lack, in one
        reading, those that ended during it. Values never fall from one reading to the next.
        """
        if cgroup_id not in self._known:
            return None
        key = self._key(cgroup_id)
        for attempt in range(1 + _RETRIES):
            raw = self._counters.get(key)
            if raw is None:
                return None
            harvested = self._sum_cpus(array("Q", raw), 0)
            if self._tasks is None:
                return layout.counters_from(harvested, harvested)
            if not live:
                return self._combined(cgroup_id, harvested, (0,) * layout.N_USAGE)
            self._run_pass()
            row = self._live.get(key)
            again = self._counters.get(key)
            if again is None or attempt == _RETRIES or self._sum_cpus(array("Q", again), 0)[-1] == harvested[-1]:
                break
        return self._combined(cgroup_id, harvested, self._live_usage(row))

    def all_counters(self) -> dict[int, Counters]:
        """Of every registered call: one pass over the host's tasks and one batch read of each map."""
        if not self._known:
            return {}
        keys, values, n = self._counters.batch(len(self._known))
        live: dict[int, tuple[int, ...]] = {}
        if self._tasks is not None:
            self._run_pass()
            live_keys, live_values, _ = self._live.batch(len(self._known))
            for (cgroup_id,), row in zip(
                layout.KEY.iter_unpack(live_keys), layout.LIVE.iter_unpack(live_values), strict=True
            ):
                if row[0] == self._pass:
                    live[cgroup_id] = row[2:]
        every, width = array("Q", values), layout.N_COUNTERS * self._cpus
        none = (0,) * layout.N_USAGE
        found: dict[int, Counters] = {}
        for i in range(n):
            (cgroup_id,) = layout.KEY.unpack_from(keys, i * layout.KEY.size)
            if cgroup_id in self._known:
                harvested = self._sum_cpus(every, i * width)
                found[cgroup_id] = self._combined(cgroup_id, harvested, live.get(cgroup_id, none))
        return found

    def _combined(self, cgroup_id: int, harvested: tuple[int, ...], live: tuple[int, ...]) -> Counters:
        used = tuple(h + n for h, n in zip(harvested[: layout.N_USAGE], live, strict=True))
        floor = self._floor.get(cgroup_id)
        if floor is not None:
            used = tuple(map(max, used, floor))
        self._floor[cgroup_id] = used
        return layout.counters_from(harvested, used)

    def _sum_cpus(self, every: array[int], at: int) -> tuple[int, ...]:
        width = layout.N_COUNTERS
        rows = [every[at + cpu * width : at + (cpu + 1) * width] for cpu in range(self._cpus)]
        return tuple(map(sum, zip(*rows, strict=True)))

    def _live_usage(self, raw: bytes | None) -> tuple[int, ...]:
        row = layout.LIVE.unpack(raw) if raw else (0, 0)
        return row[2:] if raw and row[0] == self._pass else (0,) * layout.N_USAGE

    def _run_pass(self) -> None:
        assert self._tasks is not None  # noqa: S101 - callers have looked
        self._pass += 1
        self._write_config()
        run_iterator(self._tasks)

    # Events --------------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """An epoll descriptor that is readable when events wait: for ``loop.add_reader``."""
        return self._open_ring().fileno()

    def drain(self) -> int:
        """Hand every waiting event (4096 at most) to ``on_event``; how many there were.

        What ``on_event`` raises is raised here when all have been handed over, in an ExceptionGroup.
        """
        records = self._open_ring().drain()
        failures: list[Exception] = []
        for record in records:
            event = layout.decode_event(record)
            if event is None:
                self._undecodable += 1
                continue
            try:
                self._on_event(event)
            except Exception as err:  # the events behind it are handed over first, then all of it is raised
                failures.append(err)
        if failures:
            raise ExceptionGroup("events of the kernel side could not be handled", failures)
        return len(records)

    @property
    def dropped_events(self) -> int:
        """Events that found the ring buffer full, or were in a form that this version does not know."""
        raw = self._dropped.get(_ZERO_KEY)
        return (layout.KEY.unpack(raw)[0] if raw else 0) + self._undecodable

    # The rest ------------------------------------------------------------------------------------------------------

    def set_gpu_majors(self, majors: Iterable[int]) -> None:
        """Replace the set of device majors that need a grant (they may change when a driver is loaded)."""
        wanted = set(majors)
        if len(wanted) > 64:
            raise InvalidPolicy(f"{len(wanted)} device majors", remedy="give at most 64")
        keys, _, _ = self._majors.batch(64)
        for (major,) in layout.MAJOR.iter_unpack(keys):
            if major not in wanted:
                self._majors.delete(layout.MAJOR.pack(major))
        for major in wanted:
            self._majors.put(layout.MAJOR.pack(major), layout.MAJOR.pack(1))

    def memory_bytes(self) -> int:
        """Kernel memory that our maps take (as fdinfo tells; from 6.4 on it grows with what is registered)."""
        total = 0
        for fd in self._fds:
            for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
                if line.startswith("memlock:"):
                    total += int(line.split()[1])
        return total

    def close(self) -> None:
        """Let go of the descriptors. Programs, links and maps stay pinned and at work, but for the trace of disks."""
        self._disk.close()
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)

    def unload(self) -> None:
        """Detach everything, remove every pin, and close."""
        self.close()
        self._pins.remove_all()

    def __enter__(self) -> KernelSide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Inside --------------------------------------------------------------------------------------------------------

    def _open(self, path: Path) -> int:
        fd = get_pinned(path)
        self._fds.append(fd)
        return fd

    def _map(self, name: str, key_size: int, value_size: int, *, per_cpu: int = 1) -> Map:
        return Map(name, self._open(self._pins.maps / name), key_size, value_size, per_cpu=per_cpu)

    def _open_ring(self) -> Ring:
        if self._ring is None:
            raise MapError("ring buffer: the kernel side was closed", remedy="open it again")
        return self._ring

    def _take_over(self) -> None:
        """Learn from the maps what a former daemon registered, and go on from its configuration."""
        keys, values, _ = self._calls.batch(256)
        for (cgroup_id,), row in zip(layout.KEY.iter_unpack(keys), layout.CALL.iter_unpack(values), strict=True):
            notify, brake, memory_id, epoch, network, gpu, _ = row
            self._known[cgroup_id] = _Call(notify, brake, memory_id, epoch, NetworkMode(network), bool(gpu))
        raw = self._config.get(_ZERO_KEY)
        if raw:
            self._pass, self._generation = (layout.CONFIG.unpack(raw)[i] for i in (1, 5))
        self._armed = sum(call.armed for call in self._known.values())
        self._write_config()

    def _write_config(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        self._config.put(
            _ZERO_KEY,
            layout.CONFIG.pack(
                page, self._pass, self._settle, self._stride, self._armed, self._generation, len(self.paces), 0
            ),
        )

    def _put_call(self, cgroup_id: int, call: _Call) -> None:
        was = self._known.get(cgroup_id)
        self._calls.put(self._key(cgroup_id), call.pack())
        self._known[cgroup_id] = call
        if call.armed != (was is not None and was.armed):
            self._armed += 1 if call.armed else -1
        self._new_generation()

    def _new_generation(self) -> None:
        """Makes the tripwire look anew at every process: what it may let pass has changed."""
        self._generation = (self._generation + 1) & 0xFFFF_FFFF
        self._write_config()

    def _put_rules(self, key: bytes, policy: NetworkPolicy) -> None:
        if policy.mode is NetworkMode.LIST:
            self._rules.put(key, layout.encode_rules(policy))
        else:
            self._rules.delete(key)

    def _delete(self, key: bytes) -> None:
        for one in (self._calls, self._rules, self._states, self._live, self._counters):
            one.delete(key)

    def _call(self, cgroup_id: int) -> _Call:
        call = self._known.get(cgroup_id)
        if call is None:
            raise NotRegistered(f"group {cgroup_id} is not registered", remedy="register it first")
        return call

    @staticmethod
    def _key(cgroup_id: int) -> bytes:
        if not 0 < cgroup_id < 1 << 64:
            raise InvalidPolicy(f"{cgroup_id} is not the id of a group", remedy="give the inode of its v2 directory")
        return layout.KEY.pack(cgroup_id)


def huge_page_bytes() -> int:
    """The most that one page fault can bring in: a transparent huge page, or a small page where there are none."""
    try:
        return int(_HUGE_PAGE.read_text())
    except FileNotFoundError:  # built without transparent huge pages
        return os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return _LARGEST_HUGE_PAGE


def _threshold(name: str, value: int | None) -> int:
    if value is None:
        return 0
    if not 0 < value <= _MAX_BYTES:
        raise InvalidPolicy(f"{name}: {value} bytes", remedy="give a positive size, or None to disarm")
    return value


def _next_epoch(call: _Call | None) -> int:
    # 32 bits, and never 0, which is what a fresh state holds.
    return (call.epoch if call else 0) % 0xFFFF_FFFF + 1
