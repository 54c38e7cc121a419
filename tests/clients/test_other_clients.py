"""Codex and the Inspector against a host. Codex is the client that still speaks 2025-06-18."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from tests.clients.other_clients import inspect_server, run_codex
from tests.clients.responses_stub import responses_stub

if TYPE_CHECKING:
    from toolhost import ToolHost

pytestmark = [pytest.mark.clients, pytest.mark.ray]
ERAS = pytest.mark.parametrize("era", ["legacy", "modern"])
REVISIONS = {"legacy": "2025-11-25", "modern": "2026-07-28"}


@pytest.mark.usefixtures("codex")
def test_codex_calls_a_shell_command_and_its_model_reads_the_text(
    running_host: ToolHost, tmp_path: Path
) -> None:
    """CTEST-R2, CTEST-R4"""
    arguments = {"command": """printf 'say "hi"\\n'"""}
    with responses_stub("mcp__bash", "run_command", arguments) as stub:
        run_codex(
            tmp_path,
            model_url=stub.url,
            name="bash",
            url=f"{running_host.url}/bash/mcp",
            token=running_host.mint_token(scopes=["bash"]),
            prompt="call it",
        )

    texts = [block["text"] for output in stub.outputs() for block in output]
    assert any('say "hi"\n' in text for text in texts)


@ERAS
@pytest.mark.usefixtures("inspector")
def test_the_inspector_connects_in_its_era(
    running_host: ToolHost, tmp_path: Path, era: Literal["legacy", "modern"]
) -> None:
    """CTEST-R4, PROTO-R1"""
    result = inspect(running_host, tmp_path, era, "--method", "initialize")

    assert result["protocolVersion"] == REVISIONS[era]
    assert result["serverInfo"]["name"] == "everything"


@ERAS
@pytest.mark.usefixtures("inspector")
def test_the_inspector_reads_text_without_a_structure_beside_it(
    running_host: ToolHost, tmp_path: Path, era: Literal["legacy", "modern"]
) -> None:
    """CTEST-R4, CLIENT-R1"""
    call = ["--method", "tools/call", "--tool-name", "greet", "--tool-arg", "name=Ada"]
    result = inspect(running_host, tmp_path, era, *call)

    assert result["content"] == [{"type": "text", "text": "Hello, Ada!"}]
    assert "structuredContent" not in result


def inspect(host: ToolHost, home: Path, era: Literal["legacy", "modern"], *arguments: str) -> dict[str, Any]:
    token = host.mint_token(scopes=["everything"])
    done = inspect_server(home, *arguments, url=f"{host.url}/everything/mcp", token=token, era=era)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)["result"]
    return result
