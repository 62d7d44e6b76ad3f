"""This machine: the programs that the lab needs, its Debian mirror, its cache, and one lab at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.lab.tools.errors import BuildFailed, LabError, MissingProgram

REPOSITORY: Final = Path(__file__).resolve().parents[3]
GUEST_FILES: Final = REPOSITORY / "tests" / "lab" / "guest"
LOG_TAIL: Final = 12  # lines of the log in an error
STEP_WITHIN: Final = 900.0  # seconds for one step of building; the longest takes one minute here
_POLL: Final = 1.0  # seconds between two looks at a lock that somebody else has

_PROGRAMS: Final = {  # program → Debian package
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "apt-get": "apt",
    "tar": "tar",
}
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_MIRROR: Final = re.compile(r"https?://\S+/debian/?(?=\s|$)", re.MULTILINE)


def cache_directory() -> Path:
    """Where everything that is built once is kept: CORRAL_LAB_CACHE, or .cache/lab of the checkout."""
    return Path(os.environ.get("CORRAL_LAB_CACHE") or REPOSITORY / ".cache" / "lab").resolve()


def environment() -> dict[str, str]:
    """Ours, with the directories in which administrators' programs are."""
    return {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"}


def missing_packages() -> list[str]:
    """Debian packages of the programs that are not here, each once."""
    path = environment()["PATH"]
    missing = [package for program, package in _PROGRAMS.items() if shutil.which(program, path=path) is None]
    if not KEYRING.exists():
        missing.append("debian-archive-keyring")
    return list(dict.fromkeys(missing))


def ensure_programs(log: Log) -> None:
    """Installs what is missing, as root with apt-get. Raises MissingProgram where that cannot be done."""
    missing = missing_packages()
    if not missing:
        return
    remedy = f"run as root: apt-get install --no-install-recommends {' '.join(missing)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise MissingProgram(f"the lab needs packages that are not installed here: {', '.join(missing)}; {remedy}")
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", *missing]
    try:
        with log.step(f"packages: {' '.join(missing)}"):
            log.run(["apt-get", "update", "-qq", "-o", "DPkg::Lock::Timeout=300"])
            log.run(command, extra={"DEBIAN_FRONTEND": "noninteractive"})
    except BuildFailed as err:
        raise MissingProgram(f"the lab's packages could not be installed ({err}); {remedy}") from err


def mirror() -> str:
    """The Debian mirror that this machine's apt is set to, or CORRAL_LAB_MIRROR. Raises LabError without one."""
    if given := os.environ.get("CORRAL_LAB_MIRROR"):
        return given
    sources = Path("/etc/apt")
    for path in (sources / "sources.list", *sorted((sources / "sources.list.d").glob("*"))):
        with contextlib.suppress(OSError):
            text = "\n".join(line for line in path.read_text("utf-8").splitlines() if not line.startswith("#"))
            if found := _MIRROR.search(text):
                return found.group()
    raise LabError(
        "no Debian mirror is known: none is named in /etc/apt/sources.list or sources.list.d; "
        "set CORRAL_LAB_MIRROR to the address of one"
    )


class Log:
    """Says each step and how long it took on stderr; what the commands print goes to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        begun = time.monotonic()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"--- {text}\n")
        yield
        print(f"lab: {text:<56} {time.monotonic() - begun:5.1f} s", file=sys.stderr, flush=True)

    def run(
        self, command: Sequence[str | Path], *, extra: Mapping[str, str] | None = None, within: float = STEP_WITHIN
    ) -> str:
        """Its standard output. Raises BuildFailed, with the end of what it said, when it fails or takes more than
        ``within`` seconds: a mirror that does not answer must not hold anybody for ever."""
        words = [str(word) for word in command]
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment() | dict(extra or {}),
            process_group=0,
        )
        late = False
        try:
            try:
                out, told = process.communicate(timeout=within)
            except subprocess.TimeoutExpired:
                late = True
                os.killpg(process.pid, signal.SIGKILL)  # its children, too: they hold the pipes
                out, told = process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"$ {' '.join(words)}\n{out[-4000:]}{told}")
        if late or process.returncode != 0:
            said = "\n".join((out + told).splitlines()[-LOG_TAIL:])
            why = f"did not end within {within:g} s" if late else f"ended with status {process.returncode}"
            raise BuildFailed(f"{words[0]} {why}; all of it is in {self.path}:\n{said}")
        return out


@contextlib.contextmanager
def alone(directory: Path, what: str, *, within: float | None = None) -> Iterator[None]:
    """One at a time: two guests at once on a small machine each take twice as long, and time out. Raises LabError when
    others had it for ``within`` seconds (None: waits as long as it takes)."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"lab: waiting for another {what}", file=sys.stderr, flush=True)
            if within is None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            else:
                _locked(lock.fileno(), within, what)
        yield


def _locked(descriptor: int, within: float, what: str) -> None:
    """flock(2) has no time-out of its own."""
    deadline = time.monotonic() + within
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LabError(f"another {what} was at work for {within:g} s; try again when it has ended") from None
            time.sleep(_POLL)
        else:
            return
