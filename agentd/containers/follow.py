"""Which containers are to be attached when they start, kept over restarts of the daemon in one small file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from agentd.api.attached import Selector
from controller.model import ControllerError

_NAME: Final = "attach.json"
_VERSION: Final = 1


class Follow(Struct, frozen=True, kw_only=True):
    """An attach with ``follow``: for whom, and what it asked for."""

    tenant: str
    name: str = ""
    labels: dict[str, str] = {}
    rules: str = ""
    selector: Selector = Selector()


class _File(Struct, kw_only=True):
    version: int = _VERSION
    follow: list[Follow] = []


class FollowFile:
    """In the daemon's state directory, written whole and renamed into place."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / _NAME

    def load(self) -> list[Follow]:
        """Raises ControllerError for a file that is damaged or of a newer version: it is not written over then."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        try:
            file = msgspec.json.decode(data, type=_File)
        except msgspec.DecodeError as err:
            raise ControllerError(
                f"{self.path} is damaged: {err}", remedy="remove it; attach with --follow again"
            ) from err
        if file.version > _VERSION:
            raise ControllerError(f"{self.path} is of a newer version ({file.version})", remedy="update the daemon")
        return file.follow

    def save(self, follow: list[Follow]) -> None:
        new = self.path.with_suffix(".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(_File(follow=follow)))
        new.replace(self.path)
