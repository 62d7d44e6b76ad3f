"""Logs: both forms, priorities for the journal, levels, hostile text, odd values, secrets, streams that fail."""

from __future__ import annotations

import asyncio
import enum
import io
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from agentd.log import REDACTED, Format, Level, LogHandler, configure, get_logger, is_journal, set_level


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


ROUTE = structlog.get_config()  # what importing agentd.log set up


def restore() -> None:
    """Logging as it was before configure()."""
    structlog.configure(**ROUTE)
    structlog.contextvars.clear_contextvars()
    logging.captureWarnings(False)
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    for handler in [h for h in root.handlers if isinstance(h, LogHandler)]:
        root.removeHandler(handler)
    for name in ("asyncio", "grpc", "pyroute2"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
def logs() -> Iterator[Callable[..., io.StringIO]]:
    """Configures logging onto a stream of the test's own and puts everything back."""

    def start(form: Format = "json", level: Level = "debug", stream: io.StringIO | None = None) -> io.StringIO:
        stream = io.StringIO() if stream is None else stream
        logging.getLogger().handlers.clear()  # pytest's own, which raise on records that cannot be shown
        configure(level=level, form=form, stream=stream, environ={}, instance="here")
        return stream

    yield start
    restore()


def only(stream: io.StringIO) -> dict[str, Any]:
    (line,) = stream.getvalue().splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def test_json_has_the_standard_fields(logs: Callable[..., io.StringIO]) -> None:
    stream = logs()
    get_logger("agentd.x").info("call begun", call="c-1", size=3, path=Path("/a"))
    found = only(stream)
    assert list(found)[:4] == ["time", "level", "logger", "event"]
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "info",
        "logger": "agentd.x",
        "event": "call begun",
        "call": "c-1",
        "size": 3,
        "path": "/a",
        "pid": os.getpid(),
        "instance": "here",
    }


def test_libraries_take_the_same_way(logs: Callable[..., io.StringIO]) -> None:
    stream = logs(level="info")
    logging.getLogger("other").error("it %s", "broke", extra={"where": "there"})
    found = only(stream)
    assert (found["logger"], found["level"], found["event"], found["where"]) == ("other", "error", "it broke", "there")


def test_libraries_are_quiet_below_warnings(logs: Callable[..., io.StringIO]) -> None:
    stream = logs(level="info")
    logging.getLogger("grpc._cython").info("each step")
    logging.getLogger("asyncio").info("each step")
    assert stream.getvalue() == ""
    set_level("debug")
    logging.getLogger("asyncio").debug("each step")
    assert only(stream)["logger"] == "asyncio"


def test_warnings_of_python_are_logged(logs: Callable[..., io.StringIO]) -> None:
    stream = logs(level="info")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)  # catch_warnings saved the hook that captureWarnings replaces
        logging.captureWarnings(True)
        warnings.warn("old", UserWarning, stacklevel=1)
        logging.captureWarnings(False)
    assert only(stream)["logger"] == "py.warnings"


def test_before_configuration_nothing_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """A command that prints JSON there uses modules that log."""
    restore()
    get_logger("x").info("quiet")
    get_logger("x").warning("said", token="secret")  # noqa: S106
    assert capsys.readouterr().out == ""


def test_the_level_can_change_while_running(logs: Callable[..., io.StringIO]) -> None:
    stream = logs(level="warning")
    log = get_logger("x")
    log.info("no")
    set_level("info")
    log.info("yes")
    set_level("error")
    log.warning("no")
    assert only(stream)["event"] == "yes"


def test_a_second_configuration_replaces_the_first(logs: Callable[..., io.StringIO]) -> None:
    first, log = logs(), get_logger("x")
    second = logs()
    log.info("once")
    assert first.getvalue() == ""
    assert only(second)["event"] == "once"


