"""Every command's options. Built from the standard library alone: the parser must not cost a start anything.

Options that all commands share (``--api``, ``--json``, ``--no-color``) may stand before or after the command's name.
"""

from __future__ import annotations

import argparse
from typing import Any, Final

from agentd.cli.errors import UsageError

_EPILOG: Final = """\
exit status: 0 done, 1 failed, 2 wrong usage, 3 no daemon answers, 4 not permitted, 5 not found
environment: CORRAL_API (the API's socket), CORRAL_SOCKET (the broker's), CORRAL_SESSION and CORRAL_TOKEN (a session's)
"""
_TOOLS: Final = "of offcpu, syscalls, files, blockio, processes (default: all)"
_BUDGETS: Final = """\
resources and how a limit is written:
  cpu_seconds, gpu_seconds  10h        network_bytes  500G         calls_begun, tokens  500, 20k, 2M
  memory_byte_seconds       16G*8h     joules         5kWh, 18MJ   money                12.50
"""
STATES: Final = ("queued", "running", "braked", "frozen", "ended")
SORTS: Final = ("begun", "age", "memory", "peak", "cpu", "priority", "tenant", "session", "state")


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print a page and leave."""

    def error(self, message: str) -> Any:
        raise UsageError(f"{self.prog}: {message}", remedy=f"see: {self.prog} --help")


def _common() -> Parser:
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = common.add_argument_group("everywhere")
    group.add_argument("--api", metavar="TARGET", help="the daemon's API: unix:/path or host:port (CORRAL_API)")
    group.add_argument("--json", action="store_true", help="print JSON with stable keys")
    group.add_argument("--no-color", action="store_true", help="no colours, on a terminal either (NO_COLOR)")
    return common


def build() -> Parser:
    common = _common()
    top = Parser(
        prog="corral",
        description="Every tool call of every AI agent in a cgroup of its own: watched, limited and explained.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
        allow_abbrev=False,
    )
    top.add_argument("--version", action="store_true", help="print the version and leave")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def command(name: str, text: str, **more: Any) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common], allow_abbrev=False, **more)

    command("run", "run a command as a tool call: corral run [intent options] -- COMMAND (becomes corral-exec)")
    _session(commands, common)
    _listings(command)
    _control(command)
    _tenant(commands, common)
    one = command("tier", "GPUs, inference engines, and where each session's KV cache is")
    one.add_argument("--switches", metavar="N", type=_count, default=20, help="context switches to show (default: 20)")
    command("doctor", "what this host can do, what it cannot, what that costs and how to get it")
    _config(commands, common)
    _replay(command)
    _simulate(command)
    return top


def _session(commands: Any, common: argparse.ArgumentParser) -> None:
    inner = _group(commands, common, "session", "open, use and close an agent's session")
    one = _sub(inner, common, "open", "open a session; prints variables for eval, or JSON")
    one.add_argument("--tenant", metavar="T", help="the tenant's name (may be left out with --api of its own socket)")
    one.add_argument("--name", metavar="N", default="", help="what to call it on screens")
    one.add_argument("--label", metavar="K=V", action="append", default=[], help="a label; may be given again")
    one.add_argument("--shell", action="store_true", help="start a shell inside the session instead of printing")
    one.add_argument("--socket", metavar="PATH", help="the broker's socket (CORRAL_SOCKET)")
    one = _sub(inner, common, "exec", "become an agent process of the session, then exec COMMAND")
    one.add_argument("--session", metavar="S", help="its id (CORRAL_SESSION)")
    one.add_argument("--socket", metavar="PATH", help="the broker's socket (CORRAL_SOCKET)")
    one.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run")
    one = _sub(inner, common, "close", "close a session; refused while its calls run, unless --kill")
    one.add_argument("session", nargs="?", metavar="SESSION", help="id, piece of an id or name (CORRAL_SESSION)")
    one.add_argument("--kill", action="store_true", help="end its calls")
    one = _sub(
        inner, common, "attach", "make sessions of what runs already: a process, or containers; see docs/attach.md"
    )
    one.add_argument("--tenant", metavar="T", required=True, help="whose it is")
    one.add_argument("--name", metavar="N", default="", help="what to call it (default: as the process or container)")
    one.add_argument(
        "--rules", metavar="R", default="", help="what starts a tool call: a set of rules (default: generic)"
    )
    one.add_argument("--session-label", metavar="K=V", action="append", default=[], help="a label of the session")
    one.add_argument("--pid", metavar="PID", help="the agent's process; those below it come along")
    one.add_argument("--container", metavar="NAME", default="", help="a container, by name or id")
    one.add_argument("--label", metavar="K[=V]", action="append", default=[], help="containers with this label")
    one.add_argument("--network", metavar="N", default="", help="containers of this network")
    one.add_argument("--compose", metavar="PROJECT", default="", help="containers of this compose project")
    one.add_argument("--follow", action="store_true", help="also those that start later")
    one = _sub(inner, common, "detach", "end the recognition in an attached session, and close it; its processes go on")
    one.add_argument("target", metavar="TARGET", help="session (id, piece or name), or container (name or id)")
    one = _sub(inner, common, "list", "the sessions")
    one.add_argument("--all", action="store_true", help="closed ones, too")
    one.add_argument("--tenant", metavar="T", default="", help="of this tenant (id or name)")


def _listings(command: Any) -> None:
    one = command("ps", "the calls that are live now")
    one.add_argument("--all", "-a", action="store_true", help="those that ended in the last minutes, too")
    one.add_argument("--tenant", metavar="T", default="", help="of this tenant (id or name)")
    one.add_argument("--session", metavar="S", default="", help="of this session (id or name)")
    one.add_argument("--state", choices=STATES, default="", help="in this state")
    one.add_argument("--sort", choices=SORTS, default="begun", help="by what (default: begun)")
    one.add_argument("--reverse", "-r", action="store_true", help="the other way round")
    one = command("top", "the dashboard")
    one.add_argument("--once", action="store_true", help="print one picture as text and leave")
    one.add_argument("--interval", metavar="SECONDS", type=_interval, default=1.0, help="between pictures (default: 1)")
    one.add_argument("--read-only", action="store_true", help="act on nothing")
    one.add_argument("--at", metavar="WHEN", default="", help='begin in the past: "10m ago", 14:03, 2026-11-24 14:03')
    one.add_argument("--replay", metavar="FILE", help="show a recording instead of a daemon")
    one.add_argument("--web", action="store_true", help="serve it to a browser; prints its address, a secret")
    one.add_argument("--listen", metavar="HOST:PORT", help="with --web: where (default: 127.0.0.1:8000; port 0: any)")
    one.add_argument("--public-url", metavar="URL", help="with --web: as browsers see it, where a proxy stands between")
    one = command("record", "record what the dashboard would show into a file, for corral top --replay")
    one.add_argument("file", metavar="FILE", help="a new file")
    one.add_argument("--for", dest="duration", metavar="TIME", help="so long, e.g. 10m (default: until Ctrl-C)")
    one.add_argument("--interval", metavar="SECONDS", type=_interval, default=1.0, help="between pictures (default: 1)")
    one = command("show", "everything about one call, session or tenant")
    one.add_argument("call", metavar="TARGET", help="its id or an unambiguous piece of it, or a name")
    one = command("explain", "what happened to a call, and why, in words")
    one.add_argument("call", metavar="CALL", help="its id, or an unambiguous piece of it")
    one = command("trace", "look into a running call: where it waits, system calls, files, disk, processes (needs bcc)")
    one.add_argument("call", metavar="CALL", help="its id, or an unambiguous piece of it")
    one.add_argument("--tools", metavar="A,B", action="append", default=[], help=_TOOLS)
    one.add_argument("--for", dest="duration", metavar="TIME", help="so long, e.g. 10s (default: until the call ends)")
    one = command("history", "calls that the ledger holds, newest first")
    one.add_argument("--since", metavar="WHEN", help="1h (ago) or 2026-11-24T13:00")
    one.add_argument("--until", metavar="WHEN", help="likewise")
    one.add_argument("--tenant", metavar="T", default="", help="of this tenant (name)")
    one.add_argument("--session", metavar="S", default="", help="of this session (id or name)")
    one.add_argument("--reason", metavar="CODE", default="", help="that ended for this reason, e.g. oom_call")
    one.add_argument("--limit", metavar="N", type=_count, default=50, help="at most so many (default: 50)")


def _control(command: Any) -> None:
    for name, text in (
        ("freeze", "stop calls where they are, until thawed"),
        ("thaw", "let frozen calls go on"),
        ("kill", "end calls with all their processes"),
    ):
        one = command(name, text)
        one.add_argument("targets", nargs="+", metavar="TARGET", help="call, session or tenant: id, piece or name")
        one.add_argument("--yes", "-y", action="store_true", help="do not ask")
    one = command("limits", "show the limits of a call or a tenant, or change them, or a session's")
    one.add_argument("target", metavar="TARGET", help="call, session or tenant: id, piece of an id or name")
    _limits(one)
    one.add_argument("--notify", metavar="SIZE", help="of a call: an event past this much memory; off disarms")
    one.add_argument("--brake", metavar="SIZE", help="of a call: stopped in the kernel past this much; off disarms")
    one = command(
        "budget",
        "what is left of what can be used up: budget [TARGET]; budget set TARGET RESOURCE LIMIT [--hard] [--end] "
        "[--per TIME]; budget remove TARGET RESOURCE",
        epilog=_BUDGETS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.add_argument("words", nargs="*", metavar="WHAT", help="TARGET is a session or a tenant: id, piece or name")
    one.add_argument("--hard", action="store_true", help="nothing begins once it is used up")
    one.add_argument("--end", action="store_true", help="hard, and calls that run are ended then")
    one.add_argument("--soft", action="store_true", help="it is only told (default)")
    one.add_argument("--per", metavar="TIME", help="full again with each such period, e.g. 1d (midnight UTC)")
    one = command("priority", "change the priority of a call, session or tenant")
    one.add_argument("target", metavar="TARGET", help="call, session or tenant: id, piece of an id or name")
    one.add_argument("value", metavar="N", help="0 (acted on first) to 100 (acted on last)")


def _limits(one: argparse.ArgumentParser) -> None:
    one.add_argument("--memory-max", metavar="SIZE", help="hard limit, e.g. 1G; max lifts it")
    one.add_argument("--memory-high", metavar="SIZE", help="allocations are slowed past it (unified hosts)")
    one.add_argument("--memory-low", metavar="SIZE", help="protected from reclaim below it (unified hosts)")
    one.add_argument("--cpu", metavar="CORES", help="e.g. 1.5; max lifts it")
    one.add_argument("--weight", "--cpu-weight", dest="cpu_weight", metavar="N", help="share of CPU, 1 to 10000")
    one.add_argument("--pids", metavar="N", help="processes and threads; max lifts it")
    one.add_argument("--io-weight", metavar="N", help="share of the disk, 1 to 10000")
    one.add_argument("--io-max", metavar="SIZE", help="a second, read and written, of each disk; max lifts it")
    one.add_argument("--egress-max", metavar="SIZE", help="a second, out to the network; max lifts it")


def _tenant(commands: Any, common: argparse.ArgumentParser) -> None:
    inner = _group(commands, common, "tenant", "tenants and their ceilings")
    one = _sub(inner, common, "set", "make a tenant, or change its ceilings")
    one.add_argument("name", metavar="NAME", help="1 to 63 characters of a-z 0-9 . _ -")
    _limits(one)
    one.add_argument("--priority", metavar="N", help="of its calls: 0 (acted on first) to 100 (acted on last)")
    _sub(inner, common, "list", "the tenants")


def _config(commands: Any, common: argparse.ArgumentParser) -> None:
    inner = _group(commands, common, "config", "the daemon's configuration file")
    for name, text in (("check", "whether a file is right"), ("show", "what the daemon would run with")):
        one = _sub(inner, common, name, text)
        one.add_argument("file", nargs="?", metavar="FILE", help="default: /etc/corral/corral.toml")
    _sub(inner, common, "schema", "the JSON schema of the file")


def _replay(command: Any) -> None:
    one = command("replay", "drive real processes through corral-exec along recorded agent traces")
    one.add_argument("traces", nargs="+", metavar="TRACE", help="files of schema agentcg-compact-v1")
    one.add_argument("--speed", metavar="X", default="50", help="so many times faster than recorded (default: 50)")
    one.add_argument("--scale", metavar="X", default="1", help="memory times this (default: 1)")
    one.add_argument("--base", metavar="MB", default="185", help="what the framework process holds (default: 185 MB)")
    one.add_argument("--only-tools", action="store_true", help="no framework process: the tool calls alone")
    one.add_argument("--declare", choices=("class", "peak"), default="class", help="what each call declares")
    one.add_argument("--limit-tools", metavar="N", type=_count, help="the first N tool calls of each trace alone")
    one.add_argument("--tenant", metavar="T", action="append", default=[], help="one for each trace, or one for all")
    one.add_argument("--socket", metavar="PATH", help="the broker's socket (CORRAL_SOCKET)")
    one.add_argument("--bare", action="store_true", help="the same processes without Corral: the baseline")
    one.add_argument("--keep", metavar="DIR", help="keep schedules and raw latencies there")


def _simulate(command: Any) -> None:
    one = command("simulate", "what a policy would do with recorded agents on a host of a given size, in virtual time")
    one.add_argument("traces", nargs="+", metavar="TRACE", help="files of schema agentcg-compact-v1")
    one.add_argument("--memory", metavar="SIZE", required=True, help="of the host, e.g. 8G")
    one.add_argument(
        "--policy",
        choices=("corral", "daemon", "max", "p95", "oracle", "none"),
        action="append",
        help="corral (default), corral with a daemon's own settings, reserve the largest peak, the 95th percentile of "
        "peaks, each one's own, or none; "
        "may be given again",
    )
    one.add_argument("--agents", metavar="N", type=_count, help="so many, each playing traces one after the other")
    one.add_argument("--for", dest="seconds", metavar="SECONDS", default="600", help="with --agents (default: 600)")
    one.add_argument("--speed", metavar="X", default="1", help="so many times faster than recorded (default: 1)")
    one.add_argument("--seed", metavar="N", type=_count, default=1, help="of what --agents draws at random")


def _group(commands: Any, common: argparse.ArgumentParser, name: str, text: str) -> Any:
    group = commands.add_parser(name, help=text, description=text, parents=[common], allow_abbrev=False)
    return group.add_subparsers(dest="subcommand", metavar="WHAT", required=True, parser_class=Parser)


def _sub(inner: Any, common: argparse.ArgumentParser, name: str, text: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = inner.add_parser(
        name, help=text, description=text, parents=[common], allow_abbrev=False
    )
    return made


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= 10_000):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 10000")
    return int(text)


def _interval(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 3600")
    return value
