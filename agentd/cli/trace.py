"""``trace``: what one running call does, by bcc's tools, as it happens and as tables at the end."""

from __future__ import annotations

import json
import time

from agentd.cli.context import Context
from agentd.cli.errors import EXIT_OK, UsageError
from agentd.cli.plain import to_plain
from agentd.cli.table import Column, clean
from agentd.cli.targets import find
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.units import UnitError, parse_duration

_TITLES = {
    "offcpu": "OFF CPU: how long its threads were not running, and where they waited",
    "syscalls": "SYSTEM CALLS",
    "files": "FILES OPENED",
    "blockio": "BLOCK I/O: from asked for to done",
}


def trace(context: Context) -> int:
    """Until the call ends, ``--for`` is over, or Ctrl-C (which leaves without tables)."""
    args = context.args
    tools = [tool for word in args.tools for tool in word.split(",") if tool]
    with context.connect() as api:
        call_id = find(api.snapshot(), args.call, kinds=("call",)).id
        request = pb.TraceRequest(call_id=call_id, tools=tools, seconds=_seconds(args.duration))
        context.note("compiling; this takes some seconds")
        try:
            for update in api.trace(request):
                _show(context, update)
        except KeyboardInterrupt:
            context.note("stopped; with --for TIME the tables come at its end")
    return EXIT_OK


def _seconds(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        seconds = parse_duration(text)
    except UnitError as err:
        raise UsageError(f"--for: {err}") from None
    if not seconds > 0:
        raise UsageError(f"--for {text}: is no time to trace", remedy="give 5s or 2m")
    return seconds


def _show(context: Context, update: pb.TraceResponse) -> None:
    if context.json:
        print(json.dumps(to_plain(update)), file=context.out, flush=True)  # one object a line, as it comes
        return
    match update.WhichOneof("update"):
        case "event":
            event = update.event
            at = time.strftime("%H:%M:%S", time.localtime(event.at)) + f"{event.at % 1:.3f}"[1:]
            context.say(f"{at} {event.tool:9} {event.pid:>8} {clean(event.command):15} {clean(event.text)}")
        case "table":
            table = update.table
            context.say("")
            context.say(_TITLES.get(table.tool, table.tool))
            if table.rows:
                right = {"PID", "TIMES", "MS", "MOST MS", "ERRORS", "KIB", "MEAN MS", "P50 MS", "P99 MS"}
                columns = [Column(title=clean(name), right=name in right) for name in table.columns]
                context.table(columns, [[clean(cell) for cell in row.cells] for row in table.rows])
            else:
                context.say("  nothing")
        case "notice":
            context.note(clean(update.notice))
        case _:
            pass  # of a newer daemon
