"""What starts a tool call in an attached session: rules as data, and their matching. Pure.

A set of rules is a TOML file (``controller/recognise/rules/NAME.toml``, or the operator's own), versioned and checked
when it is loaded. Rules are asked in order, the first that matches decides. All conditions of a rule must hold; they
compare words and substrings and nothing more: what they are compared with was chosen by the agent, and a pattern
language could be made to run for hours.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from controller.model import InvalidRequest, NotFound, is_name

VERSION: Final = 1
DEFAULT: Final = "generic"
MAX_FILE: Final = 256 * 1024  # bytes
MAX_TEXT: Final = 4096  # characters of a command line that rules look at

SHELLS: Final = frozenset({"sh", "bash", "dash", "zsh", "ash", "ksh", "fish", "busybox"})
_WITH_VALUE: Final = frozenset({"--rcfile", "--init-file", "-o", "+o", "-O", "+O"})  # options of shells: bash(1)


class Kind(StrEnum):
    """What a process becomes. A ``shell`` is fed commands: it stays with the agent, each of its children is a call.
    An ``agent`` stays and its children are asked about as the agent's own are; a ``helper`` stays with all below it."""

    CALL = "call"
    HELPER = "helper"
    AGENT = "agent"
    SHELL = "shell"


class Parent(StrEnum):
    """Whose child was asked about. ``entry``: nobody's that is known; it came into the container (docker exec)."""

    AGENT = "agent"
    SHELL = "shell"
    ENTRY = "entry"


class ShellUse(StrEnum):
    COMMAND = "command"  # -c TEXT
    SCRIPT = "script"  # a file
    FED = "fed"  # neither: commands come on its input


class OnRefusal(StrEnum):
    RUN = "run"
    END = "end"


class OnWait(StrEnum):
    FREEZE = "freeze"
    RUN = "run"


_Word = Annotated[str, Meta(min_length=1, max_length=200)]
_Words = Annotated[tuple[_Word, ...], Meta(max_length=500)]


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"becomes": "is"}):
    """``programs``: base names, of the file or of argv[0]; a trailing * matches any end. ``words``: one of the
    arguments is one of these. ``without``: none is. ``text``: the arguments, joined by blanks, contain one of these."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    becomes: Kind
    parents: tuple[Parent, ...] = (Parent.AGENT, Parent.SHELL, Parent.ENTRY)
    programs: _Words = ()
    shell: ShellUse | None = None
    words: _Words = ()
    without: _Words = ()
    text: _Words = ()
    tool: Annotated[str, Meta(max_length=100)] = ""
    call_class: Annotated[str, Meta(max_length=100)] = ""


class RuleSet(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``otherwise``: what a process becomes that no rule matches, ``call`` or ``helper``."""

    version: Annotated[int, Meta(ge=1)]
    name: str
    description: Annotated[str, Meta(max_length=2000)]
    sources: Annotated[tuple[Annotated[str, Meta(max_length=500)], ...], Meta(max_length=50)] = ()
    otherwise: Kind = Kind.HELPER
    entry: Kind = Kind.CALL  # likewise, of what came into a container
    on_refusal: OnRefusal = OnRefusal.RUN
    on_wait: OnWait = OnWait.FREEZE
    rule: Annotated[tuple[Rule, ...], Meta(max_length=200)] = ()


class Verdict(Struct, frozen=True):
    kind: Kind
    rule: str  # "otherwise" where none matched
    tool: str = ""
    call_class: str = ""
    final: bool = True  # a rule said so: a further exec of the same process is not asked about


def judge(rules: RuleSet, parent: Parent, path: str, argv: Sequence[str]) -> Verdict:
    """What a process becomes that has just called exec."""
    names = {_base(path), _base(argv[0]).lstrip("-") if argv else ""} - {""}
    arguments = argv[1:]
    text = " ".join(arguments)[:MAX_TEXT]
    use = shell_use(argv) if names & SHELLS else None
    for rule in rules.rule:
        if (
            parent in rule.parents
            and (not rule.programs or any(_matches(program, names) for program in rule.programs))
            and (rule.shell is None or rule.shell is use)
            and (not rule.words or any(word in arguments for word in rule.words))
            and not any(word in arguments for word in rule.without)
            and (not rule.text or any(part in text for part in rule.text))
        ):
            return Verdict(rule.becomes, rule.name, rule.tool, rule.call_class)
    return Verdict(rules.entry if parent is Parent.ENTRY else rules.otherwise, "otherwise", final=False)


