"""Questions of functions: in rounds with sealed state (2026-07-28), as requests to the client (before)."""

from __future__ import annotations

import asyncio
from typing import Any

import mcp_types as types
import pytest
from tests.toolhost.ingress.ingress_rig import MODERN, Host, call_params, rig, text, tool

from toolhost.wire import ServerDefinition
from toolhost_sdk.endpoints.channel import IncomingCall
from toolhost_sdk.errors import UsageError

pytestmark = pytest.mark.anyio
NAME = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
ELICIT = {"elicitation": {"form": {}}}


class CapabilityRequired(UsageError):
    code = "capability_required"


async def ask(call: IncomingCall, key: str, kind: str, params: dict[str, Any], state: Any = None) -> Any:
    """As `ToolContext.ask` does: from the answers so far, else one round."""
    answers = call.payload.get("answers") or {}
    while key not in answers:
        await call.emit("ask", {"questions": {key: {"kind": kind, "params": params}}, "state": state})
        answers = {**answers, **(await call.receive())["answers"]}
    return answers[key]


async def greet(call: IncomingCall, arguments: dict[str, Any]) -> dict[str, Any]:
    answer = await ask(
        call, "user_name", "elicitation", {"message": "Who?", "requestedSchema": NAME}, state={"n": 1}
    )
    return text(f"{answer['action']} {answer.get('content', {}).get('name')} {call.payload.get('state')}")


async def two_rounds(call: IncomingCall, arguments: dict[str, Any]) -> dict[str, Any]:
    first = await ask(call, "one", "elicitation", {"message": "1", "requestedSchema": NAME})
    second = await ask(call, "two", "elicitation", {"message": "2", "requestedSchema": NAME})
    return text(f"{first['content']['name']} {second['content']['name']}")


async def needs_sampling(call: IncomingCall, arguments: dict[str, Any]) -> Any:
    raise CapabilityRequired(
        "this function needs a client with the capability 'sampling'", capability="sampling"
    )


async def all_kinds(call: IncomingCall, arguments: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "user", "content": {"type": "text", "text": "hi"}}
    said = await ask(call, "s", "sampling", {"messages": [message], "maxTokens": 5})
    roots = await ask(call, "r", "roots", {})
    return text(f"{said['content']['text']} {roots['roots'][0]['uri']}")


def host() -> Host:
    made = Host()
    made.functions.update(
        greet=greet, two_rounds=two_rounds, needs_sampling=needs_sampling, all_kinds=all_kinds
    )
    return made


DEFINITION = ServerDefinition(tools=[tool(n) for n in ("greet", "two_rounds", "needs_sampling", "all_kinds")])


async def fill_in(context: Any, params: Any) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content={"name": f"Ada{params.message[0]}"})


@pytest.mark.parametrize("mode", [MODERN, "legacy"])
async def test_a_function_asks_in_either_era_with_the_same_code(mode: str) -> None:
    """PROTO-R10, PROTO-R16, DISP-R4"""
    async with rig() as ingress:
        await ingress.serve(host=host(), definition=DEFINITION)
        async with ingress.client(mode=mode, elicitation_callback=fill_in) as client:
            once = await client.call_tool("greet", {})
            twice = await client.call_tool("two_rounds", {})

    # Only a function that runs again needs its state again.
    assert once.content[0].text == ("accept AdaW {'n': 1}" if mode == MODERN else "accept AdaW None")
    assert twice.content[0].text == "Ada1 Ada2"


@pytest.mark.parametrize("mode", [MODERN, "legacy"])
async def test_sampling_and_roots_are_asked_for_where_declared(mode: str) -> None:
    """PROTO-R10, PROTO-R16"""

    async def sample(context: Any, params: Any) -> types.CreateMessageResult:
        content = types.TextContent(type="text", text="sampled")
        return types.CreateMessageResult(role="assistant", content=content, model="m")

    async def roots(context: Any) -> types.ListRootsResult:
        return types.ListRootsResult(roots=[types.Root(uri="file:///r")])

    async with rig() as ingress:
        await ingress.serve(host=host(), definition=DEFINITION)
        async with ingress.client(mode=mode, sampling_callback=sample, list_roots_callback=roots) as client:
            result = await client.call_tool("all_kinds", {})

    assert result.content[0].text == "sampled file:///r"


