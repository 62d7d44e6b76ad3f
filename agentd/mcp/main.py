"""Lines in, lines out, until stdin ends. stdout carries messages alone; what is for people goes to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import BinaryIO, Final

import agentd
from agentd.mcp.daemon import Daemon
from agentd.mcp.protocol import INTERNAL_ERROR, MAX_LINE, PARSE_ERROR, Server
from agentd.mcp.tools import INSTRUCTIONS, Tools

USAGE: Final = """\
usage: corral-mcp    an MCP server on stdin and stdout: declare_intent, get_budget, explain_last_call

Put it into the agent's MCP configuration: docs/integrations.md. It acts for the session in CORRAL_TOKEN and
CORRAL_SESSION, and asks the daemon's API at CORRAL_API (else the sockets beside CORRAL_SOCKET that this user may open).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words:
        print(USAGE, end="", file=sys.stdout if words[0] in {"-h", "--help"} else sys.stderr)
        return 0 if words[0] in {"-h", "--help"} else 2
    tools = Tools(Daemon(os.environ), os.environ)
    server = Server("corral", agentd.__version__, INSTRUCTIONS, tools.all())
    try:
        serve(server, sys.stdin.buffer, sys.stdout.buffer)
    except (BrokenPipeError, KeyboardInterrupt):
        # the agent is gone: nothing of its output is left to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def serve(server: Server, lines: BinaryIO, out: BinaryIO) -> None:
    while line := lines.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):  # the rest of it
                line = lines.readline(MAX_LINE)
            answer: bytes | None = _error(PARSE_ERROR, f"a message of more than {MAX_LINE} bytes")
        elif not line.strip():
            continue
        else:
            try:
                answer = server.answer(line)
            except Exception as err:  # a defect of ours must not take the agent's session with it
                print(f"corral-mcp: {type(err).__name__}: {err}", file=sys.stderr)  # noqa: T201
                answer = _error(INTERNAL_ERROR, "an error of corral-mcp; its stderr says which")
        if answer is not None:
            out.write(answer)
            out.flush()


def _error(code: int, message: str) -> bytes:
    return f'{{"jsonrpc":"2.0","id":null,"error":{{"code":{code},"message":"{message}"}}}}\n'.encode()


if __name__ == "__main__":
    sys.exit(main())
