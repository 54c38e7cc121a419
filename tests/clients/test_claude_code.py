"""Claude Code itself against a host, with a scripted model behind it.

The proof of a call is the chain: the model asks for it, the next model request holds its result.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from examples.everything import Everything
from tests.clients.claude import Claude
from tests.clients.messages_stub import MessagesStub, PlannedCall, messages_stub
from tests.clients.rig import Rig
from tests.support.waiting import eventually

from toolhost.tools import ToolServer, tool

if TYPE_CHECKING:
    from toolhost import ToolHost

pytestmark = [pytest.mark.clients, pytest.mark.ray]
NewClaude = Callable[[MessagesStub], Claude]


def test_claude_mcp_list_shows_a_server_added_with_a_token_as_connected(
    running_host: ToolHost, new_claude: NewClaude
) -> None:
    """CTEST-R1"""
    url = f"{running_host.url}/bash/mcp"
    with messages_stub() as stub:
        claude = new_claude(stub)
        claude.add_server("bash", url, running_host.mint_token(scopes=["bash"]))

        assert f"bash: {url} (HTTP) - ✔ Connected" in claude.list_servers()


def test_claude_mcp_list_says_why_a_server_refuses_it(everything_rig: Rig, new_claude: NewClaude) -> None:
    """CLIENT-R5: a wrong token, one for another server, no token, and a name nobody has."""
    everything_rig.spawn(Everything.bind(), name="closed")
    url = f"{everything_rig.url}/closed/mcp"
    with messages_stub() as stub:
        claude = new_claude(stub)
        claude.add_server("wrong", url, "th_" + "x" * 43)
        claude.add_server("foreign", url, everything_rig.mint_token(scopes=["everything"]))
        claude.add_server("nobody", f"{everything_rig.url}/nobody/mcp", everything_rig.mint_token())
        claude.run("mcp", "add", "--transport", "http", "none", url)
        listed = claude.list_servers()
    everything_rig.stop("closed")

    said = {line.split(":")[0]: line for line in listed.splitlines() if "✘ Failed to connect" in line}
    assert "HTTP 401" in said["wrong"]
    assert "mint one with `toolhost token mint`" in said["wrong"]
    assert "Insufficient scope" in said["foreign"]
    assert "MCP endpoint not found" in said["nobody"]
    assert "none" in said


def test_claude_calls_a_shell_command_and_its_model_reads_the_text_unescaped(
    running_host: ToolHost, new_claude: NewClaude
) -> None:
    """CTEST-R2, CLIENT-R1"""
    command = PlannedCall("mcp__bash__run_command", {"command": """printf 'say "hi"\\nline two\\n'"""})
    servers = running_host.mcp_config(["bash"])["mcpServers"]
    with messages_stub([command]) as stub:
        new_claude(stub).ask("call the tool", servers, allow="mcp__bash")

    assert "mcp__bash__run_command" in stub.requests[-1].tools
    assert 'say "hi"\nline two\n' in stub.with_results()[0].result_text()


def test_claude_reads_a_text_with_quotes_byte_for_byte(running_host: ToolHost, new_claude: NewClaude) -> None:
    """CLIENT-R1: no `structuredContent` beside text, or the model would see it escaped."""
    greeting = PlannedCall("mcp__everything__greet", {"name": 'A "quoted" name\nand a line'})
    servers = {"everything": {"type": "http", "url": f"{running_host.url}/everything/mcp"}}
    with messages_stub([greeting]) as stub:
        new_claude(stub).ask("greet them", servers, allow="mcp__everything")

    assert stub.with_results()[0].result_text() == 'Hello, A "quoted" name\nand a line!'


def test_claude_talks_to_nobody_but_its_model(running_host: ToolHost, new_claude: NewClaude) -> None:
    """CTEST-R1"""
    del running_host
    with messages_stub() as stub:
        claude = new_claude(stub)
        claude.ask("say something", {}, allow="mcp__none")

        assert claude.isolated_environment()["ANTHROPIC_BASE_URL"] == stub.url
    assert {request.headers["x-api-key"] for request in stub.requests} == {"sk-dummy-for-tests"}


def test_claude_is_given_a_long_output_inline_and_shortened(
    running_host: ToolHost, new_claude: NewClaude
) -> None:
    """CLIENT-R4: past its own limit Claude Code would show a path and the first 2 KB."""
    command = PlannedCall("mcp__bash__run_command", {"command": "seq 1 40000"})
    servers = running_host.mcp_config(["bash"])["mcpServers"]
    with messages_stub([command]) as stub:
        new_claude(stub).ask("count", servers, allow="mcp__bash")

    text = stub.with_results()[0].result_text()
    assert "1\n2\n3\n" in text
    assert "39999\n40000\n" in text
    assert len(text) < 50_000


class Restless(ToolServer):
    """Its first call ends with its process."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    @tool(read_only=True)
    async def look(self) -> str:
        """Looks."""
        if (self._folder / "pid").exists():
            return "seen after all"
        (self._folder / "pid").write_text(str(os.getpid()))
        await asyncio.sleep(60)
        return "never"


def test_claude_waits_for_a_server_that_dies_in_its_call_and_reads_the_answer(
    running_host: ToolHost, new_claude: NewClaude, tmp_path: Path
) -> None:
    """DISP-R3, CLIENT-R6, ACC-4: a harmless call is made again, and no client sees an error of HTTP."""
    running_host.spawn(Restless.bind(folder=str(tmp_path)), name="restless", isolation="process")
    servers = running_host.mcp_config(["restless"])["mcpServers"]
    with messages_stub([PlannedCall("mcp__restless__look")]) as stub, ThreadPoolExecutor(1) as threads:
        claude = new_claude(stub)
        asked = threads.submit(claude.ask, "look", servers, allow="mcp__restless")
        eventually((tmp_path / "pid").exists, within=30, what="the call")
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        asked.result(timeout=90)

    assert stub.with_results()[0].result_text() == "seen after all"