def command_of(argv: Sequence[str]) -> str:
    """The command's text, for its class: what a shell was given with -c, else the words as they are."""
    if argv and _base(argv[0]).lstrip("-") in SHELLS:
        at = _command_at(argv)
        if at is not None and at < len(argv):
            return argv[at][:MAX_TEXT]
    return " ".join(argv)[:MAX_TEXT]


def shell_use(argv: Sequence[str]) -> ShellUse:
    """How a shell was started. Unknown options count as options without a value."""
    if _command_at(argv) is not None:
        return ShellUse.COMMAND
    skip = False
    for word in argv[1:]:
        if skip:
            skip = False
        elif word in _WITH_VALUE:
            skip = True
        elif word in {"-s", "-", "--"}:
            return ShellUse.FED if word != "--" else ShellUse.SCRIPT
        elif word[:1] not in {"-", "+"}:
            return ShellUse.SCRIPT
    return ShellUse.FED


def _command_at(argv: Sequence[str]) -> int | None:
    """Where the text of -c is: the first word after all options. ``bash -lc TEXT``, ``bash -c -l TEXT``."""
    seen, skip = False, False
    for at, word in enumerate(argv[1:], 1):
        if skip:
            skip = False
        elif word in _WITH_VALUE:
            skip = True
        elif word.startswith("-") and word not in {"-", "--"}:
            seen = seen or (not word.startswith("--") and "c" in word[1:])
        elif word.startswith("+"):
            pass
        else:
            return at if seen else None
    return len(argv) if seen else None


def _matches(program: str, names: set[str]) -> bool:
    if program.endswith("*"):
        return any(name.startswith(program[:-1]) for name in names)
    return program in names


def _base(path: str) -> str:
    return path.rpartition("/")[2]


# --- loading ---------------------------------------------------------------------------------------------------------


def parse(data: bytes, where: str) -> RuleSet:
    """Raises InvalidRequest with the place and the cause."""
    try:
        rules = msgspec.convert(tomllib.loads(data.decode("utf-8")), RuleSet)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as err:
        raise InvalidRequest(f"{where}: {err}", field="rules", remedy="see docs/attach.md for the format") from None
    problem = _problem(rules)
    if problem:
        raise InvalidRequest(f"{where}: {problem}", field="rules", remedy="see docs/attach.md for the format")
    return rules


def _problem(rules: RuleSet) -> str:
    if rules.version > VERSION:
        return f"version {rules.version} is newer than this daemon's, {VERSION}"
    if not is_name(rules.name):
        return f"{rules.name[:80]!r} is no name: 1 to 63 characters of a-z 0-9 . _ -"
    for field, kind in (("otherwise", rules.otherwise), ("entry", rules.entry)):
        if kind not in {Kind.CALL, Kind.HELPER}:
            return f"{field} is {kind.value!r}; it can be 'call' or 'helper'"
    names = [rule.name for rule in rules.rule]
    twice = next((name for name in names if names.count(name) > 1), "")
    return f"two rules are named {twice!r}" if twice else ""


class Library:
    """The sets that come with Corral, and those of a directory of the operator's, which come first."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory

    def names(self) -> list[str]:
        own = {path.stem for path in self._directory.glob("*.toml")} if self._directory is not None else set()
        shipped = {f.name.removesuffix(".toml") for f in _shipped().iterdir() if f.name.endswith(".toml")}
        return sorted(own | shipped)

    def load(self, name: str = "") -> RuleSet:
        """Raises NotFound or InvalidRequest."""
        name = name or DEFAULT
        if is_name(name):  # no slash, no dot first: it may be part of a path
            if self._directory is not None and (own := self._directory / f"{name}.toml").is_file():
                if own.stat().st_size > MAX_FILE:
                    raise InvalidRequest(f"{own}: larger than {MAX_FILE} bytes", field="rules", remedy="cut it down")
                return self._named(parse(own.read_bytes(), str(own)), name, str(own))
            shipped = _shipped() / f"{name}.toml"
            if shipped.is_file():
                return self._named(parse(shipped.read_bytes(), f"{name}.toml"), name, f"{name}.toml")
        raise NotFound(
            f"no set of rules {name[:80]!r}",
            field="rules",
            value=name,
            remedy=f"use one of: {', '.join(self.names())}",
        )

    @staticmethod
    def _named(rules: RuleSet, name: str, where: str) -> RuleSet:
        if rules.name != name:
            raise InvalidRequest(
                f"{where}: its name is {rules.name!r}", field="rules", remedy=f"call the file {rules.name}.toml"
            )
        return rules


def _shipped() -> resources.abc.Traversable:
    return resources.files("controller.recognise") / "rules"
