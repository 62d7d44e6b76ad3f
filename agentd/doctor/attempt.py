"""One line of the table: something is tried, and what came of it is put into words."""

from __future__ import annotations

from collections.abc import Callable

from bpf import Feature
from controller.model import CgroupError

Attempt = Callable[[], str]  # what was seen; raises Absent, Unknown, or OSError with the kernel's reason


class Absent(Exception):
    """Tried, and it is not there. ``remedy``: a better one than the line's own."""

    def __init__(self, detail: str, *, remedy: str = "") -> None:
        self.detail = detail
        self.remedy = remedy
        super().__init__(detail)


class Unknown(Exception):
    """It cannot be tried from here."""


def tried(name: str, attempt: Attempt, cost: str, remedy: str) -> Feature:
    found: bool | None
    try:
        found, detail = True, attempt()
    except Unknown as err:
        found, detail = None, f"not known: {err}"
    except Absent as err:
        found, detail, remedy = False, err.detail, err.remedy or remedy
    except CgroupError as err:
        found, detail = False, err.message
    except OSError as err:
        found, detail = False, f"{err.filename}: {err.strerror}" if err.filename else err.strerror or str(err)
    return Feature(name=name, found=found, detail=detail, cost=cost, remedy=remedy)
