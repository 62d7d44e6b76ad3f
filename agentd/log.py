"""Structured logs: JSON objects or lines for people, on one stream, for our own messages and for libraries' alike.

Everything goes through the standard logging module to one handler, so that asyncio, grpc and our own code share order,
level and form. Under systemd each line starts with its priority ("<3>"; sd-daemon(3)), which the journal strips and
files, so that ``journalctl -p warning`` works in both forms.

What is logged may come from agents, who are hostile: control characters are escaped (terminals obey them), long values
are cut, secrets are blotted out, and a value that cannot be shown costs that value, never the message or the call.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Format = Literal["auto", "json", "text"]
Level = Literal["debug", "info", "warning", "error"]

MAX_STRING: Final = 8192  # characters of one value; a traceback fits
MAX_ITEMS: Final = 64  # of a list or mapping
MAX_DEPTH: Final = 5
REDACTED: Final = "[redacted]"

_SECRET_KEY: Final = re.compile(r"(?i)(?:^|[_-])(?:token|secret|password|passwd|authorization|cookie|private_key)$")
# NAME=value, --name value and Bearer value, in commands and messages; a session's token travels as CORRAL_TOKEN
# (repeats are bounded: the text may be an agent's, and matching must stay linear)
_SECRET_TEXT: Final = re.compile(
    r"(?i)((?:token|secret|passwd|password|api_?key)(?:\s{0,3}[=:]\s{0,3}|\s{1,3}(?=[a-z0-9_-]{20}))|bearer\s{1,3})"
    r"(\"[^\"]*\"|'[^']*'|[^\s,;\"']+)"
)
# sd-daemon(3) and syslog(3)
_PRIORITIES: Final = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
# Libraries that log every step at a level where we want the exceptions alone
_QUIET: Final = {"asyncio": logging.WARNING, "grpc": logging.WARNING, "pyroute2": logging.WARNING}


class LogHandler(logging.Handler):
    """Writes whole lines and flushes. A stream that fails loses the line, not the caller: ``lost`` counts those.
    ``as_json``: in which form."""

    def __init__(self, stream: TextIO, *, as_json: bool = False) -> None:
        super().__init__()
        self._stream = stream
        self.as_json = as_json
        self.lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception as err:
            # the last resort: a message of which nothing but this is left
            text = f'{{"level": "error", "event": "a log record could not be shown", "error": "{type(err).__name__}"}}'
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # a full disk, a closed pipe; ValueError: a closed stream
            self.lost += 1


def configure(
    *,
    level: Level = "info",
    form: Format = "auto",
    instance: str = "",
    stream: TextIO | None = None,
    environ: Mapping[str, str] | None = None,
) -> LogHandler:
    """Set up logging for the process; a second call replaces the first. Returns the handler, which counts lost lines.

    ``stream`` is standard error by default. ``form`` "auto": JSON under systemd, text elsewhere.
    """
    stream = sys.stderr if stream is None else stream
    to_journal = is_journal(stream, os.environ if environ is None else environ)
    as_json = form == "json" or (form == "auto" and to_journal)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _standard_fields(instance),
        _exception_text,
        clean,
    ]
    final: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    final.append(_render_json if as_json else _text_renderer(stream, with_time=not to_journal))
    if to_journal:
        final.append(_with_priority(final.pop()))
    handler = LogHandler(stream, as_json=as_json)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=final, foreign_pre_chain=shared))
    _route([*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter])
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, LogHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.captureWarnings(True)
    for chatty in ("grpc", "asyncio"):  # their debug lines tell of themselves, one for each turn of the loop
        logging.getLogger(chatty).setLevel(logging.INFO)
    set_level(level)
    return handler


def _route(processors: list[Processor]) -> None:
    """Send our own loggers through the standard logging module."""
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *processors],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # loggers made at import must follow a later configure()
    )


def set_level(level: Level) -> None:
    """Change the level of the running process (a reload does). Libraries stay at warnings, but for "debug"."""
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger().setLevel(number)
    for name, quiet in _QUIET.items():
        logging.getLogger(name).setLevel(number if number <= logging.DEBUG else max(number, quiet))


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger: ``log.info("call begun", call=call_id, tenant=name)``. ``name``: usually ``__name__``."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether ``stream`` is the journal's socket: JOURNAL_STREAM is "device:inode" of it (systemd.exec(5))."""
    match = re.fullmatch(r"([0-9]{1,20}):([0-9]{1,20})", environ.get("JOURNAL_STREAM", ""))
    if match is None:
        return False
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):  # io.UnsupportedOperation is both: no file behind the stream
        return False
    return (found.st_dev, found.st_ino) == (int(match[1]), int(match[2]))


