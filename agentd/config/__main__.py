"""Writes what follows from the configuration's types: docs/corral.schema.json, the tables of docs/configuration.md.

Run from the repository's root after a change of agentd/config/model.py: ``python -m agentd.config``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from agentd.config.schema import reference, schema

BEGIN: Final = "<!-- reference: written by python -m agentd.config -->"
END: Final = "<!-- end of the reference -->"


def schema_text() -> str:
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def with_reference(page: str) -> str:
    """``page`` with the text between its two marks replaced by the reference. Raises ValueError without the marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"docs/configuration.md lacks the line {BEGIN if not begin else END!r}; put it back")
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"


def main(docs: Path = Path("docs")) -> None:
    (docs / "corral.schema.json").write_text(schema_text(), encoding="utf-8")
    page = docs / "configuration.md"
    page.write_text(with_reference(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
