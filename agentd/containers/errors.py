"""Why containers cannot be attached.

ContainerError (controller.model.ControllerError)
 ├─ NoSdk        the Python package "docker" is not installed
 ├─ EngineAway   no Docker Engine answers
 └─ BadContainer the container cannot be a session
"""

from __future__ import annotations

from controller.model import CannotEnforce, ControllerError


class ContainerError(ControllerError):
    pass


class NoSdk(ContainerError, CannotEnforce):
    pass


class EngineAway(ContainerError, CannotEnforce):
    pass


class BadContainer(ContainerError, CannotEnforce):
    pass
