"""What may go wrong in the lab. Each message names the object, the cause and the remedy."""

from __future__ import annotations


class LabError(Exception):
    """Base of all."""


class MissingProgram(LabError):
    pass


class BuildFailed(LabError):
    pass


class GuestFailed(LabError):
    pass
