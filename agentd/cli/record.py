"""``record``: what the Watch stream says, into a file that ``top --replay`` shows."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from pathlib import Path

from agentd.cli.context import Context
from agentd.cli.errors import EXIT_OK, CliError, DaemonAway, UsageError
from agentd.proto.recording import RecordingError, RecordingWriter
from agentd.units import UnitError, format_duration, parse_duration


def record(context: Context) -> int:
    """Until Ctrl-C, SIGTERM or ``--for``; a daemon that goes away ends it, too, with what there is until then."""
    args = context.args
    seconds = _duration(args.duration)
    stopping = threading.Event()
    path = Path(args.file)
    with context.connect() as api, contextlib.ExitStack() as stack:
        snapshot = api.snapshot()  # says at once when no daemon answers, before a file is made
        try:
            writer = stack.enter_context(
                RecordingWriter(path, begun_at=snapshot.at, source=context.api, agentd=snapshot.host.version)
            )
            updates = api.watch(args.interval)
            for number in (signal.SIGTERM, signal.SIGHUP):
                stack.callback(signal.signal, number, signal.signal(number, lambda *_: stopping.set()))
            began = time.monotonic()
            if seconds is None:
                context.note(f"recording into {path}; Ctrl-C ends it")
            try:
                for update in updates:
                    # pictures carry their own time; what comes between them happens now
                    named = update.WhichOneof("update")
                    writer.add(update.snapshot.at if named == "snapshot" else time.time(), update)
                    if stopping.is_set() or (seconds is not None and time.monotonic() - began >= seconds):
                        break
            except KeyboardInterrupt:
                pass
            except DaemonAway as err:
                context.note(f"the daemon went away: {err}; what was recorded until then is kept")
        except RecordingError as err:
            raise CliError(str(err)) from None
        took = format_duration(time.monotonic() - began)
        context.say(f"{path}: {writer.frames} updates in {took}; corral top --replay {path} shows them")
    return EXIT_OK


def _duration(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = parse_duration(text)
    except UnitError as err:
        raise UsageError(f"--for: {err}") from None
    if not seconds > 0:
        raise UsageError(f"--for {text}: is no time to record", remedy="give 30s, 10m or 2h")
    return seconds
