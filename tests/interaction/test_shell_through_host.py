"""The shell through a whole host: aborts of either protocol, and the cost of one more server."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import psutil
import pytest
from tests.support.clients import call_text, connected

from toolhost import ToolHost
from toolhost.tools.bash import BashTool
from toolhost.tools.template import ToolServerTemplate

pytestmark = [pytest.mark.ray, pytest.mark.anyio]
MODERN, LEGACY = "2026-07-28", "2025-11-25"
SERVERS = 50


@pytest.fixture
def shell(host: ToolHost) -> Iterator[str]:
    """The URL of a shell."""
    with host.spawn(BashTool.bind(yield_after=45), name="shell") as handle:
        yield handle.url


def sleepers(seconds: str) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] == ["sleep", seconds]
    ]


async def until(condition: Callable[[], bool], within: float = 15.0) -> None:
    with anyio.fail_after(within):
        while True:
            if condition():
                return
            await anyio.sleep(0.02)


@asynccontextmanager
async def bare(host: ToolHost, headers: dict[str, str]) -> AsyncIterator[httpx2.AsyncClient]:
    given = {
        "authorization": f"Bearer {host.operator_token}",
        "accept": "application/json, text/event-stream",
    }
    async with httpx2.AsyncClient(headers={**given, **headers}, timeout=60, trust_env=False) as http:
        yield http


def call_of(command: str, **meta: Any) -> dict[str, Any]:
    arguments = {"name": "run_command", "arguments": {"command": command}}
    return {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {**arguments, **meta}}


async def test_closing_the_response_ends_the_tree(host: ToolHost, shell: str) -> None:
    """EXEC-A3, EXEC-R4: revision 2026-07-28; children in sessions of their own included."""
    headers = {"mcp-protocol-version": MODERN, "mcp-method": "tools/call", "mcp-name": "run_command"}
    meta = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    body = call_of("setsid sleep 4901 & sleep 4901", _meta=meta)

    async with bare(host, headers) as http, anyio.create_task_group() as group:
        group.start_soon(lambda: http.post(shell, json=body))
        await until(lambda: len(sleepers("4901")) == 2)
        group.cancel_scope.cancel()

    await until(lambda: sleepers("4901") == [])


async def test_a_cancelled_notification_ends_the_tree(host: ToolHost, shell: str) -> None:
    """EXEC-A3, EXEC-R4: revisions before it."""
    who = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}}
    note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}

    async with bare(host, {}) as http:
        hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": who}
        answer = (await http.post(shell, json=hello)).raise_for_status()
        http.headers |= {
            "mcp-session-id": answer.headers["mcp-session-id"],
            "mcp-protocol-version": LEGACY,
        }
        await http.post(shell, json={"jsonrpc": "2.0", "method": "notifications/initialized"})
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: http.post(shell, json=call_of("setsid sleep 4902 & sleep 4902")))
            await until(lambda: len(sleepers("4902")) == 2)
            assert (await http.post(shell, json=note)).status_code == 202
            await until(lambda: sleepers("4902") == [])
            group.cancel_scope.cancel()


@pytest.mark.parametrize("mode", ["legacy", MODERN])
async def test_a_model_gets_text_alone(host: ToolHost, shell: str, mode: str) -> None:
    """TOOL-R5, CLIENT-R1: through either protocol, with state from call to call."""
    async with connected(shell, host.operator_token, mode=mode) as client:
        await call_text(client, "run_command", {"command": "cd /tmp; X=1"})
        result = await client.call_tool("run_command", {"command": 'pwd; echo "$X"', "detail": "concise"})

    assert result.structured_content is None
    assert [block.type for block in result.content] == ["text"]
    assert str(getattr(result.content[0], "text", "")).startswith("/tmp\n1\n[exit 0 | job-")


def test_one_more_server_is_cheap(host: ToolHost, tmp_path: Path) -> None:
    """HOST-A3, HOST-R3"""

    def resident() -> int:
        return sum(child.memory_info().rss for child in psutil.Process().children(recursive=True))

    taken: list[float] = []
    handles = [host.spawn(ToolServerTemplate.bind(str(tmp_path)), name="first")]
    before = resident()
    for number in range(SERVERS):
        started = time.perf_counter()
        handles.append(host.spawn(ToolServerTemplate.bind(str(tmp_path)), name=f"further-{number}"))
        taken.append(time.perf_counter() - started)
    grown = resident() - before
    for handle in handles:
        handle.stop()

    assert statistics.median(taken) < 0.1
    assert sum(taken) < 5
    assert grown / SERVERS < 10e6