def clean(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Make every value plain, short, printable and free of secrets; what begins with "_" is structlog's own."""
    return {
        str(key): value if str(key).startswith("_") else _plain(value, str(key), MAX_DEPTH)
        for key, value in event.items()
    }


def _plain(value: Any, key: str, depth: int) -> Any:
    if _SECRET_KEY.search(key) and value not in (None, ""):
        return REDACTED
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _printable(value)
    if isinstance(value, int):
        # a subclass (an enum) may print anything; beyond 64 bit many readers of JSON lose digits
        return int(value) if -(2**63) <= value < 2**64 else _shown(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))  # JSON has no NaN
    if isinstance(value, Mapping) and depth:
        items = list(value.items())[:MAX_ITEMS]
        return {_printable(_shown(k)): _plain(v, _shown(k), depth - 1) for k, v in items}
    if (
        isinstance(value, Sequence | set | frozenset)
        and depth
        and not isinstance(value, bytes | bytearray | memoryview)
    ):
        return [_plain(item, "", depth - 1) for item in list(value)[:MAX_ITEMS]]
    return _printable(_shown(value))


def _shown(value: object) -> str:
    try:
        return value if type(value) is str else str(value)
    except Exception as err:  # whatever a foreign __str__ raises
        return f"<{type(value).__name__} that cannot be shown: {type(err).__name__}>"


def _printable(text: str) -> str:
    cut = text[:MAX_STRING]
    cut = _SECRET_TEXT.sub(lambda m: m[1] + REDACTED, cut)
    if not cut.isprintable():
        # newlines stay for tracebacks: both forms write them safely
        cut = "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in cut)
    return cut if len(text) <= MAX_STRING else f"{cut}… ({len(text)} characters)"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii") if not "\ud800" <= char <= "\udfff" else f"\\u{ord(char):04x}"


def _standard_fields(instance: str) -> Processor:
    fields = {"pid": os.getpid()} | ({"instance": instance} if instance else {})

    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        for key, value in fields.items():
            event.setdefault(key, value)
        return event

    return add


def _exception_text(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """``exc_info=True``, an exception or a triple, as text under "exception"."""
    info = event.pop("exc_info", None)
    if not info:
        return event
    error = info if isinstance(info, BaseException) else info[1] if isinstance(info, tuple) else sys.exc_info()[1]
    if isinstance(error, BaseException):
        try:
            event["exception"] = "".join(traceback.format_exception(error)).rstrip()
        except Exception as err:  # an exception whose __str__ raises
            event["exception"] = f"{type(error).__name__} (its text cannot be shown: {type(err).__name__})"
    return event


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    # ASCII: a stream of any encoding takes it, and lone surrogates (undecodable file names) survive
    first = {key: event.pop(key) for key in ("time", "level", "logger", "event") if key in event}
    return json.dumps({**first, **event}, ensure_ascii=True, allow_nan=False)


def _text_renderer(stream: TextIO, *, with_time: bool) -> Processor:
    """One line for people, in colours on a terminal: time, level, event, key=value; a traceback below."""
    colours = _is_terminal(stream) and "NO_COLOR" not in os.environ
    marks = {"debug": "2", "warning": "33", "error": "31", "critical": "31;1"} if colours else {}

    def paint(text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if code and colours else text

    def render(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
        time = str(event.pop("time", ""))[:23]
        level = str(event.pop("level", "info"))
        message = str(event.pop("event", ""))
        exception = str(event.pop("exception", ""))
        for hidden in ("pid", "instance", "logger"):
            event.pop(hidden, None)
        parts = [paint(time, "2")] if with_time else []
        parts += [paint(f"{level:<7}", marks.get(level, "")), _one_line(message)]
        parts += [f"{paint(key, '36')}={_value_text(value)}" for key, value in event.items()]
        line = " ".join(parts)
        if exception:
            line += "".join(f"\n    {row}" for row in exception.split("\n"))
        encoding = getattr(stream, "encoding", None) or "utf-8"
        return line.encode(encoding, "backslashreplace").decode(encoding)

    return render


def _value_text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = _one_line(text)
    return (
        text
        if (text and not any(c in ' ="' for c in text)) or not isinstance(value, str)
        else json.dumps(text, ensure_ascii=False)
    )


def _one_line(text: str) -> str:
    return text.replace("\n", "\\n")


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def _with_priority(render: Processor) -> Processor:
    """Start every line (a traceback has many) with its priority, as the journal wants it."""

    def prefixed(logger: WrappedLogger, method: str, event: EventDict) -> str:
        prefix = f"<{_PRIORITIES.get(str(event.get('level', 'info')), 6)}>"
        text = str(render(logger, method, event))
        return "\n".join(prefix + line for line in text.split("\n"))

    return prefixed


# Until configure(), in a program that is not the daemon: warnings and errors go to standard error by the standard
# module's own rule, never to standard output, where structlog's default would spoil a command's JSON.
if not structlog.is_configured():
    _route([_exception_text, clean, structlog.processors.KeyValueRenderer(key_order=["event"])])
