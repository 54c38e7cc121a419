"""The agent SDK as a client: JSON on stdin, JSON on stdout. Runs in the environment `agent-sdk`."""

import asyncio
import json
import sys

from claude_agent_sdk import ClaudeAgentOptions, ResultMessage, query


async def main(asked: dict) -> dict:
    options = ClaudeAgentOptions(
        mcp_servers=asked["servers"],
        allowed_tools=asked["allowed"],
        strict_mcp_config=True,
        env=asked["environment"],
        cwd=asked["home"],
    )
    ended = None
    async for message in query(prompt=asked["prompt"], options=options):
        if isinstance(message, ResultMessage):
            ended = {"is_error": message.is_error, "result": message.result}
    return {"ended": ended}


if __name__ == "__main__":
    json.dump(asyncio.run(main(json.load(sys.stdin))), sys.stdout)
