"""The official MCP client, with a bearer token, in either era."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

ERAS = ("legacy", "2026-07-28")


@asynccontextmanager
async def connected(
    url: str, token: str | None, *, mode: str = "auto", **options: Any
) -> AsyncIterator[Client]:
    """A connected client of the server at *url*."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = httpx2.Timeout(30, read=300)
    async with httpx2.AsyncClient(headers=headers, timeout=timeout) as http:
        async with Client(streamable_http_client(url, http_client=http), mode=mode, **options) as client:
            yield client


async def call_text(
    client: Client, tool: str, arguments: Mapping[str, Any] | None = None, **options: Any
) -> str:
    """Call a function; its text."""
    result = await client.call_tool(tool, dict(arguments or {}), **options)
    return "\n".join(block.text for block in result.content if block.type == "text")
