"""The disk that carries the working tree and the command into a guest, and its exit status and files out."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.lab.tools.host import REPOSITORY, Log, environment
from tests.lab.tools.packages import compile_all, pack

# Built by scripts/setup and ignored by git: the guest has neither clang nor the time.
BUILT: Final = ("bpf/objects/*.o", "agentd/launcher/corral-exec", "agentd/launcher/corral-replay")
COMMANDS: Final = {"corral": "agentd.cli:main", "agentd": "agentd.main:main"}


def tree_files(tree: Path) -> list[Path]:
    """Files of a checkout, relative to it: what git tracks or would track, and what set-up built."""
    listed = subprocess.run(
        ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
    )
    names = [Path(os.fsdecode(name)) for name in listed.stdout.split(b"\0") if name]
    built = [path.relative_to(tree) for pattern in BUILT for path in sorted(tree.glob(pattern))]
    # a file that git knows and that somebody removed has nothing to bring
    return [name for name in dict.fromkeys((*names, *built)) if (tree / name).is_symlink() or (tree / name).is_file()]


class Payload:
    """A staging directory below ``work``, then an image of it. ``tree``: None brings an empty directory."""

    def __init__(self, work: Path, log: Log) -> None:
        self._staging = work / "payload"
        self._log = log
        self.image = work / "payload.ext4"
        (self._staging / ".lab").mkdir(parents=True)
        (self._staging / "out").mkdir()
        (self._staging / "tree").mkdir()

    def bring_tree(self, tree: Path = REPOSITORY) -> None:
        target = self._staging / "tree"
        for name in tree_files(tree):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, target / name, follow_symlinks=False)
        compile_all(target, self._log)
        self._environment(target / ".venv")

    def bring(self, source: Path, name: str) -> None:
        """A file or directory of this machine as /payload/``name``."""
        target = self._staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)

    def command(self, text: str, *, journal: bool) -> None:
        (self._staging / ".lab" / "command").write_text(f"{text}\n", encoding="utf-8")
        if journal:
            (self._staging / ".lab" / "want-journal").touch()

    def pack(self, *, spare_mb: int) -> None:
        pack(self._staging, self.image, spare_mb=spare_mb, log=self._log, label="payload")
        shutil.rmtree(self._staging)

    def status(self) -> int | None:
        """The command's exit status, None when the guest never wrote one."""
        text = self._debugfs("cat /.lab/status")
        return int(text) if text.strip().isdigit() else None

    def fetch(self, into: Path) -> None:
        """/payload/out of the guest, and the journal where it was asked for, to a directory of this machine."""
        into.mkdir(parents=True, exist_ok=True)
        self._debugfs(f"rdump /out {into}")
        made = into / "out"
        for path in sorted(made.iterdir()) if made.is_dir() else ():
            target = into / path.name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            path.replace(target)
        if made.is_dir():
            made.rmdir()
        journal = self._debugfs("cat /.lab/journal")
        if journal:
            (into / "journal").write_text(journal, encoding="utf-8")

    def _debugfs(self, request: str) -> str:
        done = subprocess.run(
            ["debugfs", "-R", request, str(self.image)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env=environment(),
        )
        return done.stdout

    def _environment(self, venv: Path) -> None:
        """A virtual environment over the guest's own python3 and the disk of packages, for .venv/bin/python."""
        site = venv / "lib" / "python3.11" / "site-packages"
        site.mkdir(parents=True)
        (venv / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.11\n")
        tree = "/payload/tree"
        (site / "corral-lab.pth").write_text(f"/opt/python/site-packages\n{tree}\n{tree}/agentd/client\n")
        programs = venv / "bin"
        programs.mkdir()
        for name in ("python", "python3", "python3.11"):
            (programs / name).symlink_to("/usr/bin/python3")
        for name, entry in COMMANDS.items():
            module, _, function = entry.partition(":")
            script = programs / name
            script.write_text(
                f"#!{tree}/.venv/bin/python\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
            )
            script.chmod(0o755)
