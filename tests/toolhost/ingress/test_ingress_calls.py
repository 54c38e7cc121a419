"""Calls through a real ingress, by the official client, in both eras."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.toolhost.ingress.ingress_rig import Host, call_params, rig, text, tool
from toolhost.wire import ServerDefinition

pytestmark = pytest.mark.anyio
ERAS = pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])


@ERAS
async def test_a_function_is_listed_and_called(mode: str) -> None:
    """PROTO-R1, PROTO-R13, NET-R1"""
    async with rig() as ingress:
        await ingress.serve()
        async with ingress.client(mode=mode) as client:
            listed = await client.list_tools()
            called = await client.call_tool("echo", {"text": "hello"})

    assert [t.name for t in listed.tools] == ["echo"]
    assert [c.model_dump(exclude_none=True) for c in called.content] == [{"type": "text", "text": "hello"}]
    assert called.structured_content is None
    assert not called.is_error
