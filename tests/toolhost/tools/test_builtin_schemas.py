"""What clients see of the built-in servers, pinned: names, order, schemas, hints."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest
from inline_snapshot import snapshot

from toolhost.tools import ToolSpec
from toolhost.tools.bash import BashTool
from toolhost.tools.jobs import AsyncBashTool
from toolhost.tools.local import LocalServer
from toolhost.tools.template import ToolServerTemplate
from toolhost.wire import ToolDefinition

Serve = Callable[..., AbstractAsyncContextManager[LocalServer]]
pytestmark = pytest.mark.anyio
SPECS = [BashTool.bind(), AsyncBashTool.bind(), ToolServerTemplate.bind("/unused")]


def hints(tool: ToolDefinition) -> tuple[str, str, bool]:
    """Name, hints as letters (read-only, destructive, idempotent, open world), and whether it is loaded always."""
    given = {"r": tool.read_only, "d": tool.destructive, "i": tool.idempotent, "o": tool.open_world}
    return tool.name, "".join(letter for letter, value in given.items() if value), tool.always_load


def test_functions_come_in_a_fixed_order_with_honest_hints() -> None:
    """TOOL-R2, CLIENT-R2, CLIENT-R3"""
    assert [[hints(tool) for tool in spec.definition().tools] for spec in SPECS] == snapshot(
        [
            [
                ("run_command", "do", True),
                ("run_status", "ri", True),
                ("run_output", "ri", False),
                ("run_cancel", "di", False),
                ("run_jobs", "ri", False),
            ],
            [
                ("run", "do", True),
                ("run_status", "ri", True),
                ("run_output", "ri", False),
                ("run_cancel", "di", False),
                ("run_jobs", "ri", False),
            ],
            [("read_note", "ri", False), ("write_note", "di", False)],
        ]
    )


def test_the_shells_schema_is_pinned() -> None:
    """DEF-R5: what to do is a parameter; no parameter says where, as whom or with which limits."""
    tools = BashTool.bind().definition().tools

    assert tools[0].description == snapshot("""\
Run a bash command and return its output, ending in one line of facts: [exit 0 | 1.2 s | cwd /app | job-3].

Directory, variables, functions and options carry over to the next call. There is no input: commands that
ask fail at once. Background processes end with the command. A command still running after wait_seconds
goes on as a job; the answer names it and says how to follow it. Long output shows its head and tail;
run_output reads the rest without running anything again.\
""")
    assert tools[0].input_schema == snapshot(
        {
            "additionalProperties": False,
            "properties": {
                "command": {
                    "description": "shell text for bash, of any length; heredocs work.",
                    "type": "string",
                },
                "timeout": {
                    "anyOf": [{"type": "number"}, {"type": "null"}],
                    "default": None,
                    "description": "seconds after which the command is ended; output so far is kept.",
                },
                "cwd": {
                    "anyOf": [{"type": "string"}, {"type": "null"}],
                    "default": None,
                    "description": "directory for this call alone.",
                },
                "max_output": {
                    "anyOf": [{"minimum": 1000, "type": "integer"}, {"type": "null"}],
                    "default": None,
                    "description": "characters of text to return at most.",
                },
                "wait_seconds": {
                    "anyOf": [{"minimum": 0.25, "type": "number"}, {"type": "null"}],
                    "default": None,
                    "description": "seconds to wait for the end, 0.25 to 45, before it goes on as a job.",
                },
                "detail": {
                    "default": "detailed",
                    "description": "concise leaves duration and directory out of the last line.",
                    "enum": ["concise", "detailed"],
                    "type": "string",
                },
                "reset": {
                    "default": False,
                    "description": "start from a clean shell state.",
                    "type": "boolean",
                },
            },
            "required": ["command"],
            "type": "object",
        }
    )
    assert tools[0].output_schema is None


def test_the_following_functions_are_the_same_on_both_servers() -> None:
    """TOOL-R2: learned once."""
    assert BashTool.bind().definition().tools[1:] == AsyncBashTool.bind().definition().tools[1:]


def test_the_job_schemas_are_pinned() -> None:
    """DEF-R5"""
    tools = AsyncBashTool.bind().definition().tools

    assert tools[0].description == snapshot("""\
Start a shell command as a job and wait a little for it.

