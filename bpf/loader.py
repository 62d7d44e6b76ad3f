"""Parts: objects that are loaded, pinned, adopted and replaced each on its own, around one set of pinned maps."""

from __future__ import annotations

import hashlib
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bpf.errors import AttachFailed, BpfError, LoadFailed, MapError, PinError, Unavailable
from bpf.libbpf import Object, get_pinned, info, library, reason
from bpf.pins import PinDir
from bpf.trial import kernel_has_function

OBJECTS: Final = Path(__file__).parent / "objects"
KERNEL_TYPES: Final = Path("/sys/kernel/btf/vmlinux")  # where the kernel tells its types (BTF)
_LINK_TYPE_CGROUP: Final = 3  # BPF_LINK_TYPE_CGROUP


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    programs: tuple[str, ...]
    absence: str  # what it costs to be without
    traces: bool = True  # hooks into the kernel, and so must know its types
    one_of: tuple[str, ...] = ()  # and the first of these that the kernel takes


# In the order of their worth: what fails first is what would be missed first.
PARTS: Final = (
    Part("tripwire", ("corral_rss",), "calls are not braked in the kernel: their hard limit alone holds them"),
    Part(
        "accounting",
        ("corral_tasks", "corral_move"),
        "no faults, bytes read and written, run-queue wait and switches per call",
        one_of=("corral_dead", "corral_switch", "corral_exit"),
    ),
    Part("lifecycle", ("corral_fork", "corral_exec", "corral_victim"), "no forks and execs, no OOM victims per call"),
    Part(
        "lineage",
        ("corral_lineage_fork", "corral_lineage_exec", "corral_lineage_exit"),
        "of attached sessions, tool calls of a few milliseconds may end before it is known what they were",
    ),
    Part(
        "network",
        ("corral_egress", "corral_ingress"),
        "no network bytes; open sockets escape a network policy",
        traces=False,
    ),
    Part(
        "gates",
        ("corral_connect4", "corral_connect6", "corral_sendmsg4", "corral_sendmsg6", "corral_device"),
        "network policies and GPU grants are not enforced",
        traces=False,
    ),
)


def ends_of_tasks(*, told_when_dead: bool) -> tuple[str, ...]:
    """Which programs may harvest tasks that end, the best first. ``told_when_dead``: the kernel (6.19 and newer) takes
    a task out of its group only after its last switch, in ``cgroup_task_dead``; older ones do before that, so that a
    group would be told to be empty before it was harvested there. accounting.bpf.c says what is wrong with the last."""
    return ("corral_dead", "corral_switch") if told_when_dead else ("corral_exit",)


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


