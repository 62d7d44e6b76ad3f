"""As much of the shell's grammar as rewriting a command needs: where its simple commands are.

Only the top level is looked at, and only where that is certain. Whatever is not (an unbalanced quote, a here-document,
a compound command such as ``if``) comes back as None, and is wrapped as a whole.
"""

from __future__ import annotations

from typing import Final, NamedTuple

# They change the shell that runs them; in a process of their own they would be without effect.
STATEFUL: Final = frozenset(
    {".", "alias", "cd", "export", "popd", "pushd", "set", "shopt", "source", "ulimit", "umask", "unalias", "unset"}
)
# Of these, what a child process inherits. The others (options, aliases, functions, plain variables) must be where the
# commands are that count on them.
_INHERITED: Final = frozenset({"cd", "export", "popd", "pushd", "ulimit", "umask"})
# They open a construct that a later piece closes.
_COMPOUND: Final = frozenset(
    {"{", "}", "[[", "case", "coproc", "do", "done", "elif", "else", "esac", "fi", "for", "function", "if", "select"}
    | {"then", "until", "while"}
)
_AS_LINES: Final = str.maketrans(dict.fromkeys(";|&()`", "\n"))
_OPERATORS: Final = ("&&", "||", ";;", "|&", ";", "|", "&", "\n")


class Piece(NamedTuple):
    """A simple command and the operator behind it ("" at the end). ``start`` and ``end`` delimit both in the text."""

    text: str
    operator: str
    start: int
    end: int


def pieces(command: str) -> list[Piece] | None:
    """The simple commands of a list; None where the text is not surely one."""
    found, certain = _scan(command)
    if not certain or any(_first(piece.text) in _COMPOUND for piece in found):
        return None
    return found


def _scan(command: str) -> tuple[list[Piece], bool]:
    """The pieces up to where the text stops being a plain list, and whether that is its end."""
    found: list[Piece] = []
    start = at = 0
    length = len(command)
    while at < length:
        char = command[at]
        end: int | None = None
        if char == "\\":
            at += 2
        elif char in "'\"`" or command.startswith(("$(", "<(", ">(", "${"), at):
            end = _quoted(command, at) if char in "'\"`" else _nested(command, at + 1)
            if end is None:
                return found, False
            at = end
        elif char == "#" and (at == 0 or command[at - 1] in " \t\n;&|"):
            newline = command.find("\n", at)
            at = length if newline < 0 else newline
        elif command.startswith("<<", at) or char in "()":
            return found, False  # a here-document's text, a subshell or a function
        elif command.startswith((">&", "<&", "&>"), at):
            at += 2  # a redirection, no operator
        else:
            operator = next((op for op in _OPERATORS if command.startswith(op, at)), "")
            at += len(operator) or 1
            if operator:
                found.append(Piece(command[start : at - len(operator)], operator, start, at))
                start = at
    if command[start:].strip():
        found.append(Piece(command[start:], "", start, length))
    return [piece for piece in found if piece.text.strip()], at == length  # at > length: it ends with a backslash


def words(text: str) -> list[str]:
    """The words of a simple command, without quotes: for recognising, never for running. Redirections stay in."""
    out: list[str] = []
    word: list[str] | None = None
    at = 0
    while at < len(text):
        char = text[at]
        if char in " \t\n":
            if word is not None:
                out.append("".join(word))
                word = None
            at += 1
            continue
        word = [] if word is None else word
        if char in "'\"":
            end = _quoted(text, at)
            word.append(text[at + 1 : (end or len(text) + 1) - 1])
            at = end or len(text)
        elif char == "\\":
            word.append(text[at + 1 : at + 2])
            at += 2
        else:
            word.append(char)
            at += 1
    if word is not None:
        out.append("".join(word))
    return out


def rough_pieces(text: str) -> list[str]:
    """What may be simple commands, where ``pieces`` is not sure: good enough for telling what kind of work it is."""
    text = text.partition("\n")[0] if "<<" in text else text  # not the text of a here-document
    out = []
    for piece in text.translate(_AS_LINES).splitlines():
        found = piece.split()
        while found and found[0] in _COMPOUND:
            found = [] if found[0] in {"for", "select", "case"} else found[1:]
        if found:
            out.append(" ".join(found))
    return out


def is_assignment(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return bool(equals) and name.isidentifier() and name.isascii()


def is_stateful(text: str) -> bool:
    """Whether a simple command is there for what it does to the shell itself.

    One that first runs another command (``X=$(make)``) is not, except a change of directory: ``cd $(git rev-parse
    --show-toplevel)`` is what agents write, and what follows depends on it.
    """
    found = words(text)
    rest = [word for word in found if not is_assignment(word)]
    if not found or (rest and rest[0] not in STATEFUL):
        return False
    return (bool(rest) and rest[0] in {"cd", "pushd"}) or not any(mark in text for mark in ("$(", "`", "<("))


def split_prefix(command: str) -> tuple[str, str]:
    """``cd x && export A=1 && rest``: what must stay in the agent's own shell, and the rest ("" where all must).

    Only commands whose effect a child inherits are taken off, and only when ``&&``, ``;`` or a new line joins them.
    Where nothing but changes of the shell is there, all of it stays. (Of ``cd x && make || echo failed`` the ``cd`` is
    taken off, too: that the next command starts in x matters more than what is echoed where there is no x.)
    """
    found, certain = _scan(command)
    if certain and all(is_stateful(piece.text) for piece in found):
        return command, ""
    # "cd x && server &" changes the directory of the background alone
    if any(piece.operator == "&" for piece in found) or command.rstrip().endswith("&"):
        return "", command
    cut = 0
    for piece in found:
        first = next((word for word in words(piece.text) if not is_assignment(word)), "")
        if first not in _INHERITED or not is_stateful(piece.text) or piece.operator not in {"&&", ";", "\n"}:
            break
        cut = piece.end
    return command[:cut], command[cut:]


def quote(text: str) -> str:
    """One word of any POSIX shell. Not shlex.quote: importing shlex costs milliseconds of every command."""
    return "'" + text.replace("'", "'\"'\"'") + "'"


def _first(text: str) -> str:
    found = words(text)
    return found[0] if found else ""


def _quoted(text: str, at: int) -> int | None:
    """Behind the quote that opens at ``at``; None where nothing closes it."""
    opening = text[at]
    at += 1
    while at < len(text):
        char = text[at]
        if char == opening:
            return at + 1
        if char == "\\" and opening != "'":
            at += 2
        elif opening == '"' and text.startswith(("$(", "${"), at):
            end = _nested(text, at + 1)
            if end is None:
                return None
            at = end
        else:
            at += 1
    return None


def _nested(text: str, at: int) -> int | None:
    """Behind the bracket that opens at ``at``; None where nothing closes it."""
    opening, closing = text[at], {"(": ")", "{": "}"}[text[at]]
    depth = 0
    while at < len(text):
        char = text[at]
        if char == "\\":
            at += 2
            continue
        if char in "'\"`":
            end = _quoted(text, at)
            if end is None:
                return None
            at = end
            continue
        if char == opening:
            depth += 1
        elif char == closing:
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    return None
