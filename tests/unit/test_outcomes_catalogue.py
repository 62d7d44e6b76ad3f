"""docs/outcomes.md lists every reason code, and the tests that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from controller.model import Reason

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "outcomes.md").read_text("utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \|(.*)$", TEXT, re.MULTILINE))
NAMED = re.findall(r"`(test_\w+\.py)::(test_\w+)`", TEXT)


def test_every_code_has_one_row() -> None:
    assert ROWS.keys() == {reason.value for reason in Reason}
    assert len(re.findall(r"^\| `\w+` \|", TEXT, re.MULTILINE)) == len(Reason)


@pytest.mark.parametrize(("module", "name"), sorted(set(NAMED)))
def test_what_it_refers_to_is_there(module: str, name: str) -> None:
    source = (ROOT / "tests" / "host" / module).read_text("utf-8")
    assert re.search(rf"^async def {name}\(", source, re.MULTILINE), f"{module} has no {name}"


def test_every_refusal_code_is_listed() -> None:
    for path in (ROOT / "controller").rglob("*.py"):
        for code in re.findall(r"(?:Refusal|Refused)\((?:.|\n){0,400}?code=\"(\w+)\"", path.read_text("utf-8")):
            assert f"`{code}`" in TEXT, f"{code} of {path.name} is missing in docs/outcomes.md"
