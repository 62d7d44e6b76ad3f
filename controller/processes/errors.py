"""Why the kernel's process events or task statistics cannot be had.

NetlinkError (controller.model.ControllerError)
 ├─ NoProcessEvents    the process connector cannot be listened to
 └─ NoTaskStats        taskstats cannot be asked or listened to
"""

from __future__ import annotations

from controller.model import ControllerError


class NetlinkError(ControllerError):
    pass


class NoProcessEvents(NetlinkError):
    pass


class NoTaskStats(NetlinkError):
    pass
