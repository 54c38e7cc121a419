"""The server of the suites, in this process: what the suites only see through the protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from examples.everything import Everything
from examples.everything.server import JSON_SCHEMA_2020_12
from tests.clients.fixtures import PROMPTS, RESOURCES, TOOLS

from toolhost.tools.local import LocalServer
from toolhost.wire import ToolOutcome
from toolhost_sdk.node.port import Executor

pytestmark = pytest.mark.anyio


async def call(tmp_path: Path, tool: str, **arguments: Any) -> ToolOutcome:
    executor = cast("Executor", None)  # `Everything` runs no commands
    async with LocalServer(
        Everything.bind(), name="everything", executor=executor, state_dir=tmp_path
    ) as server:
        return await server.call(tool, arguments)


async def test_it_offers_every_fixture_the_suites_look_for() -> None:
    """SUITE-R1"""
    definition = Everything.bind().definition()

    assert {tool.name for tool in definition.tools} == TOOLS
    assert {resource.uri for resource in definition.resources} == RESOURCES
    assert {prompt.name for prompt in definition.prompts} == PROMPTS
    assert all(tool.description for tool in definition.tools)


async def test_a_hand_written_schema_is_kept_verbatim() -> None:
    """SUITE-R1"""
    tools = {tool.name: tool for tool in Everything.bind().definition().tools}

    assert tools["json_schema_2020_12_tool"].input_schema == JSON_SCHEMA_2020_12


async def test_text_goes_out_as_text_alone(tmp_path: Path) -> None:
    """CLIENT-R1"""
    outcome = await call(tmp_path, "test_simple_text")

    text = "This is a simple text response for testing."
    assert outcome == {"content": [{"type": "text", "text": text}]}


async def test_a_failed_function_says_so_in_words(tmp_path: Path) -> None:
    """CLIENT-R5"""
    outcome = await call(tmp_path, "test_error_handling")

    assert outcome["is_error"]
    assert outcome["content"][0]["text"].startswith("This tool intentionally returns an error for testing")


async def test_every_kind_of_content_comes_out_of_one_call(tmp_path: Path) -> None:
    outcome = await call(tmp_path, "test_multiple_content_types")

    assert [block["type"] for block in outcome["content"]] == ["text", "image", "resource"]
