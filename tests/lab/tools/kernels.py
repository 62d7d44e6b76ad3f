"""Kernels from Debian packages: found by suite, downloaded once, unpacked without being installed."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.lab.tools.errors import LabError
from tests.lab.tools.host import KEYRING, Log, mirror

FLAVOUR: Final = "linux-image-cloud-amd64"  # nvme and ext4 built in: a guest boots from it without an initramfs
NEWEST: Final = "newest"
SUITES: Final = {"6.1": "bookworm", "6.12": "trixie", NEWEST: "trixie-backports"}
_IMAGE: Final = re.compile(r"linux-image-([0-9][0-9A-Za-z.+~-]*-cloud-amd64)\b")
_SERIES: Final = re.compile(r"[0-9]+\.[0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """``name``: as asked for (6.1, 6.12, newest). ``release``: as ``uname -r`` has it."""

    name: str
    release: str
    directory: str

    @property
    def series(self) -> str:
        found = _SERIES.match(self.release)
        return found.group() if found else self.release

    @property
    def image(self) -> Path:
        return Path(self.directory) / "vmlinuz"

    @property
    def modules(self) -> Path:
        return Path(self.directory) / "modules"


def parse_madison(text: str) -> dict[str, str]:
    """Suite to version, from ``apt-cache madison PACKAGE``: package | version | URI suite/component arch Packages."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        columns = [column.strip() for column in line.split("|")]
        if len(columns) != 3 or not columns[2].endswith(" Packages"):
            continue
        suite = columns[2].split()[1].partition("/")[0]
        found.setdefault(suite, columns[1])  # apt lists the highest version of a suite first
    return found


def parse_release(text: str) -> str:
    """The kernel's release, from what ``apt-cache show`` says of the package that depends on it."""
    for line in text.splitlines():
        if line.startswith("Depends:") and (found := _IMAGE.search(line)):
            return found.group(1)
    raise LabError(f"{FLAVOUR} depends on no kernel image; has Debian renamed it? apt-cache show said:\n{text[:400]}")


class Apt:
    """An apt of its own below ``directory``: the machine's sources and packages are neither used nor touched."""

    def __init__(self, directory: Path, log: Log) -> None:
        self._directory = directory
        self._log = log

    def update(self) -> None:
        for part in ("lists/partial", "cache/archives/partial"):
            (self._directory / part).mkdir(parents=True, exist_ok=True)
        (self._directory / "status").touch()
        source = mirror()
        lines = [f"deb [signed-by={KEYRING}] {source} {suite} main\n" for suite in SUITES.values()]
        (self._directory / "sources.list").write_text("".join(lines), encoding="utf-8")
        self._get("update")

    def madison(self, package: str) -> dict[str, str]:
        return parse_madison(self._cache("madison", package))

    def release(self, version: str) -> str:
        return parse_release(self._cache("show", f"{FLAVOUR}={version}"))

    def exists(self, package: str) -> bool:
        return bool(self._cache("search", "--names-only", f"^{re.escape(package)}$").strip())

    def unpack(self, packages: list[str], into: Path) -> None:
        """Downloads packages and unpacks all of them into one directory."""
        archives = into.with_name(into.name + ".debs")
        shutil.rmtree(archives, ignore_errors=True)
        archives.mkdir(parents=True)
        self._log.run(
            [
                "sh",
                "-c",
                'cd "$1" && shift && exec "$@"',
                "sh",
                archives,
                *self._words("apt-get"),
                "download",
                *packages,
            ]
        )
        for archive in sorted(archives.glob("*.deb")):
            self._log.run(["dpkg-deb", "-x", archive, into])
        shutil.rmtree(archives)

    def _words(self, program: str) -> list[str]:
        d = self._directory
        settings = {
            "Dir::State::lists": f"{d}/lists",
            "Dir::State::status": f"{d}/status",
            "Dir::Cache": f"{d}/cache",
            "Dir::Etc::sourcelist": f"{d}/sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "APT::Sandbox::User": "root",
        }
        return [program, "-q", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]

    def _get(self, *words: str) -> str:
        return self._log.run([*self._words("apt-get"), *words])

    def _cache(self, *words: str) -> str:
        return self._log.run([*self._words("apt-cache"), *words])


def known(cache: Path) -> dict[str, Kernel]:
    """Kernels that were fetched before and are complete, by name."""
    found = {}
    for name in SUITES:
        record = cache / "kernels" / name / "kernel.json"
        if record.exists():
            found[name] = Kernel(**json.loads(record.read_text("utf-8")))
    return found


def fetch(cache: Path, log: Log, *, update: bool = False) -> dict[str, Kernel]:
    """All kernels of the matrix, by name; downloads those that are missing (all of them when ``update``)."""
    have = {} if update else known(cache)
    wanted = [name for name in SUITES if name not in have]
    if not wanted:
        return have
    apt = Apt(cache / "apt", log)
    with log.step("package lists"):
        apt.update()
        versions = apt.madison(FLAVOUR)
    for name in wanted:
        suite = SUITES[name]
        if suite not in versions:
            raise LabError(
                f"{suite} has no {FLAVOUR}: the mirror lacks that suite; set CORRAL_LAB_MIRROR to a full one"
            )
        release = apt.release(versions[suite])
        with log.step(f"kernel {name}: {release}"):
            have[name] = _unpacked(cache / "kernels" / name, name, release, apt)
    return {name: have[name] for name in SUITES}


def _unpacked(directory: Path, name: str, release: str, apt: Apt) -> Kernel:
    # from 7.x on the image, its modules and its maps are packages of their own
    split = [f"linux-{part}-{release}" for part in ("binary", "modules", "base")]
    packages = split if apt.exists(split[0]) else [f"linux-image-{release}"]
    shutil.rmtree(directory, ignore_errors=True)
    raw = directory / "raw"
    raw.mkdir(parents=True)
    apt.unpack(packages, raw)
    images = sorted(path for path in raw.rglob("vmlinuz*") if path.is_file())
    modules = sorted(path for path in raw.rglob(f"modules/{release}") if path.is_dir())
    if not images or not modules:
        raise LabError(f"{', '.join(packages)}: no kernel or no modules inside; look into {raw}")
    images[0].rename(directory / "vmlinuz")
    modules[0].rename(directory / "modules")
    shutil.rmtree(raw)
    kernel = Kernel(name=name, release=release, directory=str(directory))
    (directory / "kernel.json").write_text(json.dumps(asdict(kernel)), encoding="utf-8")  # last: now it is complete
    return kernel


def choose(kernels: dict[str, Kernel], asked: str) -> Kernel:
    """By name, by series (7.3) or by release. Raises LabError, naming those that there are."""
    for kernel in kernels.values():
        if asked in (kernel.name, kernel.series, kernel.release):
            return kernel
    there = ", ".join(f"{k.name} ({k.release})" for k in kernels.values())
    raise LabError(f"kernel {asked}: the lab has no such kernel; it has {there}")
