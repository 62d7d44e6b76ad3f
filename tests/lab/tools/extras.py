"""Sets of Debian packages that only some tests want, laid over the guest's /usr instead of into its root: what no test
asks for is neither downloaded nor carried."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from tests.lab.tools.errors import LabError
from tests.lab.tools.host import Log
from tests.lab.tools.kernels import SUITES, Apt, Kernel
from tests.lab.tools.root import SUITE

# of the guest's suite; a name with {release} or {common} is the kernel's, of the suite that the kernel is from
SETS: Final = {
    "bcc": (
        "python3-bpfcc", "libbpfcc", "libclang-cpp14", "libllvm14", "libedit2", "libz3-4", "libxml2", "libicu72",
        "libbsd0", "libmd0", "linux-headers-{release}", "linux-headers-{common}",
    ),
    "oomd": ("systemd-oomd",),
    "docker": ("docker.io", "containerd", "runc", "tini", "libdevmapper1.02.1", "busybox-static"),
}  # fmt: skip


def build(cache: Path, name: str, kernel: Kernel, log: Log) -> Path:
    """The directory that goes over /usr. Raises LabError for a set that there is not."""
    if name not in SETS:
        raise LabError(f"--with {name}: there is no such set of packages; there is {', '.join(SETS)}")
    target = cache / "extras" / f"{name}-{kernel.release}"
    if target.exists():
        return target
    apt = Apt(cache / "apt", log)
    common = f"{kernel.release.removesuffix('-cloud-amd64')}-common"
    packages = [
        f"{package.format(release=kernel.release, common=common)}/{SUITES[kernel.name] if '{' in package else SUITE}"
        for package in SETS[name]
    ]
    new = target.with_name(target.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    with log.step(f"packages of {name} for {kernel.release}"):
        apt.update()
        apt.unpack(packages, new)
    # Debian's /lib is a link into /usr: what a package puts there belongs below it
    for part in ("lib", "bin", "sbin"):
        if (new / part).is_dir():
            shutil.copytree(new / part, new / "usr" / part, symlinks=True, dirs_exist_ok=True)
    (new / "usr").rename(target)
    shutil.rmtree(new)
    return target


def prelude(names: list[str]) -> str:
    """What the guest does before the command."""
    if not names:
        return ""
    lower = ":".join([*(f"/payload/with-{name}" for name in names), "/usr"])
    return f"mount -t overlay -o lowerdir={lower} extras /usr && ldconfig && "
