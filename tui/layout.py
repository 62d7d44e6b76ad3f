"""What the dashboard remembers between two starts: columns, order, folds of the view, theme. A small JSON file.

$XDG_STATE_HOME/corral/top.json, else ~/.local/state/corral/top.json. A file that is damaged or of another version is
put aside, never followed: what a person sees must not depend on half of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tui.model.columns import COLUMNS, DEFAULT

VERSION: Final = 1
MAX_BYTES: Final = 64 * 1024


class LayoutError(Exception):
    """The file cannot be used or written: names it, the cause and what happens instead."""


@dataclass(slots=True)
class Layout:
    columns: tuple[str, ...] = DEFAULT
    sort: str = ""
    descending: bool = True
    flat: bool = False
    ended: bool = False
    theme: str = ""

    @classmethod
    def load(cls, path: Path) -> Layout:
        """Defaults where there is no file. Raises LayoutError."""
        try:
            with path.open("rb") as file:
                text = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return cls()
        except OSError as err:
            raise LayoutError(f"{path}: {err.strerror}; the layout of the dashboard is not remembered") from err
        try:
            if len(text) > MAX_BYTES:
                raise ValueError("too large")
            return cls._from(json.loads(text))
        except (ValueError, TypeError, KeyError, RecursionError) as err:
            raise LayoutError(f"{path}: is no layout ({err}); the default one is used, and written over it") from err

    @classmethod
    def _from(cls, given: Any) -> Layout:
        if not isinstance(given, Mapping) or given.get("version") != VERSION:
            raise ValueError(f"not of version {VERSION}")
        columns = given["columns"]
        if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
            raise ValueError("columns are no list of names")
        known = tuple(name for name in columns if name in COLUMNS)  # a newer dashboard may have had more
        sort = given.get("sort", "")
        return cls(
            columns=known or DEFAULT,
            sort=sort if isinstance(sort, str) and sort in COLUMNS else "",
            descending=given.get("descending") is not False,
            flat=given.get("flat") is True,
            ended=given.get("ended") is True,
            theme=given["theme"] if isinstance(given.get("theme"), str) else "",
        )

    def save(self, path: Path) -> None:
        """Whole or not at all. Raises LayoutError."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            partial = path.with_name(f"{path.name}.{os.getpid()}.part")
            partial.write_text(json.dumps({"version": VERSION, **asdict(self)}, indent=1) + "\n", encoding="utf-8")
            partial.replace(path)
        except OSError as err:
            raise LayoutError(f"{path}: {err.strerror}; the layout is not remembered") from err


def default_path(environment: Mapping[str, str] | None = None) -> Path:
    """By the XDG base directory specification; a relative XDG_STATE_HOME does not count, as it says."""
    environment = os.environ if environment is None else environment
    home = environment.get("XDG_STATE_HOME", "")
    base = Path(home) if home.startswith("/") else Path(environment.get("HOME") or "/") / ".local" / "state"
    return base / "corral" / "top.json"
