"""The official MCP client against corral-mcp, in one era of the protocol. Prints JSON: the version that was agreed on,
the tools, and two results.

usage: mcp_client.py PYTHON legacy|auto    (PYTHON -m agentd.mcp is the server; its environment is this one's)
"""

import asyncio
import json
import os
import sys

from mcp import Client, StdioServerParameters


async def main() -> None:
    server = StdioServerParameters(command=sys.argv[1], args=["-m", "agentd.mcp"], env=dict(os.environ))
    async with Client(server, mode=sys.argv[2]) as client:
        tools = await client.list_tools()
        declared = await client.call_tool("declare_intent", {"memory_peak": "2G", "call_class": "test"})
        wrong = await client.call_tool("declare_intent", {"memory_peak": "lots"})
        print(
            json.dumps(
                {
                    "version": client.protocol_version,
                    "tools": [tool.name for tool in tools.tools],
                    "declared": declared.model_dump(mode="json", by_alias=True),
                    "wrong": wrong.model_dump(mode="json", by_alias=True),
                }
            )
        )


asyncio.run(main())