async def test_a_round_is_sealed_bound_and_survives_only_its_own_request(anyio_backend: str) -> None:
    """PROTO-R10, SDK-R10, PROTO-R8, MCP-1"""
    async with rig() as ingress, ingress.http() as http:
        served = await ingress.serve(host=host(), definition=DEFINITION)
        await ingress.serve("beta", host(), DEFINITION)
        first = (await ingress.modern(http, "tools/call", call_params("greet"), capabilities=ELICIT)).json()[
            "result"
        ]
        state = first["requestState"]
        answers = {
            "user_name": {"action": "accept", "content": {"name": "Ada"}},
            "extra": {"action": "cancel"},
        }

        async def retry(state: str, *, function: str = "greet", **more: Any) -> Any:
            params = {**call_params(function), "inputResponses": answers, "requestState": state}
            return await ingress.modern(http, "tools/call", params, capabilities=ELICIT, **more)

        good = await retry(state)
        tampered = await retry(state[:-2] + ("AA" if state[-2:] != "AA" else "BB"))
        elsewhere = await retry(state, name="beta")
        other_function = await retry(state, function="two_rounds")
        foreign = ingress.tokens.mint(scopes=["*"]).token
        stolen = await retry(state, headers={"authorization": f"Bearer {foreign}"})

    assert first["resultType"] == "input_required"
    assert first["inputRequests"]["user_name"]["method"] == "elicitation/create"
    assert first["inputRequests"]["user_name"]["params"]["message"] == "Who?"
    assert "Ada" not in state and "n" not in first
    assert good.json()["result"]["content"][0]["text"] == "accept Ada {'n': 1}"
    assert set(served.seen[1].payload["answers"]) == {"user_name"}
    for refused in (tampered, elsewhere, other_function, stolen):
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, -32602)


async def test_a_missing_or_misshaped_answer_is_asked_again(anyio_backend: str) -> None:
    """PROTO-R10"""
    async with rig() as ingress, ingress.http() as http:
        await ingress.serve(host=host(), definition=DEFINITION)
        first = (await ingress.modern(http, "tools/call", call_params("greet"), capabilities=ELICIT)).json()[
            "result"
        ]
        again = []
        for answers in ({}, {"other": {"action": "accept"}}, {"user_name": {"roots": []}}):
            params = {
                **call_params("greet"),
                "inputResponses": answers,
                "requestState": first["requestState"],
            }
            again.append(
                (await ingress.modern(http, "tools/call", params, capabilities=ELICIT)).json()["result"]
            )

    assert all(result["resultType"] == "input_required" for result in again)
    assert all(set(result["inputRequests"]) == {"user_name"} for result in again)


async def test_a_client_that_cannot_be_asked_is_refused_with_what_it_lacks(anyio_backend: str) -> None:
    """PROTO-R10, DISP-R4"""
    async with rig() as ingress, ingress.http() as http:
        await ingress.serve(host=host(), definition=DEFINITION)
        told = await ingress.modern(http, "tools/call", call_params("needs_sampling"))
        asked = await ingress.modern(http, "tools/call", call_params("greet"))
        async with ingress.client(mode="legacy") as client:
            legacy = [await client.call_tool(name, {}) for name in ("needs_sampling", "greet")]

    assert told.status_code == asked.status_code == 400
    assert told.json()["error"]["code"] == asked.json()["error"]["code"] == -32021
    assert told.json()["error"]["data"] == {"requiredCapabilities": {"sampling": {}}}
    assert asked.json()["error"]["data"] == {"requiredCapabilities": {"elicitation": {}}}
    assert all(result.is_error for result in legacy)
    assert "capability 'sampling'" in legacy[0].content[0].text
    assert "capability 'elicitation'" in legacy[1].content[0].text


