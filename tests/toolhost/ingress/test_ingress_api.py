"""The control API."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from tests.toolhost.ingress.ingress_rig import Host, Rig, rig, text, tool, until

from toolhost.wire import ServerDefinition
from toolhost_sdk.endpoints.channel import IncomingCall
from toolhost_sdk.errors import CapacityError, ConflictError, PlacementError

pytestmark = pytest.mark.anyio


def operator(ingress: Rig) -> httpx2.AsyncClient:
    token = ingress.tokens.mint(scopes=["control"]).token
    return ingress.http(headers={"authorization": f"Bearer {token}"})


async def test_it_needs_the_control_scope(anyio_backend: str) -> None:
    """SEC-R1, NET-R4"""
    async with rig() as ingress, ingress.http() as http:
        none = await http.get("/api/v1/servers")
        servers_only = await http.get("/api/v1/servers", headers=ingress.headers())
        pages = [
            (await http.get(f"/api/v1/{p}", headers=ingress.headers())).status_code
            for p in ("docs", "openapi.json")
        ]

    assert (none.status_code, servers_only.status_code, pages) == (401, 403, [403, 403])
    assert none.json()["error"].keys() == {"code", "message", "retryable", "details"}
    assert 'scope="control"' in servers_only.headers["www-authenticate"]


async def test_it_forwards_to_the_controller(anyio_backend: str) -> None:
    """LIFE-R5"""
    async with rig() as ingress, operator(ingress) as http:
        await ingress.serve()
        ingress.control_answers = {
            "servers.list": [{"name": "alpha", "running_calls": 0}],
            "servers.spawn": {"name": "b", "state": "ready"},
            "servers.stop": {"name": "b", "stopped": True},
            "servers.drain": {"name": "b", "drained": True},
            "servers.log": {"text": "line"},
            "host.status": {"pid": 1, "servers": []},
        }
        got = [
            await http.get("/api/v1/servers"),
            await http.post(
                "/api/v1/servers", json={"name": "b", "kind": "bash", "arguments": {"x": 1}, "expose": ["r"]}
            ),
            await http.post("/api/v1/servers/b/drain", json={"timeout": 3}),
            await http.delete("/api/v1/servers/b?grace=2"),
            await http.get("/api/v1/servers/b/log?tail=7"),
            await http.get("/api/v1/status"),
            await http.post("/api/v1/shutdown", json={}),
        ]

    assert [answer.status_code for answer in got] == [200] * 7
    asked = dict(ingress.control_calls)
    assert asked["servers.spawn"]["spec"] == b"spec" and asked["servers.spawn"]["expose"] == ["r"]
    assert asked["servers.drain"] == {"name": "b", "timeout": 3}
    assert asked["servers.stop"] == {"name": "b", "grace": 2}
    assert asked["servers.log"] == {"name": "b", "tail": 7}
    assert "host.shutdown" in asked
    assert got[4].json() == {"text": "line"}


async def test_a_spawn_names_a_kind_and_never_carries_code(anyio_backend: str) -> None:
    """MCP-6"""
    async with rig() as ingress, operator(ingress) as http:
        refused = [
            await http.post("/api/v1/servers", json={"name": "b", "kind": "bash", **extra})
            for extra in ({"spec": "gASV"}, {"command": "sh"}, {"placement": {}}, {"anonymous": True})
        ]

    assert {answer.status_code for answer in refused} == {400}
    assert refused[0].json()["error"]["code"] == "usage"
    assert "servers.spawn" not in dict(ingress.control_calls)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConflictError("taken"), 409),
        (CapacityError("full"), 503),
        (PlacementError("none"), 409),
        (RuntimeError("x"), 500),
    ],
)
async def test_failures_are_one_envelope(error: Exception, status: int) -> None:
    """SEC-R5"""
    async with rig() as ingress, operator(ingress) as http:
        ingress.control_answers = {"servers.spawn": error}
        answer = await http.post("/api/v1/servers", json={"name": "b", "kind": "bash"})
        missing = await http.get("/api/v1/nothing")
        wrong = await http.put("/api/v1/servers", json={})

    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"code", "message", "retryable", "details"}
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert wrong.status_code == 405


async def test_tokens_are_minted_listed_and_revoked(anyio_backend: str) -> None:
    """SEC-R1"""
    async with rig() as ingress, operator(ingress) as http:
        await ingress.serve()
        minted = (
            await http.post("/api/v1/tokens", json={"label": "l", "scopes": ["alpha"], "ttl": 60})
        ).json()
        use = {"authorization": f"Bearer {minted['token']}"}
        works = await ingress.modern(http, "tools/list", headers=use)
        listed = (await http.get("/api/v1/tokens")).text
        gone = await http.delete(f"/api/v1/tokens/{minted['id']}")
        refused = await ingress.modern(http, "tools/list", headers=use)
        again = await http.delete(f"/api/v1/tokens/{minted['id']}")
        bad = await http.post("/api/v1/tokens", json={"scopes": []})

    assert (works.status_code, gone.status_code, refused.status_code, again.status_code) == (
        200,
        200,
        401,
        404,
    )
    assert minted["id"] in listed and minted["token"] not in listed
    assert bad.status_code == 400


async def test_a_call_returns_the_whole_outcome_and_ends_with_its_client(anyio_backend: str) -> None:
    """DISP-R1, DISP-R2"""

    async def rich(call: IncomingCall, arguments: dict[str, Any]) -> dict[str, Any]:
        return text("words", structured={"n": 1}, is_error=True)

    async def sleep(call: IncomingCall, arguments: dict[str, Any]) -> Any:
        await asyncio.Event().wait()

    host = Host()
    host.functions.update(rich=rich, sleep=sleep)
    definition = ServerDefinition(tools=[tool("rich"), tool("sleep")])
    async with rig() as ingress, operator(ingress) as http:
        await ingress.serve(host=host, definition=definition)
        ingress.control_answers = {"servers.list": [{"name": "alpha", "running_calls": 0}]}
        outcome = (await http.post("/api/v1/servers/alpha/call", json={"tool": "rich"})).json()
        unknown = await http.post("/api/v1/servers/alpha/call", json={"tool": "rick"})
        nobody = await http.post("/api/v1/servers/beta/call", json={"tool": "rich"})
        asked = asyncio.create_task(http.post("/api/v1/servers/alpha/call", json={"tool": "sleep"}))
        await until(lambda: len(host.seen) == 2)
        running = (await http.get("/api/v1/servers")).json()[0]["running_calls"]
        asked.cancel()
        await until(lambda: host.cancelled == ["sleep"], 3)

    assert outcome == {
        "content": [{"type": "text", "text": "words"}],
        "structured": {"n": 1},
        "is_error": True,
    }
    assert (unknown.status_code, nobody.status_code, running) == (404, 404, 1)
    assert "did you mean 'rich'" in unknown.json()["error"]["message"]