For builds, tests, downloads and servers: the job goes on when the call returns. Every command runs in a
fresh bash in the same directory, without input. Processes it leaves behind are ended with it.\
""")
    assert {tool.name: tool.input_schema["properties"] for tool in tools} == snapshot(
        {
            "run": {
                "command": {"description": "shell text for bash, of any length.", "type": "string"},
                "timeout": {
                    "anyOf": [{"type": "number"}, {"type": "null"}],
                    "default": None,
                    "description": "seconds after which the job is ended; its output is kept. No limit when left out.",
                },
                "wait_seconds": {
                    "default": 10.0,
                    "description": "seconds to wait for the end, at most 45.",
                    "minimum": 0,
                    "type": "number",
                },
            },
            "run_status": {
                "job_id": {
                    "anyOf": [{"type": "string"}, {"type": "null"}],
                    "default": None,
                    "description": 'a job\'s name such as "job-3"; the latest job when left out.',
                },
                "wait_seconds": {
                    "default": 5.0,
                    "description": "seconds to wait for the end, at most 45.",
                    "minimum": 0,
                    "type": "number",
                },
            },
            "run_output": {
                "job_id": {"description": 'a job\'s name such as "job-3".', "type": "string"},
                "offset": {
                    "default": 0,
                    "description": "byte position to read from; with grep, to search from.",
                    "minimum": 0,
                    "type": "integer",
                },
                "max_bytes": {
                    "default": 30000,
                    "description": "bytes to read from there.",
                    "maximum": 30000,
                    "minimum": 1,
                    "type": "integer",
                },
                "tail": {
                    "anyOf": [{"maximum": 10000, "minimum": 1, "type": "integer"}, {"type": "null"}],
                    "default": None,
                    "description": "the last so many lines.",
                },
                "lines": {
                    "anyOf": [{"type": "string"}, {"type": "null"}],
                    "default": None,
                    "description": 'a range of lines such as "400:480", counted from 1.',
                },
                "grep": {
                    "anyOf": [{"type": "string"}, {"type": "null"}],
                    "default": None,
                    "description": "a regular expression in RE2 syntax; matching lines come with their numbers.",
                },
                "context": {
                    "default": 0,
                    "description": "lines to show around each match.",
                    "maximum": 20,
                    "minimum": 0,
                    "type": "integer",
                },
                "encoding": {
                    "default": "text",
                    "description": '"base64" gives exact bytes, for output that is no text.',
                    "enum": ["text", "base64"],
                    "type": "string",
                },
            },
            "run_cancel": {"job_id": {"description": 'a job\'s name such as "job-3".', "type": "string"}},
            "run_jobs": {},
        }
    )
    assert tools[0].output_schema == snapshot(
        {
            "$defs": {
                "JobError": {
                    "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
                    "required": ["code", "message"],
                    "type": "object",
                }
            },
            "description": "One job as the model sees it.",
            "properties": {
                "job_id": {"type": "string"},
                "state": {
                    "enum": ["queued", "running", "succeeded", "failed", "cancelled", "timed_out"],
                    "type": "string",
                },
                "done": {"type": "boolean"},
                "label": {"type": "string"},
                "seconds": {"type": "number"},
                "output": {"type": "string"},
                "next_offset": {"type": "integer"},
                "result": {"anyOf": [{"additionalProperties": True, "type": "object"}, {"type": "null"}]},
                "error": {"anyOf": [{"$ref": "#/$defs/JobError"}, {"type": "null"}]},
                "progress": {"anyOf": [{"additionalProperties": True, "type": "object"}, {"type": "null"}]},
                "hint": {"type": "string"},
                "running": {"items": {"type": "string"}, "type": "array"},
            },
            "required": [
                "job_id",
                "state",
                "done",
                "label",
                "seconds",
                "output",
                "next_offset",
                "result",
                "error",
                "progress",
                "hint",
                "running",
            ],
            "type": "object",
        }
    )


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.cls.__name__)
def test_every_schema_refuses_unknown_arguments_and_every_hint_is_set(spec: ToolSpec) -> None:
    """TOOL-R9, CLIENT-R2"""
    for tool in spec.definition().tools:
        assert tool.input_schema["additionalProperties"] is False
        assert None not in (tool.read_only, tool.destructive, tool.idempotent, tool.open_world)
        assert not (tool.read_only and tool.destructive)


def test_names_stay_short_behind_a_clients_prefix() -> None:
    """CLIENT-R6"""
    for spec in SPECS:
        assert all(
            len(f"mcp__a-server-of-some-length__{tool.name}") <= 64 for tool in spec.definition().tools
        )


def test_definitions_are_stable_byte_for_byte() -> None:
    """TOOL-R2, CLIENT-R6"""
    for spec in SPECS:
        assert spec.definition().model_dump_json() == spec.definition().model_dump_json()


READ_ONLY: dict[str, dict[str, Any]] = {
    "run_status": {"wait_seconds": 0.1},
    "run_output": {"job_id": "job-1"},
    "run_jobs": {},
}


async def test_read_only_functions_run_in_parallel_with_themselves(serve: Serve) -> None:
    """CLIENT-R2"""
    async with serve(BashTool.bind()) as server:
        declared = {tool.name for tool in server.definition.tools if tool.read_only}
        await server.call("run_command", {"command": "seq 5000"})
        failed: list[Any] = []

        async def once(name: str) -> None:
            outcome = await server.call(name, READ_ONLY[name])
            failed.extend([outcome] if outcome.get("is_error") else [])

        async with anyio.create_task_group() as group:
            for name in declared:
                for _ in range(10):
                    group.start_soon(once, name)

    assert declared == set(READ_ONLY)
    assert failed == []


async def test_the_template_works_as_it_stands(serve: Serve, tmp_path: Path) -> None:
    """DEF-A1"""
    async with serve(ToolServerTemplate.bind(str(tmp_path / "notes"))) as server:
        said = await server.call("write_note", {"name": "a", "text": "hi"})
        note = await server.call("read_note", {"name": "a"})
        missing = await server.call("read_note", {"name": "b"})
        outside = await server.call("read_note", {"name": "../a"})

    assert said["content"][0]["text"] == "kept 2 characters as 'a'"
    assert note["structured"] == {"name": "a", "text": "hi", "characters": 2}
    assert missing["content"][0]["text"] == "there is no note 'b'; there are a [not_found]"
    assert outside["is_error"]
