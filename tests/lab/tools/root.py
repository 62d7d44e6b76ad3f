"""The guest's root file system: Debian 12 with systemd, made by mmdebstrap, packed as ext4."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.lab.tools.host import GUEST_FILES, Log, mirror
from tests.lab.tools.kernels import Kernel
from tests.lab.tools.packages import pack

SUITE: Final = "bookworm"  # Python 3.11 and systemd 252: what many hosts run, and what requirements.lock has wheels for
PACKAGES: Final = (
    "systemd", "systemd-sysv", "udev", "dbus", "libpam-systemd", "kmod", "util-linux", "mount", "procps", "iproute2",
    "iputils-ping", "ca-certificates", "attr", "zstd",
    "python3", "python3-venv", "libbpf1", "bpftool", "strace", "sudo",
    "gcc", "libc6-dev", "make", "git", "openssl",  # the tests' helper programs, the demo's tools, certificates
)  # fmt: skip
# Never needed in a guest that lives for minutes, and each costs seconds of an emulated start.
MASKED: Final = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer", "getty.target", "getty@tty1.service", "serial-getty@ttyS0.service", "systemd-timesyncd.service",
    "systemd-networkd.service", "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service",
    "systemd-random-seed.service", "systemd-pcrphase.service", "systemd-pcrphase-sysinit.service",
    "systemd-hwdb-update.service", "ldconfig.service", "systemd-firstboot.service", "systemd-journal-flush.service",
    "systemd-journal-catalog-update.service", "systemd-binfmt.service", "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path", "systemd-sysusers.service", "systemd-update-done.service",
    "modprobe@configfs.service", "modprobe@drm.service", "modprobe@efi_pstore.service", "modprobe@fuse.service",
    "systemd-tmpfiles-clean.timer", "systemd-pstore.service",
)  # fmt: skip
SPARE_MB: Final = 1500


def build(cache: Path, kernels: Iterable[Kernel], log: Log) -> Path:
    """The image, with the modules of all kernels; built when packages, kernels or the guest's files changed."""
    kernels = list(kernels)
    base = _base(cache, log)
    key = _hash(base.name, *MASKED, *(k.release for k in kernels), *(p.read_text("utf-8") for p in _guest_files()))
    image = cache / f"root-{key}.ext4"
    if image.exists():
        return image
    work = cache / "root.new"
    shutil.rmtree(work, ignore_errors=True)
    tree = work / "root"
    tree.mkdir(parents=True)
    with log.step("guest root as an image"):
        log.run(["tar", "-C", tree, "--numeric-owner", "--xattrs", "-xf", base])
        _furnish(tree)
        for kernel in kernels:
            _add_modules(tree, kernel, log)
        pack(tree, work / "image", spare_mb=SPARE_MB, log=log, label="labroot")
    (work / "image").rename(image)
    shutil.rmtree(work)
    for old in cache.glob("root-*.ext4"):
        if old != image:
            old.unlink()
    return image


def _base(cache: Path, log: Log) -> Path:
    """The packages alone, as a tar archive, so that a change of the guest's own files costs no download."""
    base = cache / f"base-{_hash(SUITE, *PACKAGES)}.tar"
    if base.exists():
        return base
    new = base.with_suffix(".new.tar")
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale", "info")]
    with log.step(f"guest root: Debian {SUITE}, {len(PACKAGES)} packages"):
        log.run(
            ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}", "--format=tar",
             '--aptopt=Acquire::Languages "none"', "--dpkgopt=force-unsafe-io", *excluded,
             SUITE, new, f"deb {mirror()} {SUITE} main"]
        )  # fmt: skip
    new.rename(base)
    for old in cache.glob("base-*.tar"):
        if old != base:
            old.unlink()
    return base


def _guest_files() -> list[Path]:
    return sorted(path for path in GUEST_FILES.iterdir() if path.is_file())


def _furnish(tree: Path) -> None:
    """What makes a Debian root this guest: names, masked units, and the service that runs the command."""
    etc = tree / "etc"
    (etc / "hostname").write_text("lab\n")
    (etc / "hosts").write_text("127.0.0.1 localhost lab\n::1 localhost\n")
    (etc / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")  # a first boot would set up the whole system
    (etc / "fstab").write_text("")
    (etc / "resolv.conf").unlink(missing_ok=True)
    for directory in ("payload", "opt/python", "etc/systemd/system/multi-user.target.wants"):
        (tree / directory).mkdir(parents=True, exist_ok=True)
    units = etc / "systemd" / "system"
    for name in MASKED:
        link = units / name
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    for name, target in {
        "lab.service": units,
        "lab-modules.conf": etc / "modules-load.d",
        "lab-manager.conf": etc / "systemd" / "system.conf.d",
        "lab-journal.conf": etc / "systemd" / "journald.conf.d",
        "lab-init": tree / "usr" / "local" / "sbin",
    }.items():
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(GUEST_FILES / name, target / name)
    (tree / "usr" / "local" / "sbin" / "lab-init").chmod(0o755)
    (units / "multi-user.target.wants" / "lab.service").symlink_to("../lab.service")


def _add_modules(tree: Path, kernel: Kernel, log: Log) -> None:
    target = tree / "usr" / "lib" / "modules" / kernel.release
    shutil.copytree(
        kernel.modules, target, symlinks=True, ignore=shutil.ignore_patterns("vmlinuz", "System.map", "build", "source")
    )
    log.run(["depmod", "-b", tree, kernel.release])


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
