"""What makes a session an attached one, as its directory remembers it across restarts of the daemon."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """``pid`` and ``start`` (ticks since boot, as in /proc/PID/stat): the agent's process, or the container's first
    one, in the host's numbers. ``group``: the container's own cgroup, as ``controller.recognise.source.group_of`` has
    it; empty where the session is no container."""

    rules: str
    pid: int
    start: int
    container: str = ""
    group: str = ""