class Loader:
    """Brings every part up once: adopts what a former daemon left, loads the rest.

    ``problems``: one line each, for screens. ``details``: the same errors in full, with what libbpf printed, for logs.
    """

    def __init__(self, pins: PinDir, cgroup: Path, objects: Path = OBJECTS) -> None:
        self._pins, self._cgroup, self.objects = pins, cgroup, objects
        self.parts: set[str] = set()
        self.adopted: set[str] = set()
        self.problems: list[str] = []
        self.details: list[str] = []
        self.lock = -1  # a descriptor that holds the pin directory, the caller's to close; set by ``run``

    def run(self) -> None:
        """Raises Unavailable when no part can be brought up; what a part lacked is in ``problems``. PinsInUse while
        another daemon has the pin directory."""
        missing = [p.name for p in PARTS if not (self.objects / f"{p.name}.bpf.o").is_file()]
        if missing:
            raise Unavailable(
                f"{self.objects}: no compiled object of {', '.join(missing)}", remedy="run scripts/build-bpf"
            )
        try:
            cgroup_fd = os.open(self._cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as err:
            raise Unavailable(f"{self._cgroup}: {err.strerror}", remedy="give a directory of the v2 hierarchy") from err
        try:
            self._pins.prepare()
            self.lock = self._pins.lock()
            try:
                self._bring_up_locked(cgroup_fd)
            except BaseException:
                os.close(self.lock)
                raise
        finally:
            os.close(cgroup_fd)

    def _bring_up_locked(self, cgroup_fd: int) -> None:
        self._drop_incompatible()
        self._drop_unknown()
        causes = self._bring_up_all(cgroup_fd)
        if not self.parts:
            raise Unavailable(
                "no eBPF program can be loaded: " + "; ".join(c.removeprefix("cannot be loaded: ") for c in causes),
                remedy="`corral doctor` shows what this kernel takes",
            )

    def _bring_up_all(self, cgroup_fd: int) -> tuple[str, ...]:
        """Returns the different causes for which parts are missing. Parts that lack the same thing are told of once."""
        failed: dict[str, list[Part]] = {}
        for part in PARTS:
            try:
                if part.traces and not KERNEL_TYPES.exists():
                    raise Unavailable(
                        f"the kernel tells no types (BTF): there is no {KERNEL_TYPES}",
                        remedy="boot a kernel built with CONFIG_DEBUG_INFO_BTF",
                    )
                self._bring_up(part, cgroup_fd)
            except BpfError as err:
                # the object's name differs from part to part, what is wrong with it often does not
                failed.setdefault(err.brief.removeprefix(f"{part.name}.bpf.o "), []).append(part)
                self.details.append(f"{part.name}: {err}")
            except OSError as err:
                failed.setdefault(f"{err.filename or self.objects}: {err.strerror}", []).append(part)
                self.details.append(f"{part.name}: {err}")
            else:
                self.parts.add(part.name)
        for cause, parts in failed.items():
            names, costs = ", ".join(p.name for p in parts), "; ".join(p.absence for p in parts)
            self.problems.append(f"no eBPF {names}: {cause} ({costs})")
        return tuple(failed)

    def _bring_up(self, part: Part, cgroup_fd: int) -> None:
        path = self.objects / f"{part.name}.bpf.o"
        digest = digest_of(path)
        directory = self._pins.of_part(part.name, digest)
        if self._is_whole(part, directory, os.fstat(cgroup_fd).st_ino):
            self.adopted.add(part.name)
        else:
            self._pins.remove(directory)  # a daemon that died while it loaded, or a cgroup that was made anew
            *others, choice = self._choices(part)
            for better in others:
                try:
                    self._load(part, better, path, directory, cgroup_fd)
                    break
                except (LoadFailed, AttachFailed) as err:
                    self.details.append(f"{part.name}: {better} is refused, so another is taken: {err}")
            else:
                self._load(part, choice, path, directory, cgroup_fd)
        # Only now the former build: for a moment both run (and count), never neither.
        for former in self._pins.others_of(part.name, digest):
            self._pins.remove(former)

    def _load(self, part: Part, choice: str | None, path: Path, directory: Path, cgroup_fd: int) -> None:
        loaded = Object(path)
        try:
            loaded.pin_maps(self._pins.maps)
            loaded.leave_out([name for name in part.one_of if name != choice])
            loaded.load()
            directory.mkdir(mode=0o700)
            for program in (*part.programs, *([choice] if choice else ())):
                loaded.attach_and_pin(program, directory / program, cgroup_fd)
        except BaseException:
            with suppress(PinError):  # the first error is the one to report
                self._pins.remove(directory)
            raise
        finally:
            loaded.close()

    def _choices(self, part: Part) -> tuple[str | None, ...]:
        if not part.one_of:
            return (None,)
        fit = ends_of_tasks(told_when_dead=kernel_has_function("cgroup_task_dead"))
        return tuple(name for name in part.one_of if name in fit)

    def pinned_program(self, part: str, program: str) -> Path:
        """Where the link of a program that is at work is pinned."""
        return self._pins.of_part(part, digest_of(self.objects / f"{part}.bpf.o")) / program

    def _is_whole(self, part: Part, directory: Path, cgroup_id: int) -> bool:
        chosen = [name for name in part.one_of if (directory / name).exists()]
        if len(chosen) != bool(part.one_of) or not all((directory / program).exists() for program in part.programs):
            return False
        for program in (*part.programs, *chosen):
            fd = get_pinned(directory / program)
            try:
                kind, _, _, _, attached_to = struct.unpack_from("=IIIIQ", info(fd))
            finally:
                os.close(fd)
            # A link to a cgroup that was removed is still pinned, but acts on nothing.
            if kind == _LINK_TYPE_CGROUP and attached_to != cgroup_id:
                return False
        return True

    def _drop_incompatible(self) -> None:
        """Start afresh when a pinned map has another shape than this build wants: half of each would be worse."""
        try:
            declared = self.declared_maps()
        except LoadFailed:
            return  # the part will say so itself
        for name, wanted in declared.items():
            path = self._pins.maps / name
            if not path.exists():
                continue
            fd = get_pinned(path)
            try:
                kind, _, key, value, entries, flags = struct.unpack_from("=IIIIII", info(fd))
            finally:
                os.close(fd)
            if (kind, key, value, entries, flags) != wanted:
                self.problems.append(
                    f"map {name} of the version before has another shape: its counters and thresholds were dropped"
                )
                self._pins.clear()
                self._pins.prepare()
                return

    def _drop_unknown(self) -> None:
        """Parts that this build does not know must not go on acting."""
        known = {part.name for part in PARTS}
        for directory in self._pins.parts():
            if directory.name.rpartition("-")[0] not in known:
                self._pins.remove(directory)

    def declared_maps(self) -> dict[str, tuple[int, int, int, int, int]]:
        """Of any object: all declare the same maps."""
        probe = Object(self.objects / f"{PARTS[0].name}.bpf.o")
        try:
            return probe.maps()
        finally:
            probe.close()


def run_iterator(link_fd: int) -> None:
    """Run the pinned task iterator to its end. It writes nothing; it sums into a map."""
    fd = int(library().bpf_iter_create(link_fd))
    if fd < 0:
        raise MapError(f"task iterator: {reason(-fd)}", errno=-fd, remedy="restart the daemon")
    try:
        while True:
            try:
                if not os.read(fd, 4096):
                    return
            except BlockingIOError:
                continue  # EAGAIN after a million tasks: the next read goes on from there
    except OSError as err:
        raise MapError(f"task iterator: {err.strerror}", errno=err.errno or 0, remedy="restart the daemon") from err
    finally:
        os.close(fd)
