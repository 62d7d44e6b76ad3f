"""JSON-RPC 2.0 and MCP over one line each. Pure: a line in, a line out.

Two eras of the specification are served side by side, as its "Versioning and Compatibility" has it for a dual-era
server:

- 2026-07-28, stateless: every request names version and client capabilities in ``_meta``; ``server/discover``.
- 2024-11-05 to 2025-11-25: an ``initialize`` handshake; ``ping``.

https://modelcontextprotocol.io/specification/2026-07-28/basic (messages, error codes, ``_meta``), /basic/versioning,
/server/tools and /server/discover; https://modelcontextprotocol.io/specification/2025-11-25/basic/lifecycle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

MODERN: Final = ("2026-07-28",)
LEGACY: Final = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
MAX_LINE: Final = 1 << 20  # bytes; arguments of these tools are small

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
UNSUPPORTED_VERSION: Final = -32022

_META: Final = "io.modelcontextprotocol/"
_CACHE: Final = {"ttlMs": 3_600_000, "cacheScope": "public"}  # the tools never change while the server runs


class RpcError(Exception):
    def __init__(self, code: int, message: str, data: object = None) -> None:
        self.code = code
        self.data = data
        super().__init__(message)


class ToolError(Exception):
    """A tool could not do what was asked; the text is for the model, which can act on it."""


@dataclass(frozen=True, slots=True)
class Result:
    """``text`` for the model, ``data`` for programs (according to the tool's output schema)."""

    text: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """``run`` gets the arguments as they came: they are its to check. It may raise ToolError."""

    name: str
    title: str
    description: str
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]
    read_only: bool
    run: Callable[[Mapping[str, Any]], Result]

    def listed(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "description": self.description,
            "inputSchema": self.input_schema,
            "outputSchema": self.output_schema,
            "annotations": {"readOnlyHint": self.read_only, "destructiveHint": False, "openWorldHint": False},
        }


class Server:
    """``answer`` is all: one line (without its end) to the line to write, or None where nothing is to be said."""

    def __init__(self, name: str, version: str, instructions: str, tools: tuple[Tool, ...]) -> None:
        self._info = {"name": name, "version": version}
        self._instructions = instructions
        self._tools = {tool.name: tool for tool in tools}
        self._initialized = False

    def answer(self, line: bytes) -> bytes | None:
        try:
            message = json.loads(line.decode())
        except (ValueError, RecursionError) as err:
            return self._failed(None, RpcError(PARSE_ERROR, f"not JSON: {err}"))
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            return self._failed(None, RpcError(INVALID_REQUEST, "a message is one object with jsonrpc '2.0'"))
        method, identifier = message.get("method"), message.get("id")
        if "id" not in message or (method is None and ("result" in message or "error" in message)):
            # a notification (initialized, cancelled: every request is answered before the next line is read), or the
            # response to a request, and this server sends none
            return None
        if isinstance(identifier, bool) or not isinstance(identifier, (str, int)):
            return self._failed(None, RpcError(INVALID_REQUEST, "an id is a text or a whole number"))
        try:
            if not isinstance(method, str):
                raise RpcError(INVALID_REQUEST, "a request has a method")
            params = message.get("params", {})
            if not isinstance(params, dict):
                raise RpcError(INVALID_PARAMS, "params is an object")
            result = self._result(method, params)
        except RpcError as err:
            return self._failed(identifier, err)
        return _line({"jsonrpc": "2.0", "id": identifier, "result": result})

    def _result(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        meta = params.get("_meta", {})
        if not isinstance(meta, dict):
            raise RpcError(INVALID_PARAMS, "_meta is an object")
        version = meta.get(f"{_META}protocolVersion")
        if version is None:
            return self._legacy(method, params)
        if version not in MODERN:
            data = {"supported": [*MODERN, *LEGACY], "requested": version}
            raise RpcError(UNSUPPORTED_VERSION, "Unsupported protocol version", data)
        if not isinstance(meta.get(f"{_META}clientCapabilities"), dict):
            raise RpcError(INVALID_PARAMS, f"_meta lacks {_META}clientCapabilities, an object")
        result = {**self._modern(method, params), "resultType": "complete"}
        return {**result, "_meta": {f"{_META}serverInfo": self._info}}

    def _modern(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        match method:
            case "server/discover":
                return {
                    "supportedVersions": [*MODERN, *LEGACY],
                    "capabilities": {"tools": {}},
                    "instructions": self._instructions,
                    **_CACHE,
                }
            case "tools/list":
                return {**self._list(params), **_CACHE}
            case "tools/call":
                return self._call(params)
            case _:
                raise RpcError(METHOD_NOT_FOUND, f"Method not found: {method[:80]}")

    def _legacy(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "initialize":
            requested = params.get("protocolVersion")
            if not isinstance(requested, str):
                raise RpcError(INVALID_PARAMS, "initialize needs protocolVersion, a text")
            self._initialized = True
            return {
                # one that we know, or else our latest: whether it can live with that is the client's to decide
                "protocolVersion": requested if requested in LEGACY else LEGACY[0],
                "capabilities": {"tools": {}},
                "serverInfo": self._info,
                "instructions": self._instructions,
            }
        if method == "ping":
            return {}
        if not self._initialized:
            raise RpcError(
                INVALID_PARAMS,
                f"a request before initialize, and without {_META}protocolVersion in its _meta",
                {"supported": [*MODERN, *LEGACY]},
            )
        match method:
            case "tools/list":
                return self._list(params)
            case "tools/call":
                return self._call(params)
            case _:
                raise RpcError(METHOD_NOT_FOUND, f"Method not found: {method[:80]}")

    def _list(self, params: dict[str, Any]) -> dict[str, Any]:
        if params.get("cursor") is not None:
            raise RpcError(INVALID_PARAMS, "an unknown cursor: all tools are on the first page")
        return {"tools": [tool.listed() for tool in self._tools.values()]}

    def _call(self, params: dict[str, Any]) -> dict[str, Any]:
        name, arguments = params.get("name"), params.get("arguments", {})
        tool = self._tools.get(name) if isinstance(name, str) else None
        if tool is None:
            raise RpcError(INVALID_PARAMS, f"Unknown tool: {str(name)[:80]}")
        if not isinstance(arguments, dict):
            raise RpcError(INVALID_PARAMS, "arguments is an object")
        try:
            result = tool.run(arguments)
        except ToolError as err:
            return {"content": [{"type": "text", "text": str(err)}], "isError": True}
        return {
            "content": [{"type": "text", "text": result.text}],
            "structuredContent": result.data,
            "isError": False,
        }

    @staticmethod
    def _failed(identifier: str | int | None, err: RpcError) -> bytes:
        error: dict[str, Any] = {"code": err.code, "message": str(err)}
        if err.data is not None:
            error["data"] = err.data
        return _line({"jsonrpc": "2.0", "id": identifier, "error": error})


def _line(message: dict[str, Any]) -> bytes:
    # json escapes line ends inside texts, so that a message is always one line
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"
