"""Records of the kernel side about processes of attached sessions: layouts against C, and their decoding."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpf.lineage import EVENT, EXEC, MAX_ARGUMENTS, LineageEvent, LineageKind, decode

SOURCES = Path(__file__).resolve().parents[2] / "bpf/src"


def test_c_and_python_agree(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("clang-14") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    offsets = {
        "corral_lineage_event": {"tgid": 24, "ppid": 28, "status": 32, "group": 36, "cpu": 40},
        "corral_lineage_exec": {"length": 48, "path": 56, "argv": 184},
    }
    checks = [
        f'_Static_assert(sizeof(struct corral_lineage_event) == {EVENT.size}, "event");',
        f'_Static_assert(sizeof(struct corral_lineage_exec) == {EXEC.size}, "exec");',
        f'_Static_assert(CORRAL_ARGV - 1 == {MAX_ARGUMENTS}, "argv");',
        *(f'_Static_assert(CORRAL_LINEAGE_{kind.name} == {kind.value}, "{kind.name}");' for kind in LineageKind),
        *(
            f'_Static_assert(__builtin_offsetof(struct {name}, {field}) == {at}, "{name}.{field}");'
            for name, fields in offsets.items()
            for field, at in fields.items()
        ),
    ]
    source = tmp_path / "check.c"
    source.write_text(
        f'#include <linux/types.h>\n#include "{SOURCES}/corral.h"\n' + "\n".join(checks) + "\nint main(void) {}\n"
    )
    done = subprocess.run([compiler, "-fsyntax-only", str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_records_are_decoded() -> None:
    fork = EVENT.pack(1, EVENT.size, 0, 7, 11, 10, 0, 0, 0)
    assert decode(fork) == LineageEvent(LineageKind.FORK, 7, 11, 10, 0, 0, 0)
    done = EVENT.pack(3, EVENT.size, 0, 9, 11, 10, 256, 0, 5_000)
    assert decode(done) == LineageEvent(LineageKind.EXIT, 9, 11, 10, 256, 0, 5_000)
    head = (2, EXEC.size, 77, 8, 11, 10, 0, 11, 100)
    ran = decode(EXEC.pack(*head, 6, 0, b"/bin/ls", b"ls\0-l\0"))
    assert ran == LineageEvent(LineageKind.EXEC, 8, 11, 10, 0, 11, 100, 77, "/bin/ls", b"ls\0-l\0")
    long = decode(EXEC.pack(*head, 5_000, 0, b"/bin/sh", b"x" * 1024))
    assert long is not None
    assert (len(long.arguments), long.cut) == (MAX_ARGUMENTS, True)


@given(st.binary(max_size=EXEC.size + 8))
def test_any_bytes_are_a_record_or_none(raw: bytes) -> None:
    event = decode(raw)
    assert event is None or event.kind in LineageKind
