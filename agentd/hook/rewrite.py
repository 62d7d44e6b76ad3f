"""A shell command, wrapped: ``corral-exec OPTIONS -- bash -c 'the command'``.

What changes the agent's own shell (``cd``, ``export``, ``source``) and stands first stays outside; the rest runs in a
shell of its own, in the call's cgroup. Wrapping what is wrapped changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from agentd.hook import shell
from agentd.hook.classify import classify, unwrap

# A line that long would not fit beside the environment in one execve (MAX_ARG_STRLEN is 128 KiB, 131,072 bytes, of one
# word), and quoting makes it longer.
MAX_COMMAND: Final = 100_000


class Wrapping(NamedTuple):
    """``options``: of corral-exec, name → value. ``outcome_file``: "" for none."""

    launcher: str
    shell: str
    options: Mapping[str, str]
    outcome_file: str = ""


def worth_wrapping(command: str, leave: tuple[str, ...] = ()) -> bool:
    """Whether there is something to put under Corral: not nothing, not wrapped already, not to be left alone."""
    if not command.strip() or "\0" in command or len(command.encode("utf-8", "replace")) > MAX_COMMAND:
        return False
    if leave:
        import re  # json has imported it already

        if any(re.search(pattern, command) for pattern in leave):
            return False
    _, rest = shell.split_prefix(command)
    return bool(rest.strip()) and not is_wrapped(rest)


def wrap(command: str, wrapping: Wrapping) -> str:
    """Of a command that is worth it: the line to run instead, in the agent's shell."""
    prefix, rest = shell.split_prefix(command)
    body, background = _in_background(rest)
    blank = rest[: len(rest) - len(rest.lstrip(" \t"))]
    line = " ".join(word if _is_safe(word) else shell.quote(word) for word in _start(rest, wrapping))
    return f"{prefix}{blank}{line} -- {wrapping.shell} -c {shell.quote(body.lstrip())}{background}"


def wrapped_argv(command: str, wrapping: Wrapping) -> list[str]:
    """The whole of ``command``, as words to exec: for a shell that is there for this command alone."""
    return [*_start(command, wrapping), "--", wrapping.shell, "-c", command]


def _start(command: str, wrapping: Wrapping) -> list[str]:
    call_class, tool = classify(command)
    words = [wrapping.launcher]
    if tool:
        words.append(f"--tool={tool[:64]}")
    if call_class:
        words.append(f"--class={call_class}")
    words += [f"--{name}={value}" for name, value in wrapping.options.items()]
    if wrapping.outcome_file:
        words.append(f"--outcome-file={wrapping.outcome_file}")
    return words


def is_wrapped(command: str) -> bool:
    """Whether all that a command runs runs under Corral already."""
    found = shell.pieces(command)
    if not found:
        return False
    programs = [unwrap(shell.words(piece.text)) for piece in found if not shell.is_stateful(piece.text)]
    return bool(programs) and all(_is_ours(program, arguments) for program, arguments in programs)


def _is_ours(program: str, arguments: list[str]) -> bool:
    return program == "corral-exec" or (program == "corral" and arguments[:1] in (["run"], ["session"]))


def _in_background(command: str) -> tuple[str, str]:
    """A command that is sent to the background as a whole: without its ``&``, and that. The call then lasts as long as
    the command; inside the call's shell, the shell would end at once and leave it behind."""
    found = shell.pieces(command)
    if found and found[-1].operator == "&" and all(piece.operator in {"&&", "||", "|"} for piece in found[:-1]):
        return command[: found[-1].end - 1], " &"
    return command, ""


def _is_safe(word: str) -> bool:
    return word.isascii() and word.translate(_SAFE).isalnum()


_SAFE: Final = str.maketrans("", "", "-_./:=,+@%")