def test_bound_and_context_values_are_shown(logs: Callable[..., io.StringIO]) -> None:
    stream = logs()
    with structlog.contextvars.bound_contextvars(request="r1"):
        get_logger("x").bind(tenant="ci").info("hello")
    assert (only(stream)["request"], only(stream)["tenant"]) == ("r1", "ci")


def test_exceptions_are_shown_in_both_forms(logs: Callable[..., io.StringIO]) -> None:
    for form in ("json", "text"):
        stream = logs(form)
        try:
            raise ValueError("what \x1b[31m happened")
        except ValueError:
            get_logger("x").exception("failed")
        assert "ValueError: what" in stream.getvalue()
        assert "\x1b" not in stream.getvalue()
        assert "test_log.py" in stream.getvalue()
    stream = logs()
    logging.getLogger("other").error("failed", exc_info=ValueError("given"))
    assert "ValueError: given" in only(stream)["exception"]


def test_asyncio_reports_of_forgotten_errors_are_logged(logs: Callable[..., io.StringIO]) -> None:
    stream = logs(level="info")
    loop = asyncio.new_event_loop()
    try:
        loop.call_exception_handler({"message": "lost", "exception": ValueError("of a task")})
    finally:
        loop.close()
    assert "of a task" in only(stream)["exception"]


def test_text_is_one_line_with_quoted_values(logs: Callable[..., io.StringIO]) -> None:
    stream = logs("text")
    get_logger("x").warning("call\nbraked", command='sh -c "a b"', empty="", n=1.5, items=["a", 2], plain="c-1")
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert line.endswith('warning call\\nbraked command="sh -c \\"a b\\"" empty="" n=1.5 items=["a", 2] plain=c-1\n')
    assert "\x1b" not in line


def test_a_terminal_gets_colours_but_no_foreign_ones(logs: Callable[..., io.StringIO], monkeypatch: Any) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = logs("text", stream=Terminal())
    get_logger("x").error("a\x1b[2Jb\rc\x07", name="\x9b31m\u202egnp")
    assert "\x1b[31m" in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()
    assert "a\\x1b[2Jb\\rc\\x07" in stream.getvalue()
    assert "\\x9b31m\\u202egnp" in stream.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = logs("text", stream=Terminal())
    get_logger("x").error("a", b=1)
    assert "\x1b" not in plain.getvalue()


class Unshowable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


class Colour(enum.IntEnum):
    RED = 1


class UnshowableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("form", ["json", "text"])
def test_odd_values_never_raise(logs: Callable[..., io.StringIO], form: Format) -> None:
    stream = logs(form)
    loop: list[Any] = []
    loop.append(loop)
    deep: Any = "x"
    for _ in range(100):
        deep = {"d": deep}
    odd = {
        "a": Unshowable(),
        "b": b"\xff\x00",
        "c": float("nan"),
        "d": 2**200,
        "e": "\ud800",
        "f": loop,
        "g": deep,
        "h": {1: {2, 3}, Unshowable(): 4},
        "i": Colour.RED,
        "j": "x" * 100_000,
        "k": list(range(10_000)),
        "l": object(),
        "exc_info": UnshowableError(),
    }
    get_logger("x").info("odd", **odd)
    get_logger("x").info("%d positional", "not a number")
    logging.getLogger("other").info("%d positional", "not a number")
    lines = stream.getvalue().splitlines()
    assert sum("could not be shown" in line or "positional" in line for line in lines) == 2
    assert max(map(len, lines)) < 20_000
    if form == "json":
        found = json.loads(lines[0])
        assert found["a"] == "<Unshowable that cannot be shown: RuntimeError>"
        assert (found["c"], found["i"], len(found["k"])) == ("nan", 1, 64)
        assert found["e"] == "\\ud800"


@given(
    st.dictionaries(st.text(max_size=5).map(lambda t: f"k{t}"), st.text() | st.binary() | st.floats() | st.integers())
)
def test_any_value_gives_one_line_of_json(values: dict[str, Any]) -> None:
    stream = io.StringIO()
    try:
        handler = configure(level="info", form="json", stream=stream, environ={})
        get_logger("x").info("any", **values)
    finally:
        restore()
    assert handler.lost == 0
    assert only(stream)["event"] == "any"