async def test_the_host_call_ends_with_its_round(anyio_backend: str) -> None:
    """DISP-R2"""
    async with rig() as ingress, ingress.http() as http:
        served = await ingress.serve(host=host(), definition=DEFINITION)
        await ingress.modern(http, "tools/call", call_params("greet"), capabilities=ELICIT)

        assert served.cancelled == ["greet"]


async def test_a_prompt_may_ask_too(anyio_backend: str) -> None:
    """PROTO-R10"""

    async def prompt(call: IncomingCall, payload: dict[str, Any]) -> Any:
        answer = await ask(call, "k", "elicitation", {"message": "?", "requestedSchema": NAME})
        words = {"type": "text", "text": answer["content"]["name"]}
        return {"description": None, "messages": [{"role": "user", "content": words}]}

    made = host()
    made.methods["prompts/get"] = prompt
    definition = ServerDefinition.model_validate({"prompts": [{"name": "p"}]})
    async with rig() as ingress:
        await ingress.serve(host=made, definition=definition)
        async with ingress.client(mode=MODERN, elicitation_callback=fill_in) as client:
            found = await client.get_prompt("p")

    assert found.messages[0].content.text == "Ada?"


async def test_log_messages_need_an_opt_in_or_pass_the_session_level(anyio_backend: str) -> None:
    """PROTO-R12"""

    async def noisy(call: IncomingCall, arguments: dict[str, Any]) -> dict[str, Any]:
        for level in ("debug", "info", "error"):
            await call.emit("log", {"level": level, "data": level, "logger": None})
        return text("done")

    made = Host()
    made.functions["noisy"] = noisy
    heard: list[str] = []

    async def listen(params: Any) -> None:
        heard.append(params.level)

    async with rig() as ingress, ingress.http() as http:
        await ingress.serve(host=made, definition=ServerDefinition(tools=[tool("noisy")], logging=True))
        silent = await ingress.modern(http, "tools/call", call_params("noisy"))
        opted = await ingress.modern(
            http, "tools/call", call_params("noisy"), meta={"io.modelcontextprotocol/logLevel": "info"}
        )
        async with ingress.client(mode="legacy", logging_callback=listen) as client:
            await client.set_logging_level("error")
            await client.call_tool("noisy", {})

    assert silent.headers["content-type"] == "application/json"
    assert opted.text.count("notifications/message") == 2
    assert heard == ["error"]


async def test_a_dropped_stream_of_a_resumable_server_is_resumed_by_its_own_session_only(
    anyio_backend: str,
) -> None:
    """PROTO-R16"""
    from tests.toolhost.ingress.ingress_rig import open_session

    go = asyncio.Event()

    async def polled(call: IncomingCall, arguments: dict[str, Any]) -> dict[str, Any]:
        await call.emit("detach")
        await go.wait()
        return text("after")

    made = Host()
    made.functions["polled"] = polled
    definition = ServerDefinition(tools=[tool("polled")], resumable=True, retry_interval_ms=50)
    async with rig() as ingress, ingress.http() as http:
        await ingress.serve(host=made, definition=definition)
        mine, other = await open_session(ingress, http), await open_session(ingress, http)
        call = {"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": call_params("polled")}
        dropped = await http.post("/alpha/mcp", json=call, headers=mine)
        last = (
            next(line for line in dropped.text.splitlines() if line.startswith("id:")).split(":")[1].strip()
        )
        go.set()
        foreign = asyncio.create_task(http.get("/alpha/mcp", headers={**other, "last-event-id": last}))
        found = ""
        async with http.stream("GET", "/alpha/mcp", headers={**mine, "last-event-id": last}) as stream:
            async with asyncio.timeout(5):
                async for line in stream.aiter_lines():
                    found += line
                    if '"id":3' in line:
                        break
        stolen = await foreign

    assert "retry: 50" in dropped.text and '"id":3' not in dropped.text
    assert '"text":"after"' in found
    assert "after" not in stolen.text
