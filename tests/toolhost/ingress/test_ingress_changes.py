"""Routes come and go at run time, and clients are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from tests.toolhost.ingress.ingress_rig import (
    ECHO,
    MODERN,
    Host,
    Rig,
    call_params,
    modern_request,
    open_session,
    rig,
    text,
    tool,
)

from toolhost.wire import ServerDefinition
from toolhost_sdk.endpoints.channel import IncomingCall

pytestmark = pytest.mark.anyio
TWO = ServerDefinition(tools=[*ECHO.tools, tool("second")])


def regenerate(ingress: Rig, definition: ServerDefinition) -> None:
    """The server comes back with another definition."""
    route = ingress.registry.get("alpha")
    ingress.registry.move("alpha", "restarting")
    ingress.registry.move("alpha", "ready", address=route.address, definition=definition)


@asynccontextmanager
async def listening(
    ingress: Rig, http: httpx2.AsyncClient, wanted: dict[str, Any] | None = None
) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """The frames of a listen stream, the acknowledgement first."""
    sent, body = modern_request(
        "subscriptions/listen",
        {"notifications": wanted if wanted is not None else {"toolsListChanged": True}},
    )
    async with http.stream("POST", "/alpha/mcp", json=body, headers={**ingress.headers(), **sent}) as answer:

        async def frames() -> AsyncIterator[dict[str, Any]]:
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    yield json.loads(line[6:])

        yield frames()


async def test_a_listen_stream_acknowledges_then_tells_of_changes_then_ends_with_a_result(
    anyio_backend: str,
) -> None:
    """PROTO-R9, SDK-R17, DISP-R6, DISP-R5, LIFE-R5"""
    async with rig() as ingress, ingress.http() as http:
        await ingress.serve()
        async with listening(ingress, http) as frames:
            acknowledged = await anext(frames)
            regenerate(ingress, TWO)
            changed = await anext(frames)
            ingress.registry.move("alpha", "stopped")
            gone = await anext(frames)
            final = await anext(frames)
        answer = await http.post("/alpha/mcp", json={}, headers=ingress.headers())

    stamp = {"io.modelcontextprotocol/subscriptionId": 1}
    assert acknowledged["method"] == "notifications/subscriptions/acknowledged"
    assert acknowledged["params"]["notifications"] == {"toolsListChanged": True}
    assert [frame["method"] for frame in (changed, gone)] == ["notifications/tools/list_changed"] * 2
    assert all(frame["params"]["_meta"] == stamp for frame in (acknowledged, changed, gone))
    assert final["id"] == 1 and final["result"]["_meta"].items() >= stamp.items()
    assert answer.status_code == 404
    assert "'alpha'" in answer.json()["error"]["message"]


async def test_a_listen_stream_gets_only_what_it_asked_for(anyio_backend: str) -> None:
    """PROTO-R9"""
    async with rig() as ingress, ingress.http() as http:
        host = Host()
        host.functions["change"] = announcer(
            ("prompts", None), ("resources", "test://other"), ("resources", "test://w")
        )
        await ingress.serve(host=host, definition=ServerDefinition(tools=[tool("change")]))
        async with listening(ingress, http, {"resourceSubscriptions": ["test://w"]}) as frames:
            await anext(frames)
            await ingress.modern(http, "tools/call", call_params("change"))
            told = await anext(frames)

    assert (told["method"], told["params"]["uri"]) == ("notifications/resources/updated", "test://w")


async def test_legacy_sessions_hear_of_changes_on_their_get_stream(anyio_backend: str) -> None:
    """PROTO-R14, SDK-R16, SDK-R15"""
    async with rig() as ingress, ingress.http() as http:
        host = Host()
        host.functions["echo"] = announcer(("resources", "test://unwatched"), ("resources", "test://w"))
        definition = ServerDefinition.model_validate(
            {**ECHO.model_dump(), "resources": [{"uri": "test://w", "name": "w"}], "subscribable": True}
        )
        await ingress.serve(host=host, definition=definition)
        session = await open_session(ingress, http)
        watch = {"jsonrpc": "2.0", "id": 2, "method": "resources/subscribe", "params": {"uri": "test://w"}}
        await http.post("/alpha/mcp", json=watch, headers=session)
        async with http.stream("GET", "/alpha/mcp", headers=session) as stream:
            lines = stream.aiter_lines()
            await ingress.modern(http, "tools/call", call_params("echo", text="x"))
            first = await next_data(lines)
            regenerate(ingress, definition.model_copy(update={"tools": TWO.tools}))
            second = await next_data(lines)

    assert (first["method"], first["params"]["uri"]) == ("notifications/resources/updated", "test://w")
    assert second["method"] == "notifications/tools/list_changed"


async def test_the_official_client_follows_changes(anyio_backend: str) -> None:
    """PROTO-R9, DISP-R6"""
    async with rig() as ingress:
        await ingress.serve()
        async with ingress.client(mode=MODERN) as client:
            assert len((await client.list_tools()).tools) == 1
            async with client.listen(tools_list_changed=True) as events:
                regenerate(ingress, TWO)
                async with asyncio.timeout(5):
                    await anext(aiter(events))
            tools = (await client.list_tools()).tools

    assert [t.name for t in tools] == ["echo", "second"]


async def test_adding_and_removing_a_route_disturbs_no_other(anyio_backend: str) -> None:
    """NET-R1, NET-A4, SDK-R1"""
    go = asyncio.Event()

    async def slow(call: IncomingCall, arguments: dict[str, Any]) -> dict[str, Any]:
        await go.wait()
        return text("done")

    host = Host()
    host.functions["slow"] = slow
    async with rig() as ingress, ingress.http() as http:
        await ingress.serve(host=host, definition=ServerDefinition(tools=[tool("slow")]))
        session = await open_session(ingress, http)
        asked = asyncio.create_task(ingress.modern(http, "tools/call", call_params("slow")))
        async with listening(ingress, http) as frames, http.stream("GET", "/alpha/mcp", headers=session):
            await anext(frames)
            await host.started.wait()
            for name in ("beta", "gamma"):
                await ingress.serve(name)
                answer = await ingress.modern(http, "tools/list", name=name)
                assert answer.status_code == 200
                ingress.registry.move(name, "stopped")
                await ingress.settle()
                assert (await ingress.modern(http, "tools/list", name=name)).status_code == 404
            waiting = asyncio.ensure_future(anext(frames))
            go.set()
            assert (await asked).json()["result"]["content"][0]["text"] == "done"
            ping = {"jsonrpc": "2.0", "id": 5, "method": "ping"}
            assert '"id":5' in (await http.post("/alpha/mcp", json=ping, headers=session)).text
            assert not waiting.done()
            waiting.cancel()


@pytest.mark.parametrize("mode", [MODERN, "legacy"])
async def test_a_call_to_a_server_that_is_stopped_ends_in_words(mode: str) -> None:
    """LIFE-R3, DISP-R3"""

    async def sleep(call: IncomingCall, arguments: dict[str, Any]) -> Any:
        await asyncio.Event().wait()

    host = Host()
    host.functions["sleep"] = sleep
    async with rig() as ingress:
        await ingress.serve(host=host, definition=ServerDefinition(tools=[tool("sleep")]))
        async with ingress.client(mode=mode) as client:
            asked = asyncio.create_task(client.call_tool("sleep", {}))
            await host.started.wait()
            ingress.registry.move("alpha", "stopped")
            async with asyncio.timeout(5):
                result = await asked
            await ingress.serve()  # the name is free again at once

    assert result.is_error
    assert "server 'alpha' was stopped while the call ran" in result.content[0].text
    assert host.cancelled == ["sleep"]


async def test_a_legacy_session_outlives_the_host_behind_it(anyio_backend: str) -> None:
    """PROTO-R13, SDK-R2, ACC-4"""
    async with rig() as ingress:
        await ingress.serve()
        async with ingress.client(mode="legacy") as client:
            await client.call_tool("echo", {"text": "a"})
            await ingress.kill()
            ingress.registry.move("alpha", "restarting")
            ingress.registry.move(
                "alpha", "ready", address=await ingress.listen("alpha", Host()), definition=TWO
            )
            await ingress.settle()
            after = await client.call_tool("echo", {"text": "b"})
            tools = (await client.list_tools()).tools

    assert after.content[0].text == "b"
    assert len(tools) == 2


async def test_a_starting_server_answers_503_and_both_spellings_of_a_path_are_served(
    anyio_backend: str,
) -> None:
    """NET-R4, NET-A5, SDK-R22"""
    async with rig() as ingress, ingress.http() as http:
        ingress.registry.add("alpha", anonymous=False)
        await ingress.settle()
        starting = await ingress.modern(http, "tools/list")
        ingress.registry.move(
            "alpha", "ready", address=await ingress.listen("alpha", Host()), definition=ECHO
        )
        await ingress.settle()
        sent, body = modern_request("tools/list")
        plain = await http.post("/alpha/mcp", json=body, headers={**ingress.headers(), **sent})
        slash = await http.post("/alpha/mcp/", json=body, headers={**ingress.headers(), **sent})

    assert (starting.status_code, starting.headers["retry-after"]) == (503, "1")
    assert (plain.status_code, slash.status_code) == (200, 200)


async def test_a_reader_that_never_reads_loses_its_stream_at_the_bound(anyio_backend: str) -> None:
    """SDK-R17"""
    from mcp.shared.subscriptions import ResourceUpdated
    from mcp_types import SubscriptionFilter

    from toolhost.ingress.listen import ListenStream

    uris = [f"test://{i}" for i in range(300)]
    stream = ListenStream(SubscriptionFilter(resource_subscriptions=uris))
    for uri in uris:
        stream.offer(ResourceUpdated(uri=uri))
        stream.offer(ResourceUpdated(uri=uri))  # a level trigger: the second one is the first one
    got = []
    while (event := await stream.next()) is not None:
        got.append(event.uri)

    assert got == uris[:256]


def announcer(*changes: tuple[str, str | None]) -> Any:
    async def change(call: IncomingCall, arguments: dict[str, Any]) -> dict[str, Any]:
        for what, uri in changes:
            await call.emit("changed", {"what": what, "uri": uri})
        return text("changed")

    return change


async def next_data(lines: AsyncIterator[str]) -> dict[str, Any]:
    async with asyncio.timeout(5):
        async for line in lines:
            if line.startswith("data: "):
                return json.loads(line[6:])
    raise AssertionError("the stream ended")
