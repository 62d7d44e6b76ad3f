"""An agent of pydantic-ai with a scripted model: it plays back tool calls and notes what it is told. No network.

usage: scripted_agent.py PROGRAM.py    (a Python program that uses more memory than the script declares)

Prints JSON: the tool's definition as the model gets it, and every answer of the tool.
"""

import asyncio
import json
import sys

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from corral_client import Session
from corral_client.adapters.pydantic_ai import shell_toolset

ANSWERS: list[str] = []
TOOLS: list[dict[str, object]] = []


def script() -> list[dict[str, object]]:
    return [
        {"command": "echo out; echo err >&2; exit 3", "call_class": "git"},
        {"command": f"{sys.executable} {sys.argv[1]}", "memory_typical_mib": 16, "memory_peak_mib": 48},
        {"command": "sleep 60", "timeout_seconds": 0.3},
        {"command": "true", "memory_typical_mib": 64, "memory_peak_mib": 32},
    ]


def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    last = messages[-1]
    ANSWERS.extend(str(part.content) for part in last.parts if isinstance(part, ToolReturnPart))
    if not TOOLS:
        TOOLS.extend(
            {"name": tool.name, "description": tool.description, "parameters": tool.parameters_json_schema}
            for tool in info.function_tools
        )
    steps = script()
    if len(ANSWERS) == len(steps):
        return ModelResponse(parts=[TextPart("done")])
    return ModelResponse(parts=[ToolCallPart("run_command", steps[len(ANSWERS)])])


async def main() -> None:
    agent = Agent(FunctionModel(model), toolsets=[shell_toolset(Session.from_environment(), memory=":256M")])
    result = await agent.run("play it")
    print(json.dumps({"tools": TOOLS, "answers": ANSWERS, "output": result.output}))


asyncio.run(main())
