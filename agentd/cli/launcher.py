"""Where ``corral-exec`` and its companions are, and ``corral run``: a plain exec of it.

Nothing here imports argparse, grpc or the model: ``corral run`` must cost a Python start and no more (who counts
milliseconds calls ``corral-exec`` directly).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from agentd.cli.errors import CliError, NotFoundError, NotPermitted

_PACKAGE: Final = Path(__file__).resolve().parent.parent
_PLACES: Final = (_PACKAGE / "launcher", Path("/usr/lib/corral"), Path("/usr/libexec/corral"))


def find_program(name: str, environment: Mapping[str, str] = os.environ) -> Path:
    """``corral-exec`` or ``corral-replay``: beside the package, where distributions put it, or in PATH.

    CORRAL_EXEC names the launcher outright. Raises NotFoundError with the places that were tried.
    """
    named = environment.get(name.upper().replace("-", "_"), "")
    if named:
        if os.access(named, os.X_OK):
            return Path(named)
        raise NotFoundError(
            f"{name.upper().replace('-', '_')}={named} is not a program", remedy="unset it, or name the built one"
        )
    for folder in _PLACES:
        candidate = folder / name
        if os.access(candidate, os.X_OK) and candidate.is_file():
            return candidate
    in_path = shutil.which(name, path=environment.get("PATH"))
    if in_path:
        return Path(in_path)
    tried = ", ".join(str(folder) for folder in _PLACES)
    raise NotFoundError(
        f"{name} is not in {tried} or PATH",
        remedy=f"build it with scripts/build-{'replay' if name.endswith('replay') else 'launcher'}",
    )


def run(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> NoReturn:
    """Become ``corral-exec ARGUMENTS``. Raises CliError when that cannot be."""
    become([str(find_program("corral-exec", environment)), *arguments], environment)


def become(argv: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """execve(2) of ``argv`` (looked up in PATH), its errors in words."""
    try:
        os.execvpe(argv[0], list(argv), dict(environment))  # noqa: S606  # the user named the program
    except FileNotFoundError:
        raise NotFoundError(f"{argv[0]}: no such program", remedy="check its name and PATH") from None
    except PermissionError:
        raise NotPermitted(f"{argv[0]}: not executable", remedy="chmod +x it, or name the interpreter") from None
    except OSError as err:
        raise CliError(f"{argv[0]}: {err.strerror}") from None
