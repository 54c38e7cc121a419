"""langchain-mcp-adapters as a client: JSON on stdin, JSON on stdout. Runs in the environment `old-mcp`."""

import asyncio
import json
import sys

from langchain_mcp_adapters.client import MultiServerMCPClient


async def main(asked: dict) -> dict:
    headers = {"Authorization": f"Bearer {asked['token']}"}
    server = {"transport": "streamable_http", "url": asked["url"], "headers": headers}
    tools = await MultiServerMCPClient({"server": server}).get_tools()
    chosen = next(tool for tool in tools if tool.name == asked["tool"])
    result = await chosen.ainvoke(asked["arguments"])
    blocks = [{"type": "text", "text": result}] if isinstance(result, str) else result
    return {"tools": [tool.name for tool in tools], "texts": [block["text"] for block in blocks]}


if __name__ == "__main__":
    json.dump(asyncio.run(main(json.load(sys.stdin))), sys.stdout)
