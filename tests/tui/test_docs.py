"""docs/dashboard.md and its pictures say what the dashboard is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tui.keys import KEYS
from tui.model.columns import COLUMNS, DEFAULT

ROOT = Path(__file__).resolve().parents[2]
MANUAL = (ROOT / "docs" / "dashboard.md").read_text("utf-8")


def test_every_key_is_in_the_manual() -> None:
    assert [
        f"| `{key.shown}` | {key.words} |" for key in KEYS if f"| `{key.shown}` | {key.words} |" not in MANUAL
    ] == []


def test_every_column_is_in_the_manual() -> None:
    lines = [f"| {c.title} | {c.words} |{' yes' if c.name in DEFAULT else ''} |" for c in COLUMNS.values()]
    assert [line for line in lines if line not in MANUAL] == []


def test_the_pictures_are_fresh(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TZ"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "pictures"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    used = set(re.findall(r"pictures/([a-z]+)\.svg", MANUAL))
    made = {path.stem: path.read_text("utf-8") for path in tmp_path.iterdir()}
    assert used <= made.keys()
    for name, fresh in made.items():
        assert (ROOT / "docs" / "pictures" / f"{name}.svg").read_text("utf-8") == fresh, "run scripts/pictures"
