"""What the screen shows, as CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Final

from tui.model.columns import COLUMNS, Column
from tui.model.rows import Row, Value

# Spreadsheets run what begins with one of these; agents choose commands and names.
_FORMULAS: Final = ("=", "+", "-", "@", "\t", "\r")


def to_csv(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Numbers in the units of the columns' meaning: bytes, seconds, cores, a second; not as on the screen."""
    columns = [COLUMNS[name] for name in names]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["kind", "id", "tenant", "session", *(column.name for column in columns)])
    for row in rows:
        tenant = row.tenant.name if row.tenant else ""
        session = row.session.name if row.session else ""
        cells: list[Value] = [row.kind, row.id, tenant, session, *(value(column, row) for column in columns)]
        writer.writerow([_harmless(cell) for cell in cells])
    return out.getvalue()


def to_json(rows: Sequence[Row], names: Sequence[str], *, at: float | None) -> str:
    """``at``: of the picture, unix seconds."""
    content = {
        "at": at,
        "rows": [
            {
                "kind": row.kind,
                "id": row.id,
                "tenant": row.tenant.name if row.tenant else None,
                "session": row.session.name if row.session else None,
                **{name: value(COLUMNS[name], row) for name in names},
            }
            for row in rows
        ],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def value(column: Column, row: Row) -> Value:
    """What a column means on a row; of the state its word."""
    if column.name == "state":
        return row.state.word if row.state is not None else len(row.below)
    return column.of(row)


def _harmless(cell: Value) -> Value:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULAS) else cell
