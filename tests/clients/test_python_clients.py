"""Python clients that need `mcp<2`, and the agent SDK, from environments of their own (CTEST-R3)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.clients.claude import Claude
from tests.clients.environments import AGENT_SDK, OLD_MCP, PythonEnvironment
from tests.clients.messages_stub import MessagesStub, PlannedCall, messages_stub
from tests.support.clients import call_text, connected

if TYPE_CHECKING:
    from toolhost import ToolHost

pytestmark = [pytest.mark.clients, pytest.mark.ray]


def need(environment: PythonEnvironment) -> PythonEnvironment:
    if not environment.is_installed():
        pytest.skip(f"{' '.join(environment.requirements)} not installed: run 'make clients'")
    return environment


def arguments(host: ToolHost, tool: str, **values: Any) -> dict[str, Any]:
    token = host.mint_token(scopes=["everything"])
    return {"url": f"{host.url}/everything/mcp", "token": token, "tool": tool, "arguments": values}


def test_a_client_of_the_old_sdk_gets_text_and_progress(running_host: ToolHost) -> None:
    """CTEST-R4, PROTO-R13"""
    asked = arguments(running_host, "test_tool_with_progress")
    seen = need(OLD_MCP).run("old_mcp.py", asked)

    assert (seen["revision"], seen["is_error"], seen["structured"]) == ("2025-11-25", False, None)
    assert seen["texts"] == ["Tool with progress executed successfully"]
    assert [[value, total] for value, total, _ in seen["progress"]] == [[0, 100], [50, 100], [100, 100]]


def test_a_langchain_adapter_calls_a_function(running_host: ToolHost) -> None:
    """CTEST-R4"""
    seen = need(OLD_MCP).run("langchain_adapter.py", arguments(running_host, "greet", name="Ada"))

    assert "greet" in seen["tools"]
    assert seen["texts"] == ["Hello, Ada!"]


def test_the_agent_sdk_calls_a_function_and_its_model_reads_the_text(
    running_host: ToolHost, new_claude: Callable[[MessagesStub], Claude], tmp_path: Path
) -> None:
    """CTEST-R2, CTEST-R4"""
    environment = need(AGENT_SDK)
    servers = {"everything": {"type": "http", "url": f"{running_host.url}/everything/mcp"}}
    with messages_stub([PlannedCall("mcp__everything__greet", {"name": "Ada"})]) as stub:
        asked = {
            "servers": servers,
            "allowed": ["mcp__everything"],
            "environment": new_claude(stub).isolated_environment(),
            "home": str(tmp_path),
            "prompt": "greet Ada",
        }
        environment.run("agent_sdk.py", asked, timeout=90)

    assert stub.with_results()[0].result_text() == "Hello, Ada!"


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["auto", "legacy", "2026-07-28"])
async def test_the_current_sdk_calls_a_function_in_each_of_its_modes(
    running_host: ToolHost, mode: str
) -> None:
    """CTEST-R4"""
    token = running_host.mint_token(scopes=["everything"])
    async with connected(f"{running_host.url}/everything/mcp", token, mode=mode) as client:
        assert await call_text(client, "greet", {"name": "Ada"}) == "Hello, Ada!"
