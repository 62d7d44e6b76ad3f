"""docs/outcomes.md lists every reason code, and the tests that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from controller.model import Reason

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "outcomes.md").read_text("utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \|(.*)$", TEXT, re.MULTILINE))
NAMED = re.findall(r"`(?:tests/lab/)?(test_\w+\.py)::(test_\w+)`", TEXT)


def test_every_code_has_one_row() -> None:
    assert ROWS.keys() == {reason.value for reason in Reason}
    assert len(re.findall(r"^\| `\w+` \|", TEXT, re.MULTILINE)) == len(Reason)


@pytest.mark.parametrize("code", sorted(reason.value for reason in Reason))
def test_every_code_names_a_test_on_the_real_kernel_that_knows_it(code: str) -> None:
    """The test that the row names is there, and looks for this very code: one that never did is found."""
    named = re.findall(r"`(?:tests/lab/)?(test_\w+\.py)::(test_\w+)`", ROWS[code])
    assert named, f"no test of {code} is named"
    sources = [_function(module, name) for module, name in named]
    if code != "refused":  # which is no Outcome's reason: a refusal answers the request
        wanted = rf"[\"\']{code}[\"\']|Reason\.{code.upper()}\b"
        assert any(re.search(wanted, source) for source in sources), f"{named} do not look for {code!r}"


def _function(module: str, name: str) -> str:
    """The source of one test with its decorators."""
    path = next(d / module for d in (ROOT / "tests" / "host", ROOT / "tests" / "lab") if (d / module).is_file())
    pieces = path.read_text("utf-8").split("\n\n\n")
    return next(piece for piece in pieces if re.search(rf"^(?:async )?def {name}\(", piece, re.MULTILINE))


@pytest.mark.parametrize(("module", "name"), sorted(set(NAMED)))
def test_what_it_refers_to_is_there(module: str, name: str) -> None:
    assert _function(module, name)


def test_every_refusal_code_is_listed() -> None:
    for path in (ROOT / "controller").rglob("*.py"):
        for code in re.findall(r"(?:Refusal|Refused)\((?:.|\n){0,400}?code=\"(\w+)\"", path.read_text("utf-8")):
            assert f"`{code}`" in TEXT, f"{code} of {path.name} is missing in docs/outcomes.md"
