"""The real inputs of the demo's tool calls, made in a temporary directory from what every machine with Python has.

Nothing is fetched from a network. ``prepare`` takes about a second.
"""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import socketserver
import subprocess
import sysconfig
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

REPOSITORY: Final = Path(__file__).resolve().parent.parent.parent
PACKAGES: Final = ("agentd", "bpf", "controller", "gpu", "tui")
C_UNITS: Final = 18
COMMITS: Final = 240
TRANSFER_MIB: Final = 48
# Test suites of packages in requirements.lock that ship them and need nothing beside them.
SUITES: Final = {
    "jsonschema": ("validators", "cli", "types", "utils", "format"),
    "referencing": ("core", "jsonschema", "exceptions"),
}


class WorkloadError(Exception):
    """An input could not be made: names it, the cause and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workloads:
    """Where the inputs are. ``*_bytes`` are known sizes that the ledger is checked against."""

    directory: Path
    repository: Path  # bare, with history
    source_tree: Path  # Python's standard library
    source_bytes: int  # of its *.py files
    fetch: Path
    fetch_bytes: int

    def home(self, session: str) -> Path:
        """The directory of one agent, which alone may write there: ``c`` (a C project), ``package`` (this project's
        own source, ready for a wheel), ``out`` (what its calls make)."""
        return self.directory / "home" / session


def prepare(directory: Path, owners: Mapping[str, int | None]) -> Workloads:
    """Makes every input below ``directory``; raises WorkloadError.

    ``owners``: the sessions, each with the uid that its agent runs as (None: the caller's own).
    """
    stdlib = Path(sysconfig.get_path("stdlib"))
    repository = directory / "library.git"
    _make_repository(repository, stdlib)
    # Agents clone what another user owns, which git refuses unless it is told that this is meant.
    (directory / "gitconfig").write_text("[safe]\n\tdirectory = *\n", encoding="ascii")
    for session, owner in owners.items():
        home = directory / "home" / session
        (home / "out").mkdir(parents=True)
        _make_c_project(home / "c")
        _copy_package(home / "package")
        if owner is not None:
            for path in (home, *home.rglob("*")):
                os.chown(path, owner, owner)
    fetch = directory / "weights.bin"
    block = bytes(range(256)) * 4096
    with fetch.open("wb") as file:
        for _ in range(TRANSFER_MIB):
            file.write(block)
    return Workloads(
        directory=directory,
        repository=repository,
        source_tree=stdlib,
        source_bytes=sum(path.stat().st_size for path in _sources(stdlib)),
        fetch=fetch,
        fetch_bytes=TRANSFER_MIB << 20,
    )


def _sources(tree: Path) -> Iterator[Path]:
    """The files that ``grep -r --include=*.py --exclude-dir=site-packages --exclude-dir=test`` reads."""
    pending = [tree]
    while pending:
        for path in pending.pop().iterdir():
            if path.is_symlink():
                continue
            if path.is_dir():
                if path.name not in ("site-packages", "dist-packages", "test"):
                    pending.append(path)
            elif path.suffix == ".py":
                yield path


def _make_repository(target: Path, stdlib: Path) -> None:
    """A bare repository whose history adds the standard library's modules one commit at a time."""
    files = sorted(_sources(stdlib))[:COMMITS]
    stream = bytearray()
    for number, path in enumerate(files):
        data, name = path.read_bytes(), str(path.relative_to(stdlib))
        message = f"Add {name}".encode()
        stream += b"commit refs/heads/main\n"
        stream += b"committer Demo <demo@corral.invalid> %d +0000\n" % (1_700_000_000 + 3600 * number)
        stream += b"data %d\n%s\n" % (len(message), message)
        stream += b"M 100644 inline %s\ndata %d\n%s\n" % (name.encode(), len(data), data)
    _run("git", "init", "--quiet", "--bare", "--initial-branch=main", str(target))
    _run("git", "-C", str(target), "fast-import", "--quiet", given=bytes(stream))


def _run(*command: str, given: bytes = b"") -> None:
    try:
        done = subprocess.run(command, input=given, capture_output=True, check=False)
    except OSError as err:
        raise WorkloadError(f"{command[0]} cannot be started: {err}; install it") from err
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip()
        raise WorkloadError(f"{' '.join(command[:4])} ended with status {done.returncode}: {words[-400:]}")


def _copy_package(target: Path) -> None:
    """This project as a source tree for ``pip wheel``. A copy: building writes into the tree."""
    ignore = shutil.ignore_patterns("__pycache__", "*.o", "corral-exec", "corral-replay")
    for name in PACKAGES:
        shutil.copytree(REPOSITORY / name, target / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, target / name)


_C_UNIT: Final = """\
#include "demo.h"
#include <stdlib.h>
#include <string.h>

/* Open addressing, {slots} slots: an integer map, a sort and a small matrix product over it. */
struct entry{n} {{ uint64_t key; uint64_t value; int used; }};
static struct entry{n} table{n}[{slots}];

static uint64_t mix{n}(uint64_t x) {{
    x ^= x >> {shift}; x *= 0x9e3779b97f4a7c15ull; x ^= x >> 29; x *= {odd}ull; x ^= x >> 32;
    return x;
}}

static void put{n}(uint64_t key, uint64_t value) {{
    uint64_t at = mix{n}(key) % {slots};
    while (table{n}[at].used && table{n}[at].key != key) at = (at + 1) % {slots};
    table{n}[at] = (struct entry{n}){{ key, value, 1 }};
}}

static int get{n}(uint64_t key, uint64_t *value) {{
    for (uint64_t at = mix{n}(key) % {slots}; table{n}[at].used; at = (at + 1) % {slots})
        if (table{n}[at].key == key) {{ *value = table{n}[at].value; return 1; }}
    return 0;
}}

static int compare{n}(const void *a, const void *b) {{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}}

#define ROUND{n}(k) \\
    for (int i = 0; i < 16; i++) for (int j = 0; j < 16; j++) {{ \\
        double sum = 0; \\
        for (int l = 0; l < 16; l++) sum += a[i][l] * b[l][j] + (k) * 1e-9; \\
        c[i][j] = sum; }} \\
    memcpy(a, c, sizeof c);

int check{n}(void) {{
    uint64_t keys[{items}], value;
    double a[16][16], b[16][16], c[16][16];
    for (uint64_t i = 0; i < {items}; i++) {{ keys[i] = mix{n}(i); put{n}(keys[i], i); }}
    for (uint64_t i = 0; i < {items}; i++) if (!get{n}(keys[i], &value) || value != i) return 1;
    qsort(keys, {items}, sizeof *keys, compare{n});
    for (int i = 1; i < {items}; i++) if (keys[i - 1] >= keys[i]) return 2;
    for (int i = 0; i < 16; i++) for (int j = 0; j < 16; j++) {{ a[i][j] = i == j; b[i][j] = i == j; }}
    {rounds}
    return a[3][3] > 0.5 && a[3][4] < 0.5 ? 0 : 3;
}}
"""


def _make_c_project(directory: Path) -> None:
    """A C program of several units with a Makefile: every unit checks itself, ``make check`` runs the program."""
    directory.mkdir()
    names = [f"unit{n:02d}" for n in range(C_UNITS)]
    for n, name in enumerate(names):
        rounds = "\n    ".join(f"ROUND{n}({k})" for k in range(40))
        text = _C_UNIT.format(
            n=n, slots=4096 + n, shift=27 + n % 5, odd=hex(0xBF58476D1CE4E5B9 + 2 * n), items=1500, rounds=rounds
        )
        (directory / f"{name}.c").write_text(text, encoding="ascii")
    prototypes = "\n".join(f"int check{n}(void);" for n in range(C_UNITS))
    (directory / "demo.h").write_text(f"#include <stdint.h>\n{prototypes}\n", encoding="ascii")
    calls = " ".join(f"failed += check{n}() != 0;" for n in range(C_UNITS))
    (directory / "main.c").write_text(
        f'#include "demo.h"\n#include <stdio.h>\nint main(void) {{ int failed = 0; {calls}\n'
        f'    printf("%d of {C_UNITS} units failed\\n", failed); return failed != 0; }}\n',
        encoding="ascii",
    )
    objects = " ".join(f"{name}.o" for name in (*names, "main"))
    (directory / "Makefile").write_text(
        f"CC = gcc\nCFLAGS = -O2 -Wall -Wextra -Werror -std=c11\n\ncheck: demo\n\t./demo\n\n"
        f"demo: {objects}\n\t$(CC) -o $@ $^\n\n%.o: %.c demo.h\n\t$(CC) $(CFLAGS) -c -o $@ $<\n",
        encoding="ascii",
    )


class FileServer:
    """An HTTP server of one directory on a loopback port, in a thread; the far end of the demo's transfers."""

    def __init__(self, directory: Path) -> None:
        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, request: socket.socket, address: tuple[str, int], server: socketserver.BaseServer):
                super().__init__(request, address, server, directory=str(directory))

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing: the demo's own lines are what is to be read."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="demo-file-server", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
