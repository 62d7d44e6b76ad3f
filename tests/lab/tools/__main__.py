"""``scripts/lab``: builds the lab, runs a command in a guest, or the tests of the lab."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.lab.tools import core, extras, guests, kernels
from tests.lab.tools.errors import LabError
from tests.lab.tools.host import REPOSITORY, Log, alone, cache_directory

PYTEST: Final = (
    ".venv/bin/python -m pytest -q -p no:cacheprovider --basetemp=/tmp/t -o timeout=900 "
    "-o junit_family=xunit2 --junitxml=/payload/out/report.xml"
)
_INSTALLS: Final = re.compile(r"tests/lab(?:/?(?:\s|$)|/test_(?:service|package|rootless)\.py)")


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    own, command = words, list[str]()
    if "--" in words:
        at = words.index("--")
        own, command = words[:at], words[at + 1 :]
    options = _parser().parse_args(own)
    cache = cache_directory()
    try:
        if os.geteuid() != 0:
            raise LabError("only root can make the guest's file systems; run scripts/lab with sudo")
        if options.verb == "clean":
            shutil.rmtree(cache, ignore_errors=True)
            return 0
        log = Log(cache / "build.log")
        if options.verb == "build":
            with alone(cache, "guest"):
                lab = guests.build(cache, log, update=options.update)
            for kernel in lab.kernels.values():
                print(f"{kernel.name:8s} {kernel.release}")
            return 0
        if options.verb == "test" and options.core:
            return core.run(core.asked(request(options, [*core.TESTS, *command])), cache, log)
        return guests.run(request(options, command), cache, log)
    except LabError as err:
        skipped = options.verb == "test" and options.core
        print(f"lab: {'skipped: ' if skipped else ''}{err}", file=sys.stderr)
        return core.SKIPPED if skipped else guests.CANNOT
    except KeyboardInterrupt:
        return 130


def request(options: argparse.Namespace, command: Sequence[str]) -> guests.Request:
    """What the command line asks for. Raises LabError where it makes no sense."""
    asked = [options.kernel]
    bring = [_brought(word) for word in options.bring]
    if options.verb == "test":
        text = test_command(command)
        if _INSTALLS.search(text):
            bring.append((release(), "release.tar.gz"))
        if options.kernel == "all":
            asked = list(kernels.SUITES)
    elif command:
        text = command[0] if len(command) == 1 else shlex.join(command)
    else:
        raise LabError("no command; give one after --, e.g. scripts/lab run -- uname -r")
    return guests.Request(
        command=text,
        kernels=asked,
        timeout=options.timeout,
        out=options.out,
        tree=not options.no_tree,
        bring=bring,
        extras=options.extras,
        memory=options.memory,
        cpus=options.cpus,
        append=options.append,
        network=options.network,
        journal=options.journal,
        verbose=options.verbose,
    )


def test_command(arguments: Sequence[str]) -> str:
    """pytest with ``arguments``; all of the lab's tests where none of them is a path."""
    named = any(not a.startswith("-") and (REPOSITORY / a.partition("::")[0]).exists() for a in arguments)
    return f"{PYTEST} {shlex.join([*([] if named else ['tests/lab']), *arguments])}"


def release() -> Path:
    """What the guest installs: built from this tree. Raises LabError."""
    done = subprocess.run([REPOSITORY / "scripts" / "build-release"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"the release for the guest could not be built by scripts/build-release:\n{done.stderr.strip()}")
    return REPOSITORY / done.stdout.splitlines()[-1]


def _brought(word: str) -> tuple[Path, str]:
    source, _, name = word.partition("=")
    if not name or name.startswith("/") or ".." in name.split("/"):
        raise LabError(f"--bring {word}: not PATH=NAME with a NAME below /payload")
    return Path(source), name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/lab", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    build = verbs.add_parser("build", help="what a guest boots from; run and test do it as well where it is missing")
    build.add_argument("--update", action="store_true", help="the newest kernels that Debian has now")
    verbs.add_parser("clean", help="remove everything that was built")
    run = verbs.add_parser("run", help="run a command as root in a copy of the working tree; its exit status is ours")
    test = verbs.add_parser("test", help="run tests/lab, or the tests given after --")
    test.add_argument(
        "--core", action="store_true", help="the few that are for every change; 77 where no guest can be made here"
    )
    for verb in (run, test):
        which = "6.1, 6.12, newest (default), or a release" + ("; all: one after the other" if verb is test else "")
        verb.add_argument("--kernel", default=kernels.NEWEST, metavar="K", help=which)
        verb.add_argument(
            "--timeout", type=float, default=1800.0, metavar="S", help="seconds for a guest; then it is killed (124)"
        )
        verb.add_argument("--out", type=Path, metavar="DIR", help="copy what is left in /payload/out here")
        verb.add_argument("--memory", default="3G", help="of the guest (default: 3G)")
        verb.add_argument("--cpus", type=int, default=2)
        verb.add_argument("--append", default="", metavar="WORDS", help="more of the kernel's command line")
        verb.add_argument(
            "--bring", action="append", default=[], metavar="PATH=NAME", help="PATH into the guest as /payload/NAME"
        )
        verb.add_argument(
            "--with",
            dest="extras",
            action="append",
            default=[],
            metavar="SET",
            help=f"of packages: {', '.join(extras.SETS)}",
        )
        verb.add_argument("--no-tree", action="store_true", help="without the working tree")
        verb.add_argument("--network", action="store_true", help="the guest can reach what this machine can")
        verb.add_argument("--journal", action="store_true", help="the guest's journal beside the files in --out")
        verb.add_argument("-v", "--verbose", action="store_true", help="say how long what took")
    return parser


if __name__ == "__main__":
    sys.exit(main())