def test_secrets_are_blotted_out(logs: Callable[..., io.StringIO]) -> None:
    stream = logs()
    get_logger("x").info(
        "begin CORRAL_TOKEN=s3cr3t and --token=s3cr3t",
        **{"token": "s3cr3t", "session_token": "s3cr3t", "Authorization": "Bearer s3cr3t"},
        nested={"password": "s3cr3t", "list": ["api_key: 's3cr3t'"]},
        command='curl -H "Authorization: Bearer s3cr3t" --token s3cr3ts3cr3ts3cr3ts3cr3t x',
        tokens=17,
        token_ttl=3.5,
        token_hash="",
    )
    text, found = stream.getvalue(), only(stream)
    assert "s3cr3t" not in text
    assert found["token"] == REDACTED
    assert found["event"] == f"begin CORRAL_TOKEN={REDACTED} and --token={REDACTED}"
    assert (found["tokens"], found["token_ttl"]) == (17, 3.5)
    assert found["command"].endswith("x")


@pytest.mark.parametrize("text", ["token" * 2000, "a" * 8192, "token " * 1500, "token" + " " * 8000, 'token="' * 1200])
def test_the_search_for_secrets_is_linear(logs: Callable[..., io.StringIO], text: str) -> None:
    stream = logs()
    began = time.process_time()
    for _ in range(10):
        get_logger("x").info(text)
    # a quadratic search would need minutes here; the bound leaves three orders of magnitude for a slow machine
    assert time.process_time() - began < 20
    assert stream.getvalue().count("\n") == 10


class BrokenStream(io.StringIO):
    def write(self, text: str, /) -> int:
        raise OSError(28, "No space left on device")


def test_a_stream_that_fails_loses_the_line_and_counts_it(logs: Callable[..., io.StringIO]) -> None:
    logs(stream=BrokenStream())
    (handler,) = [h for h in logging.getLogger().handlers if isinstance(h, LogHandler)]
    get_logger("x").info("lost")
    logging.getLogger("y").info("lost too")
    assert handler.lost == 2
    closed = io.StringIO()
    logs("text", stream=closed)
    closed.close()
    get_logger("x").info("lost")


def test_a_narrow_encoding_does_not_lose_the_line(logs: Callable[..., io.StringIO]) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    configure(level="info", form="text", stream=stream, environ={})
    get_logger("x").info("naïve")
    assert b"na\\xefve" in raw.getvalue()
    logs()


def test_the_journal_gets_json_with_priorities(tmp_path: Path, logs: Callable[..., io.StringIO]) -> None:
    logs()
    with (tmp_path / "journal").open("w+") as stream:
        found = os.fstat(stream.fileno())
        environ = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert is_journal(stream, environ)
        configure(level="debug", form="auto", stream=stream, environ=environ)
        log = get_logger("x")
        log.debug("d")
        log.warning("w")
        configure(level="debug", form="text", stream=stream, environ=environ)
        try:
            raise ValueError("v")
        except ValueError:
            get_logger("x").exception("e")
        stream.seek(0)
        lines = stream.read().splitlines()
    assert json.loads(lines[0].removeprefix("<7>"))["event"] == "d"
    assert json.loads(lines[1].removeprefix("<4>"))["event"] == "w"
    assert lines[2].startswith("<3>error   e")  # no time: the journal has its own
    assert len(lines) > 4
    assert all(line.startswith("<3>") for line in lines[2:])


@pytest.mark.parametrize("value", ["", "x", "1", "1:", "1:2", ":", "²:1"])
def test_other_streams_are_not_the_journal(value: str) -> None:
    assert not is_journal(sys.__stderr__ or sys.stderr, {"JOURNAL_STREAM": value})
    assert not is_journal(io.StringIO(), {"JOURNAL_STREAM": value})
