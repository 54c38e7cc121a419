"""What Claude Code does with its listen stream, at a terminal and without one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.clients.claude import Claude
from tests.clients.interactive import interactive_claude
from tests.clients.messages_stub import MessagesStub, ModelRequest, PlannedCall, messages_stub
from tests.clients.rig import Rig
from tests.support.waiting import eventually

from toolhost.wire import ServerDefinition, ToolDefinition
from toolhost_sdk.endpoints.channel import IncomingCall

pytestmark = pytest.mark.clients
NewClaude = Callable[[MessagesStub], Claude]


def definition(*names: str) -> ServerDefinition:
    tools = [
        ToolDefinition(name=name, description=f"Does {name}.", input_schema={"type": "object"})
        for name in names
    ]
    return ServerDefinition(tools=tools)


class Growing:
    """A dispatcher whose first function returns when the test has changed the definition."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.grown = threading.Event()

    async def __call__(self, call: IncomingCall) -> Any:
        name = call.payload["name"]
        if name == "grow":
            self.called.set()
            await asyncio.to_thread(self.grown.wait, 30)
        return {"content": [{"type": "text", "text": f"did {name}"}]}


def grow_until_announced(request: ModelRequest, answered: int) -> PlannedCall | None:
    """The client takes the news when it can, so the model goes on calling until it has them, at most 100 times."""
    if "did bloom" in request.result_text() or answered > 100:
        return None
    known = "mcp__growing__bloom" in request.tools
    return PlannedCall("mcp__growing__bloom" if known else "mcp__growing__grow")


def test_claude_calls_a_function_that_was_announced_in_mid_turn(
    everything_rig: Rig, new_claude: NewClaude
) -> None:
    """DISP-R6, PROTO-R9"""
    growing = Growing()
    everything_rig.serve(growing, definition("grow"), name="growing", anonymous=True)
    servers = {"growing": {"type": "http", "url": f"{everything_rig.url}/growing/mcp"}}
    with messages_stub(grow_until_announced) as stub, ThreadPoolExecutor(1) as threads:
        asked = threads.submit(new_claude(stub).ask, "grow", servers, allow="mcp__growing")
        assert growing.called.wait(30)
        everything_rig.redefine("growing", definition("grow", "bloom"))
        growing.grown.set()
        asked.result(timeout=90)
    everything_rig.stop("growing")

    assert stub.requests[-1].result_text() == "did bloom"


def test_claude_at_a_terminal_calls_a_function(everything_rig: Rig, new_claude: NewClaude) -> None:
    """ACC-2: it declares the extension for tasks; a server without them answers as ever."""
    servers = {"everything": {"type": "http", "url": f"{everything_rig.url}/everything/mcp"}}
    with messages_stub([PlannedCall("mcp__everything__greet", {"name": "Ada"})]) as stub:
        with interactive_claude(new_claude(stub), "greet Ada", servers, allow="mcp__everything"):
            eventually(stub.with_results, within=60, what="the turn with the result")

    assert stub.with_results()[0].result_text() == "Hello, Ada!"
