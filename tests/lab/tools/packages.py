"""The guest's Python packages: those of requirements.lock that run or test Corral, for the guest's own interpreter."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Final

from tests.lab.tools.host import REPOSITORY, Log

GUEST_PYTHON: Final = "3.11"  # of Debian 12; checked in the guest by lab-init
# Tools of the desk (a fifth of a gigabyte): nothing in the guest imports them.
NOT_WANTED: Final = frozenset(
    {"ruff", "mypy", "buf-bin", "import-linter", "grimp", "grpcio-tools", "mypy-protobuf", "xllamacpp", "librt",
     "ast-serialize", "uv", "types-grpcio", "types-protobuf", "types-psutil", "types-jsonschema"}
)  # fmt: skip
_REQUIREMENT: Final = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==", re.MULTILINE)


def requirements(lock: str) -> str:
    """The part of a lock file (pip's format, with hashes on continued lines) that the guest needs."""
    starts = [found.start() for found in _REQUIREMENT.finditer(lock)]
    blocks = [lock[begin:end] for begin, end in zip(starts, [*starts[1:], len(lock)], strict=True)]
    kept = [block for block in blocks if (name := _REQUIREMENT.match(block)) and _plain(name[1]) not in NOT_WANTED]
    return "".join(kept)


def _plain(name: str) -> str:
    """A distribution's name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def build(cache: Path, log: Log) -> Path:
    """An ext4 image of a site-packages directory; built when the lock file or the list changed."""
    wanted = requirements((REPOSITORY / "requirements.lock").read_text("utf-8"))
    key = hashlib.sha256(f"{GUEST_PYTHON}\n{wanted}".encode()).hexdigest()[:16]
    image = cache / f"python-{key}.ext4"
    if image.exists():
        return image
    work = cache / "python.new"
    shutil.rmtree(work, ignore_errors=True)
    target = work / "root" / "site-packages"
    target.mkdir(parents=True)
    listing = work / "requirements.txt"
    listing.write_text(wanted, encoding="utf-8")
    with log.step("Python packages of requirements.lock for the guest"):
        log.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input",
             "--no-deps", "--require-hashes", "--only-binary=:all:", "--python-version", GUEST_PYTHON,
             "--implementation", "cp", "--abi", "cp311", "--abi", "abi3", "--abi", "none",
             "--no-compile", "--target", target, "-r", listing]
        )  # fmt: skip
        compile_all(target, log)
        pack(work / "root", work / "image", spare_mb=16, log=log)
    (work / "image").rename(image)
    shutil.rmtree(work)
    for old in cache.glob("python-*.ext4"):
        if old != image:
            old.unlink()
    return image


def compile_all(directory: Path, log: Log) -> None:
    """Byte code made here: the emulated guest takes minutes for it. Only the guest's own Python version can."""
    if sys.version_info[:2] != tuple(map(int, GUEST_PYTHON.split("."))):
        return
    # "unchecked": whatever a copy does to the times of the files, the byte code is used
    log.run(
        [sys.executable, "-m", "compileall", "-q", "-j", str(os.cpu_count() or 1), "--invalidation-mode",
         "unchecked-hash", "-s", directory, directory]
    )  # fmt: skip


def pack(directory: Path, image: Path, *, spare_mb: int, log: Log, label: str = "lab") -> None:
    """``directory`` as an ext4 image, owned by root, with ``spare_mb`` MiB left free."""
    used = int(log.run(["du", "-sm", directory]).split()[0])
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate((used * 5 // 4 + 8 + spare_mb) << 20)
    options = "lazy_itable_init=1,nodiscard,root_owner=0:0"
    log.run(
        ["mkfs.ext4", "-q", "-F", "-m", "0", "-L", label, "-O", "^has_journal", "-E", options, "-d", directory, image]
    )
