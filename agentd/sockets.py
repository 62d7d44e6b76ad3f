"""Where a client finds the daemon when nobody names it: the user's own (``agentd --user``) where there is one, else the
host's. The launcher (agentd/launcher/options.c) and the client library look in the same places."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

OPERATOR: Final = "operator.sock"
BROKER: Final = "broker.sock"
HOST_DIRECTORY: Final = "/run/corral"


def default_socket(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """Path of the socket ``name``; it need not exist."""
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    own = f"{runtime}/corral/{name}"
    return own if runtime.startswith("/") and _is_ours(own) else f"{HOST_DIRECTORY}/{name}"


def _is_ours(path: str) -> bool:
    """`su` keeps the variable: root must not speak to a daemon of whoever it was before."""
    try:
        return os.stat(path).st_uid == os.geteuid()  # noqa: PTH116  the hook and the CLI start for every command
    except OSError:
        return False
