"""docs/troubleshooting.md quotes messages as they are in the program: a message that changes must change there, too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PAGE = (REPOSITORY / "docs/troubleshooting.md").read_text("utf-8")
# patterns and names that the page explains, and words of gRPC's own
EXPLAINED = {"FILE:LINE: KEY = VALUE: …"}


def quoted() -> list[str]:
    """The messages in the first column of every table."""
    rows = re.findall(r"^\| (`.*?) \| ", PAGE, flags=re.MULTILINE)
    return [text for row in rows for text in re.findall(r"`([^`]+)`", row) if text not in EXPLAINED]


@pytest.fixture(scope="module")
def program() -> str:
    """All string literals, joined as the compiler joins those that stand side by side, placeholders as they are."""
    texts = []
    for folder in ("agentd", "bpf", "controller", "scripts"):
        for path in (REPOSITORY / folder).rglob("*"):
            if path.is_file() and (path.suffix in (".py", ".c") or folder == "scripts"):
                text = path.read_text("utf-8", "replace").replace('\\"', '"')
                texts.append(re.sub(r'"\s*\n?\s*f?"', "", text))
    return "\n".join(texts)


def test_there_are_messages() -> None:
    assert len(quoted()) > 45


@pytest.mark.parametrize("message", quoted())
def test_the_program_says_so(program: str, message: str) -> None:
    # a quoted name in a message comes from a placeholder
    assert re.sub(r"NetworkMode|OnPressure", "{enum}", message) in program
