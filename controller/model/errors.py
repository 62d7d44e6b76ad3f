"""The exceptions of the controller.

ControllerError
 ├─ InvalidRequest        a field is out of range, unknown or contradicts another       (INVALID_ARGUMENT)
 ├─ NotFound              no such tenant, session or call                                (NOT_FOUND)
 ├─ AlreadyExists         begun twice, opened twice                                      (ALREADY_EXISTS)
 ├─ NotAllowed            the caller may not touch this object                           (PERMISSION_DENIED)
 ├─ WrongState            the object is in a state in which this cannot be done          (FAILED_PRECONDITION)
 ├─ Refused               admission refused the call; carries the reason code            (RESOURCE_EXHAUSTED)
 ├─ CannotEnforce         a limit was asked for that this host cannot give               (FAILED_PRECONDITION)
 └─ CgroupError           a cgroup file said no: names the file, the value and the errno (INTERNAL)

Every message has the object, the cause and the remedy, in that order.
"""

from __future__ import annotations


class ControllerError(Exception):
    """Base of all. ``field`` names the request's field at fault (dotted, as in the proto), ``remedy`` what to do."""

    def __init__(self, message: str, *, field: str = "", value: str = "", remedy: str = "") -> None:
        self.message = message
        self.field = field
        self.value = value[:120]
        self.remedy = remedy
        text = f"{field}: {message}" if field else message
        super().__init__(f"{text}; {remedy}" if remedy else text)


class InvalidRequest(ControllerError):
    pass


class NotFound(ControllerError):
    pass


class AlreadyExists(ControllerError):
    pass


class NotAllowed(ControllerError):
    pass


class WrongState(ControllerError):
    pass


class Refused(ControllerError):
    def __init__(self, message: str, *, code: str, remedy: str = "", field: str = "", value: str = "") -> None:
        self.code = code
        super().__init__(message, field=field, value=value, remedy=remedy)


class CannotEnforce(ControllerError):
    pass


class CgroupError(ControllerError):
    pass
