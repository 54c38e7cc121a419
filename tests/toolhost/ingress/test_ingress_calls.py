"""Calls through a real ingress, by the official client, in both eras."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.toolhost.ingress.ingress_rig import (
    ECHO,
    MODERN,
    Host,
    call_params,
    modern_request,
    open_session,
    rig,
    text,
    tool,
    until,
)

from toolhost.wire import ServerDefinition
from toolhost_sdk.endpoints.channel import IncomingCall
from toolhost_sdk.errors import CapacityError

pytestmark = pytest.mark.anyio
ERAS = pytest.mark.parametrize("mode", [MODERN, "legacy"])


@ERAS
async def test_a_function_is_listed_and_called(mode: str) -> None:
    """PROTO-R1, PROTO-R13, NET-R1, CLIENT-R1"""
    async with rig() as ingress:
        await ingress.serve()
        async with ingress.client(mode=mode) as client:
            listed = await client.list_tools()
            called = await client.call_tool("echo", {"text": "hello"})

    assert [t.name for t in listed.tools] == ["echo"]
    assert [c.model_dump(exclude_none=True) for c in called.content] == [{"type": "text", "text": "hello"}]
    assert called.structured_content is None
    assert not called.is_error


async def test_lists_keep_declaration_order_and_are_private(anyio_backend: str) -> None:
    """PROTO-R11, PROTO-R2, SDK-R23"""
    schema = {
        "type": "object",
        "$defs": {"x": {"type": "string"}},
        "$anchor": "here",
        "additionalProperties": False,
    }
    names = ["zeta", "alpha", "mid"]
    definition = ServerDefinition(tools=[tool(n, schema, read_only=True, always_load=True) for n in names])
    async with rig() as ingress, ingress.http() as http:
        await ingress.serve(definition=definition)
        bodies = [(await ingress.modern(http, "tools/list")).content for _ in range(2)]

    result = json.loads(bodies[0])["result"]
    assert bodies[0] == bodies[1]
    assert [t["name"] for t in result["tools"]] == names
    assert (result["resultType"], result["cacheScope"], result["ttlMs"]) == ("complete", "private", 0)
    assert result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"] == "alpha"
    assert result["tools"][0]["inputSchema"] == schema
    assert result["tools"][0]["annotations"] == {"readOnlyHint": True}
    assert result["tools"][0]["_meta"] == {"anthropic/alwaysLoad": True}


async def test_discovery_advertises_what_is_served(anyio_backend: str) -> None:
    """PROTO-R5, PROTO-R15, SDK-R15"""
    definition = ServerDefinition(tools=ECHO.tools, instructions="Ask nicely.", version="7")
    async with rig() as ingress, ingress.http() as http:
        await ingress.serve(definition=definition)
        found = (await ingress.modern(http, "server/discover")).json()["result"]
        removed = await ingress.modern(http, "prompts/list")
        async with ingress.client(mode="legacy") as client:
            legacy = client.server_capabilities.model_dump(exclude_none=True)

    assert found["capabilities"] == {"tools": {"listChanged": True}}
    assert found["supportedVersions"] == [MODERN]
    assert found["instructions"] == "Ask nicely."
    assert legacy == {"tools": {"list_changed": True}}
    assert (removed.status_code, removed.json()["error"]["code"]) == (404, -32601)


@ERAS
async def test_unknown_functions_and_bad_arguments_are_words_for_the_model(mode: str) -> None:
    """SDK-R6, EXEC-A6"""
    async with rig() as ingress:
        host = await ingress.serve()
        async with ingress.client(mode=mode) as client:
            said = [
                await client.call_tool("ecko", {}),
                await client.call_tool("echo", {"text": 5}),
                await client.call_tool("echo", {}),
                await client.call_tool("echo", {"text": "a", "loud": True}),
            ]

    assert all(result.is_error for result in said)
    assert [result.content[0].text for result in said] == [
        "server 'alpha' has no function 'ecko': did you mean 'echo'? [not_found]",
        "argument 'text' of 'echo': 5 is not of type 'string' [usage]",
        "'echo' needs argument 'text'; it takes 'text' [usage]",
        "'echo' has no argument 'loud'; it takes 'text' [usage]",
    ]
    assert host.seen == []


@ERAS
async def test_outcomes_become_content_and_errors_keep_their_code(mode: str) -> None:
    """SDK-R8, SEC-R5, DEF-A6"""

    async def rich(call: IncomingCall, arguments: dict[str, Any]) -> dict[str, Any]:
        return {
            "content": [
                {"type": "image", "data": "AAAA", "mime_type": "image/png", "annotations": {"priority": 1.0}},
                {"type": "resource", "uri": "test://x", "mime_type": "text/plain", "text": "body"},
                {"type": "link", "uri": "test://y", "name": "y"},
            ],
            "structured": {"n": 1},
            "meta": {"k": "v"},
        }

    async def full(call: IncomingCall, arguments: dict[str, Any]) -> Any:
        raise CapacityError("server 'alpha' is full: try again later")

    async def broken(call: IncomingCall, arguments: dict[str, Any]) -> Any:
        return {"content": [{"type": "hologram"}]}

    async def crash(call: IncomingCall, arguments: dict[str, Any]) -> Any:
        raise RuntimeError("secret /etc/path")

    host = Host()
    host.functions.update(rich=rich, full=full, broken=broken, crash=crash)
    definition = ServerDefinition(tools=[tool(n) for n in ("rich", "full", "broken", "crash")])
    async with rig() as ingress:
        await ingress.serve(host=host, definition=definition)
        async with ingress.client(mode=mode) as client:
            good = await client.call_tool("rich", {})
            failed = [await client.call_tool(name, {}) for name in ("full", "broken", "crash")]

    assert [c.type for c in good.content] == ["image", "resource", "resource_link"]
    assert good.structured_content == {"n": 1}
    assert good.meta is not None and good.meta["k"] == "v"
    assert all(result.is_error for result in failed)
    assert [result.meta["toolhost/error"]["code"] for result in failed] == [
        "capacity",
        "internal",
        "internal",
    ]
    assert failed[0].meta["toolhost/error"]["retryable"] is True
    assert "secret" not in failed[2].content[0].text


async def test_closing_the_response_cancels_a_modern_call(anyio_backend: str) -> None:
    """PROTO-R7, DISP-R2, EXEC-R4, SDK-R4, ACC-7"""
    host = sleeper()
    async with rig() as ingress, ingress.http() as http:
        await ingress.serve(host=host, definition=SLEEP)
        asked = asyncio.create_task(ingress.modern(http, "tools/call", call_params("sleep")))
        await host.started.wait()
        asked.cancel()
        await until(lambda: host.cancelled == ["sleep"], 2)


async def test_a_posted_cancel_of_the_modern_era_cancels_nothing(anyio_backend: str) -> None:
    """PROTO-R7"""
    host = sleeper()
    async with rig() as ingress, ingress.http() as http:
        await ingress.serve(host=host, definition=SLEEP)
        asked = asyncio.create_task(ingress.modern(http, "tools/call", call_params("sleep")))
        await host.started.wait()
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
        headers = ingress.headers(mcp_protocol_version=MODERN, mcp_method="notifications/cancelled")
        answer = await http.post("/alpha/mcp", json=note, headers=headers)
        alive = await ingress.modern(http, "tools/list")
        cancelled = list(host.cancelled)
        asked.cancel()

    assert (answer.status_code, alive.status_code, cancelled) == (202, 200, [])


async def test_a_legacy_notification_cancels(anyio_backend: str) -> None:
    """PROTO-R14, DISP-R2, ACC-7"""
    host = sleeper()
    async with rig() as ingress, ingress.http() as http:
        await ingress.serve(host=host, definition=SLEEP)
        session = await open_session(ingress, http)
        call = {"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": call_params("sleep")}
        asked = asyncio.create_task(http.post("/alpha/mcp", json=call, headers=session))
        await host.started.wait()
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 9}}
        await http.post("/alpha/mcp", json=note, headers=session)
        await until(lambda: host.cancelled == ["sleep"], 2)
        answer = await asked

    assert "-32800" in answer.text


async def test_a_legacy_client_that_stays_away_loses_its_call_after_the_grace(anyio_backend: str) -> None:
    """PROTO-R14, EXEC-R4"""
    host = sleeper()
    async with rig(orphan_grace=0.3) as ingress, ingress.http() as http:
        await ingress.serve(host=host, definition=SLEEP)
        session = await open_session(ingress, http)
        call = {"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": call_params("sleep")}
        asked = asyncio.create_task(http.post("/alpha/mcp", json=call, headers=session))
        await host.started.wait()
        left = asyncio.get_running_loop().time()
        asked.cancel()
        await until(lambda: host.cancelled == ["sleep"], 3)
        took = asyncio.get_running_loop().time() - left

    assert took >= 0.25


@ERAS
async def test_a_host_that_dies_in_a_call_is_told_in_words(mode: str) -> None:
    """DISP-R3, LIFE-R4, PROTO-R8"""
    host = sleeper()
    async with rig() as ingress:
        await ingress.serve(host=host, definition=SLEEP)
        async with ingress.client(mode=mode) as client:
            asked = asyncio.create_task(client.call_tool("sleep", {}))
            await host.started.wait()
            await ingress.kill()
            result = await asked

    assert result.is_error
    assert result.meta["toolhost/error"]["code"] == "tool_server_unavailable"
    assert result.meta["toolhost/error"]["retryable"] is True
    assert "may have run" in result.content[0].text


@ERAS
async def test_a_call_is_held_through_a_restart(mode: str) -> None:
    """DISP-R3, CLIENT-R6, SDK-R2"""
    async with rig() as ingress:
        await ingress.serve()
        async with ingress.client(mode=mode) as client:
            await client.call_tool("echo", {"text": "before"})
            await ingress.kill()
            ingress.registry.move("alpha", "restarting")
            await ingress.settle()
            asked = asyncio.create_task(client.call_tool("echo", {"text": "held"}))
            listed = await client.list_tools()
            assert not asked.done()
            ingress.registry.move("alpha", "ready", address=await ingress.listen("alpha", Host()))
            result = await asked

    assert [t.name for t in listed.tools] == ["echo"]
    assert result.content[0].text == "held"


async def test_a_read_only_function_is_made_again_when_its_host_died(anyio_backend: str) -> None:
    """DISP-R3"""
    host = sleeper()
    definition = ServerDefinition(tools=[tool("sleep", read_only=True)])
    second = Host()
    second.functions["sleep"] = said("the second host")
    async with rig() as ingress:
        await ingress.serve(host=host, definition=definition)
        async with ingress.client() as client:
            asked = asyncio.create_task(client.call_tool("sleep", {}))
            await host.started.wait()
            await ingress.kill()
            ingress.registry.move("alpha", "restarting")
            ingress.registry.move("alpha", "ready", address=await ingress.listen("alpha", second))
            result = await asked

    assert result.content[0].text == "the second host"


async def test_a_server_that_stays_away_or_failed_is_told_in_words(anyio_backend: str) -> None:
    """DISP-R3"""
    async with rig() as ingress:
        await ingress.serve()
        async with ingress.client() as client:
            ingress.registry.move("alpha", "restarting")
            route = ingress.registry.get("alpha").model_copy(update={"hold": 0.1})
            ingress.registry._publish(route)
            await ingress.settle()
            away = await client.call_tool("echo", {"text": "x"})
            ingress.registry.move("alpha", "failed")
            await ingress.settle()
            failed = await client.call_tool("echo", {"text": "x"})

    assert "is restarting and did not answer within 0.1 s" in away.content[0].text
    assert "failed and is not started again" in failed.content[0].text
    assert away.is_error and failed.is_error


@ERAS
async def test_silence_is_bridged_by_growing_progress(mode: str) -> None:
    """BEAT-R1, EXEC-R5, EXEC-A4"""
    seen: list[tuple[float, str | None]] = []
    go = asyncio.Event()

    async def slow(call: IncomingCall, arguments: dict[str, Any]) -> dict[str, Any]:
        await call.emit("progress", {"progress": 5.0, "total": 10.0, "message": "half"})
        await go.wait()
        await call.emit("progress", {"progress": 5.0, "total": 10.0, "message": "still half"})
        return text("done")

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, message))
        if len(seen) == 3:
            go.set()

    host = Host()
    host.functions["slow"] = slow
    async with rig(heartbeat=0.05) as ingress:
        await ingress.serve(host=host, definition=ServerDefinition(tools=[tool("slow")]))
        async with ingress.client(mode=mode) as client:
            result = await client.call_tool("slow", {}, progress_callback=on_progress)
            await until(lambda: bool(seen) and seen[-1][1] == "still half")

    assert result.content[0].text == "done"
    assert seen[0] == (5.0, "half")
    assert {message for _, message in seen[1:-1]} == {"still running"}
    assert seen[-1][1] == "still half"
    values = [value for value, _ in seen]
    assert values == sorted(set(values))
    assert values[-1] < 5.001


async def test_a_quick_call_with_a_token_is_one_json_object(anyio_backend: str) -> None:
    """BEAT-R3, NET-R5"""
    async with rig() as ingress, ingress.http() as http:
        await ingress.serve()
        answer = await ingress.modern(
            http, "tools/call", call_params("echo", text="x"), meta={"progressToken": "t"}
        )

    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["result"]["content"] == [{"type": "text", "text": "x"}]


async def test_without_a_progress_token_silence_is_bridged_by_comments_only(anyio_backend: str) -> None:
    """BEAT-R2, PROTO-R6"""
    go = asyncio.Event()
    host = Host()

    async def wait(call: IncomingCall, arguments: dict[str, Any]) -> dict[str, Any]:
        await go.wait()
        return text("done")

    host.functions["sleep"] = wait
    async with rig(heartbeat=0.03) as ingress, ingress.http() as http:
        await ingress.serve(host=host, definition=SLEEP)
        sent, body = modern_request("tools/call", call_params("sleep"))
        lines = []
        async with http.stream(
            "POST", "/alpha/mcp", json=body, headers={**ingress.headers(), **sent}
        ) as answer:
            async for line in answer.aiter_lines():
                lines.append(line)
                if lines.count(": ping") == 3:
                    go.set()

    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["x-accel-buffering"] == "no"
    assert {line for line in lines if line and not line.startswith("data: ")} == {": ping", "event: message"}
    assert [json.loads(line[6:])["id"] for line in lines if line.startswith("data: ")] == [1]


async def test_meta_capabilities_and_principal_reach_the_host(anyio_backend: str) -> None:
    """DISP-R1, PROTO-R12"""
    async with rig() as ingress, ingress.http() as http:
        host = await ingress.serve()
        await ingress.modern(
            http,
            "tools/call",
            call_params("echo", text="x"),
            capabilities={"elicitation": {}, "roots": {}},
            meta={"claudecode/toolUseId": "u1", "traceparent": "00-a-b-01", "progressToken": 3},
        )
        token_id = ingress.tokens.list()[0].id

    (call,) = host.seen
    assert call.payload["capabilities"] == ["elicitation", "roots"]
    assert call.payload["meta"] == {"claudecode/toolUseId": "u1", "traceparent": "00-a-b-01"}
    assert call.header.meta == {"principal": token_id, "traceparent": "00-a-b-01"}
    assert ingress.token not in repr(call.header) + repr(call.payload)


async def test_equal_request_ids_of_many_clients_never_mix(anyio_backend: str) -> None:
    """MCP-3, EXEC-A1"""
    async with rig() as ingress, ingress.http() as http:
        await ingress.serve()
        sessions = [await open_session(ingress, http) for _ in range(10)]

        async def modern(marker: str) -> bool:
            answer = await ingress.modern(http, "tools/call", call_params("echo", text=marker))
            return answer.json()["result"]["content"][0]["text"] == marker

        async def legacy(marker: str, session: dict[str, str]) -> bool:
            call = {
                "jsonrpc": "2.0",
                "id": 1,
                "method": "tools/call",
                "params": call_params("echo", text=marker),
            }
            answer = await http.post("/alpha/mcp", json=call, headers=session)
            return f'"text":"{marker}"' in answer.text

        found = await asyncio.gather(
            *(modern(f"m{i}") for i in range(50)),
            *(legacy(f"l{i}", sessions[i % 10]) for i in range(10)),
        )

    assert all(found)


async def test_resources_prompts_and_completions_are_served(anyio_backend: str) -> None:
    """PROTO-R15, PROTO-R5"""
    host = Host()

    async def read(call: IncomingCall, payload: dict[str, Any]) -> Any:
        return {"contents": [{"uri": payload["uri"], "mime_type": "text/plain", "text": "body"}]}

    async def prompt(call: IncomingCall, payload: dict[str, Any]) -> Any:
        message = {"role": "user", "content": {"type": "text", "text": payload["arguments"]["who"]}}
        return {"description": "d", "messages": [message]}

    async def complete(call: IncomingCall, payload: dict[str, Any]) -> Any:
        return {"values": [payload["argument"]["value"] + "!"], "total": 1, "has_more": False}

    host.methods.update({"resources/read": read, "prompts/get": prompt, "completion/complete": complete})
    definition = ServerDefinition.model_validate(
        {
            "resources": [
                {"uri": "test://a", "name": "a"},
                {"uri": "test://t/{id}", "name": "t", "template": True},
            ],
            "prompts": [{"name": "p", "arguments": [{"name": "who", "required": True}]}],
            "completions": True,
        }
    )
    async with rig() as ingress:
        await ingress.serve(host=host, definition=definition)
        for mode in (MODERN, "legacy"):
            async with ingress.client(mode=mode) as client:
                assert [r.uri for r in (await client.list_resources()).resources] == ["test://a"]
                templates = (await client.list_resource_templates()).resource_templates
                assert [t.uri_template for t in templates] == ["test://t/{id}"]
                assert (await client.read_resource("test://a")).contents[0].text == "body"
                assert (await client.get_prompt("p", {"who": "Ada"})).messages[0].content.text == "Ada"
                ref = {"type": "ref/prompt", "name": "p"}
                from mcp_types import PromptReference

                done = await client.complete(PromptReference(**ref), {"name": "who", "value": "A"})
                assert done.completion.values == ["A!"]


async def test_an_unknown_resource_is_a_protocol_error(anyio_backend: str) -> None:
    """PROTO-R5"""
    definition = ServerDefinition.model_validate({"resources": [{"uri": "test://a", "name": "a"}]})
    async with rig() as ingress, ingress.http() as http:
        await ingress.serve(definition=definition)
        answer = await ingress.modern(http, "resources/read", {"uri": "test://none"})

    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "code": -32602,
        "message": "no resource 'test://none'",
        "data": {"uri": "test://none"},
    }


async def test_annotated_arguments_are_checked_against_their_headers(anyio_backend: str) -> None:
    """PROTO-R3, SDK-R7"""
    schema = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}
    host = Host()
    host.functions["where"] = said("here")
    async with rig() as ingress, ingress.http() as http:
        await ingress.serve(host=host, definition=ServerDefinition(tools=[tool("where", schema)]))
        params = call_params("where", region="north")
        same = await ingress.modern(http, "tools/call", params, headers={"mcp-param-region": "north"})
        other = await ingress.modern(http, "tools/call", params, headers={"mcp-param-region": "south"})

    assert same.status_code == 200
    assert (other.status_code, other.json()["error"]["code"]) == (400, -32020)


SLEEP = ServerDefinition(tools=[tool("sleep")])


def sleeper() -> Host:
    async def sleep(call: IncomingCall, arguments: dict[str, Any]) -> Any:
        await asyncio.Event().wait()

    host = Host()
    host.functions["sleep"] = sleep
    return host


def said(words: str) -> Any:
    async def say(call: IncomingCall, arguments: dict[str, Any]) -> dict[str, Any]:
        return text(words)

    return say
