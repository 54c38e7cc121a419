"""mcp 1.30 as a client: JSON on stdin, JSON on stdout. Runs in the environment `old-mcp`."""

import asyncio
import json
import sys

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client


async def main(asked: dict) -> dict:
    progress = []

    async def on_progress(value: float, total: float | None, message: str | None) -> None:
        progress.append([value, total, message])

    headers = {"Authorization": f"Bearer {asked['token']}"}
    async with streamablehttp_client(asked["url"], headers=headers) as (read, write, _):
        async with ClientSession(read, write) as session:
            opened = await session.initialize()
            tools = await session.list_tools()
            result = await session.call_tool(asked["tool"], asked["arguments"], progress_callback=on_progress)
    return {
        "revision": opened.protocolVersion,
        "tools": [tool.name for tool in tools.tools],
        "texts": [block.text for block in result.content if block.type == "text"],
        "structured": result.structuredContent,
        "is_error": result.isError,
        "progress": progress,
    }


if __name__ == "__main__":
    json.dump(asyncio.run(main(json.load(sys.stdin))), sys.stdout)
