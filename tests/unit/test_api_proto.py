"""The committed code is what the proto generates, and the proto passes the standard lint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agentd.proto.corral.v1 import corral_pb2 as pb

ROOT = Path(__file__).resolve().parents[2]
GENERATED = Path("agentd/proto/corral/v1")


def test_the_generated_code_is_fresh(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/gen-proto"), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / GENERATED).iterdir())
    assert names == ["corral_pb2.py", "corral_pb2.pyi", "corral_pb2_grpc.py", "corral_pb2_grpc.pyi"]
    for name in names:
        fresh, committed = tmp_path / GENERATED / name, ROOT / GENERATED / name
        assert committed.read_text() == fresh.read_text(), f"{committed.relative_to(ROOT)}: run scripts/gen-proto"


def test_lint() -> None:
    buf = Path(sys.executable).with_name("buf")
    if not buf.exists():
        pytest.skip("buf is not installed; it comes with the 'dev' dependencies (buf-bin)")
    done = subprocess.run([str(buf), "lint"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_method_is_documented_and_in_the_manual() -> None:
    manual = (ROOT / "docs/api.md").read_text()
    source = (ROOT / GENERATED / "corral.proto").read_text().splitlines()
    for service in pb.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            line = next(i for i, text in enumerate(source) if text.startswith(f"  rpc {method.name}("))
            assert source[line - 1].lstrip().startswith("//"), f"{method.name} has no comment"
            assert f"| `{method.name}` |" in manual, f"{method.name} is missing in docs/api.md"
