"""The lab: a guest machine with cgroup v2, systemd as process 1 and a kernel of choice, in which the working tree runs.

``host`` finds this machine's programs and mirror · ``kernels`` and ``root`` and ``packages`` build, once, what a guest
boots from · ``payload`` carries the tree in and results out · ``machine`` boots it. ``scripts/lab`` is the command.

LabError
 ├─ MissingProgram   something of this machine is missing; says which package has it
 ├─ BuildFailed      a step of building failed; carries the end of its log
 └─ GuestFailed      the guest was never able to run the command
"""

from __future__ import annotations

from tests.lab.tools.errors import BuildFailed, GuestFailed, LabError, MissingProgram

__all__ = ["BuildFailed", "GuestFailed", "LabError", "MissingProgram"]
