"""What does not get past the door: hostile, malformed and unauthorised requests."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.toolhost.ingress.ingress_rig import (
    MODERN,
    Host,
    Rig,
    call_params,
    modern_request,
    open_session,
    rig,
    tool,
    until,
)

from toolhost.ingress.config import Limits
from toolhost.wire import ServerDefinition

pytestmark = pytest.mark.anyio


async def raw(
    ingress: Rig, head: list[str], body: bytes = b"", method: str = "POST", path: str = "/alpha/mcp"
) -> Any:
    """A request as bytes; status and body of the answer."""
    port = int(ingress.url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"{method} {path} HTTP/1.1", *head, f"content-length: {len(body)}", "connection: close", "", ""]
    writer.write("\r\n".join(lines).encode("latin-1") + body)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2]


def head(ingress: Rig, *more: str, host: str = "127.0.0.1", **sent: str) -> list[str]:
    fields = {"host": host, **ingress.headers(), **{k.replace("_", "-"): v for k, v in sent.items()}}
    return [*(f"{name}: {value}" for name, value in fields.items()), *more]


async def test_a_foreign_host_or_origin_is_refused_before_anything_else(anyio_backend: str) -> None:
    """SEC-R2, SEC-A2, WEB-1, SDK-R11, PROTO-R4"""
    async with rig(allowed_hosts=("box.example", "pinned.example:8443")) as ingress:
        host = await ingress.serve()
        sent, message = modern_request("tools/call", call_params("echo", text="x"))
        body = json.dumps(message).encode()

        async def status(name: str, *more: str) -> int:
            return (
                await raw(
                    ingress, [*head(ingress, *more, host=name), *(f"{k}: {v}" for k, v in sent.items())], body
                )
            )[0]

        for name in ("127.0.0.1", "localhost:9", "[::1]:80", "BOX.example", "pinned.example:8443"):
            assert await status(name) == 200, name
        good = len(host.seen)
        for name in (
            "evil.example",
            "localhost.",
            "pinned.example",
            "0.0.0.0",
            "127.0.0.1.nip.io",
            "a@localhost",
            "",
            "localhost:99999",
        ):
            assert await status(name) == 421, name
        for origin in ("http://localhost:3000", "https://box.example"):
            assert await status("localhost", f"origin: {origin}") == 200, origin
        good += 2
        for origin in (
            "null",
            "http://evil.example",
            "http://[::1",
            "file://localhost",
            "http://localhost@evil",
            "http://localhost/x",
            "",
        ):
            assert await status("localhost", f"origin: {origin}") == 403, origin
        assert await status("evil.example", "origin: http://localhost") == 421
        assert len(host.seen) == good


async def test_without_a_valid_token_nothing_is_told(anyio_backend: str) -> None:
    """SEC-R1, SEC-A1, WEB-3"""
    async with rig() as ingress, ingress.http() as http:
        host = await ingress.serve()
        sent, body = modern_request("tools/list")
        expired = ingress.tokens.mint(scopes=["*"], ttl=0.001).token
        revoked = ingress.tokens.mint(scopes=["*"])
        ingress.tokens.revoke(revoked.id)
        await asyncio.sleep(0.005)
        base = {**ingress.headers(), **sent}
        answers = []
        for value in (
            None,
            "",
            "Bearer",
            f"Basic {ingress.token}",
            "Bearer th_wrong",
            f"Bearer {expired}",
            f"Bearer {revoked.token}",
        ):
            headers = {k: v for k, v in base.items() if k != "authorization"} | (
                {} if value is None else {"authorization": value}
            )
            for name in ("alpha", "nothing"):
                answers.append(await http.post(f"/{name}/mcp", json=body, headers=headers))
        in_url = await http.post(
            f"/alpha/mcp?token={ingress.token}",
            json=body,
            headers={**sent, "content-type": "application/json"},
        )
        document = await http.get("/.well-known/oauth-protected-resource/alpha/mcp")
        register = await http.post("/register", json={})

    assert {answer.status_code for answer in answers} | {in_url.status_code} == {401}
    assert 'resource_metadata="http://127.0.0.1:' in answers[0].headers["www-authenticate"]
    assert "invalid_token" not in answers[0].headers["www-authenticate"]
    assert 'error="invalid_token"' in answers[-1].headers["www-authenticate"]
    assert document.json()["resource"].endswith("/alpha/mcp")
    assert register.status_code == 404
    assert host.seen == []


async def test_scopes_open_servers_and_single_functions(anyio_backend: str) -> None:
    """SEC-R1, SEC-A1, MCP-4, PROTO-R11"""
    definition = ServerDefinition.model_validate(
        {
            "tools": [tool("echo").model_dump(), tool("other").model_dump()],
            "resources": [{"uri": "test://a", "name": "a"}],
        }
    )
    async with rig() as ingress, ingress.http() as http:
        host = await ingress.serve(definition=definition)
        await ingress.serve("beta")
        only_beta = {"authorization": f"Bearer {ingress.tokens.mint(scopes=['beta', 'control']).token}"}
        one = {"authorization": f"Bearer {ingress.tokens.mint(scopes=['alpha:echo']).token}"}
        refused = await ingress.modern(http, "tools/list", headers=only_beta)
        listed = await ingress.modern(http, "tools/list", headers=one)
        hidden = await ingress.modern(http, "tools/call", call_params("other"), headers=one)
        unknown = await ingress.modern(http, "tools/call", call_params("othar"), headers=one)
        resources = await ingress.modern(http, "resources/list", headers=one)
        allowed = await ingress.modern(http, "tools/call", call_params("echo", text="x"), headers=one)

    assert refused.status_code == 403
    assert 'scope="alpha"' in refused.headers["www-authenticate"]
    assert [t["name"] for t in listed.json()["result"]["tools"]] == ["echo"]
    words = [answer.json()["result"]["content"][0]["text"] for answer in (hidden, unknown)]
    assert words[0].replace("other", "othar") == words[1]
    assert resources.json()["result"]["resources"] == []
    assert allowed.json()["result"]["content"][0]["text"] == "x"
    assert len(host.seen) == 1


async def test_an_anonymous_route_is_for_tests_and_for_itself_only(anyio_backend: str) -> None:
    """SUITE-R2"""
    async with rig() as ingress, ingress.http() as http:
        await ingress.serve("everything", anonymous=True)
        await ingress.serve()
        sent, body = modern_request("tools/list")
        headers = {"accept": "application/json, text/event-stream", **sent}
        opened = await http.post("/everything/mcp", json=body, headers=headers)
        closed = await http.post("/alpha/mcp", json=body, headers=headers)
        foreign = await http.post("/everything/mcp", json=body, headers={**headers, "host": "evil.example"})

    assert [answer.status_code for answer in (opened, closed, foreign)] == [200, 401, 421]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"mcp-name": "other"}, -32020),
        ({"mcp-name": ""}, -32020),
        ({"mcp-name": "=?base64?b3RoZXI=?="}, -32020),
        ({"mcp-method": "tools/list"}, -32020),
        ({"mcp-protocol-version": "2099-01-01"}, -32020),
    ],
)
async def test_headers_that_differ_from_the_body_are_refused(change: dict[str, str], code: int) -> None:
    """PROTO-R3, PROTO-R4, MCP-2"""
    async with rig() as ingress, ingress.http() as http:
        host = await ingress.serve()
        answer = await ingress.modern(http, "tools/call", call_params("echo", text="x"), headers=change)

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert host.seen == []


async def test_a_base64_name_is_the_name_and_an_unserved_revision_is_told_what_is_served(
    anyio_backend: str,
) -> None:
    """PROTO-R3, PROTO-R1"""
    async with rig() as ingress, ingress.http() as http:
        await ingress.serve()
        same = await ingress.modern(
            http, "tools/call", call_params("echo", text="x"), headers={"mcp-name": "=?base64?ZWNobw==?="}
        )
        future = {"io.modelcontextprotocol/protocolVersion": "2099-01-01"}
        other = await ingress.modern(
            http, "tools/list", headers={"mcp-protocol-version": "2099-01-01"}, meta=future
        )
        hello = await ingress.modern(http, "initialize")

    assert same.status_code == 200
    assert (other.status_code, other.json()["error"]["code"]) == (400, -32022)
    assert other.json()["error"]["data"]["supported"] == [MODERN]
    assert hello.status_code == 404


@pytest.mark.parametrize(
    "name", ["mcp-name", "mcp-method", "mcp-protocol-version", "authorization", "content-type", "host"]
)
async def test_doubled_headers_are_refused(name: str) -> None:
    """PROTO-R3, MCP-2, WEB-6, SDK-R3"""
    async with rig() as ingress:
        host = await ingress.serve()
        sent, message = modern_request("tools/call", call_params("echo", text="x"))
        fields = head(ingress, **{k.replace("-", "_"): v for k, v in sent.items()})
        doubled = [*fields, next(line for line in fields if line.startswith(f"{name}:"))]
        status, _ = await raw(ingress, doubled, json.dumps(message).encode())

    assert status == 400
    assert host.seen == []


@pytest.mark.parametrize("era", ["modern", "legacy"])
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b"\xff\xfe{}", -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"\xed\xa0\x80"}', -32700),
        ('{"jsonrpc":"2.0","id":1,"method":"ping"}'.encode("utf-16"), -32700),
        (b"[" * 100_000, -32700),
        (b'{"a":' * 65 + b"1" + b"}" * 65, -32700),
        (b"[]", -32600),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', -32600),
        (b'{"jsonrpc":"2.0","id":{},"method":"ping"}', -32600),
        (b'{"id":1,"method":"ping"}', -32600),
        (b"7", -32600),
    ],
)
async def test_bodies_that_are_no_message_are_refused(era: str, body: bytes, code: int) -> None:
    """MCP-9, PROTO-R4"""
    async with rig() as ingress, ingress.http() as http:
        await ingress.serve()
        if era == "modern":
            headers = ingress.headers(mcp_protocol_version=MODERN, mcp_method="tools/call", mcp_name="echo")
        else:
            headers = await open_session(ingress, http)
        answer = await http.post("/alpha/mcp", content=body, headers=headers)
        alive = await ingress.modern(http, "tools/list")

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert alive.status_code == 200


async def test_lone_surrogates_and_huge_numbers_in_arguments_harm_nobody(anyio_backend: str) -> None:
    """MCP-9"""
    async with rig() as ingress, ingress.http() as http:
        await ingress.serve(definition=ServerDefinition(tools=[tool("echo")]))
        sent, message = modern_request("tools/call", call_params("echo", text="VALUE"))
        for value in ('"\\ud800"', "1" + "0" * 400, "1e999", "NaN"):
            body = json.dumps(message).replace('"VALUE"', value)
            answer = await http.post("/alpha/mcp", content=body, headers={**ingress.headers(), **sent})
            assert answer.status_code in (200, 400), (value, answer.text)
            assert "Internal" not in answer.text, (value, answer.text)
        alive = await ingress.modern(http, "tools/call", call_params("echo", text="x"))

    assert alive.json()["result"]["content"][0]["text"] == "x"


async def test_too_large_a_body_is_refused_by_its_length_and_while_it_is_read(anyio_backend: str) -> None:
    """NET-R3, NET-A5, SDK-R20"""

    async def endless() -> Any:
        for _ in range(20 << 4):
            yield b"x" * (64 << 10)

    async with rig() as ingress, ingress.http() as http:
        await ingress.serve()
        port = int(ingress.url.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            (
                "\r\n".join(
                    ["POST /alpha/mcp HTTP/1.1", *head(ingress), f"content-length: {20 << 20}", "", ""]
                )
            ).encode()
        )
        early = await reader.readline()
        writer.close()
        try:
            chunked = (
                await http.post("/alpha/mcp", content=endless(), headers=ingress.headers())
            ).status_code
        except Exception as error:  # noqa: BLE001  the server may hang up on the rest of the body
            chunked = type(error).__name__
        largest = "y" * (15 << 20)
        fits = await ingress.modern(http, "tools/call", call_params("echo", text=largest))

    assert b" 413 " in early
    assert chunked in (413, "WriteError", "RemoteProtocolError", "ReadError")
    assert fits.json()["result"]["content"][0]["text"] == largest


async def test_bodies_held_at_once_have_a_bound_of_their_own(anyio_backend: str) -> None:
    """SDK-R20, MCP-9"""

    async def wait(call: Any, arguments: Any) -> Any:
        await asyncio.Event().wait()

    host = Host()
    host.functions["sleep"] = wait
    definition = ServerDefinition(tools=[tool("echo"), tool("sleep")])
    async with rig(limits=Limits(buffered=100_000)) as ingress, ingress.http() as http:
        await ingress.serve(host=host, definition=definition)
        held = asyncio.create_task(
            ingress.modern(http, "tools/call", call_params("sleep", text="y" * 90_000))
        )
        await until(lambda: len(host.seen) == 1)
        refused = await ingress.modern(http, "tools/call", call_params("echo", text="y" * 20_000))
        small = await ingress.modern(http, "tools/call", call_params("echo", text="y"))
        held.cancel()
        await until(lambda: host.cancelled == ["sleep"])
        after = await ingress.modern(http, "tools/call", call_params("echo", text="y" * 20_000))

    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert (small.status_code, after.status_code) == (200, 200)


async def test_forms_gets_and_other_methods_have_no_effect(anyio_backend: str) -> None:
    """WEB-2, PROTO-R6"""
    async with rig() as ingress, ingress.http() as http:
        host = await ingress.serve()
        sent, message = modern_request("tools/call", call_params("echo", text="x"))
        base = {**ingress.headers(), **sent}
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
            "text/plain; a=application/json",
        ):
            answer = await http.post(
                "/alpha/mcp", content=json.dumps(message), headers={**base, "content-type": kind}
            )
            assert answer.status_code == 415, kind
        for method in ("GET", "DELETE"):
            answer = await http.request(method, "/alpha/mcp", headers=base)
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        for method in ("OPTIONS", "PUT", "HEAD", "PATCH", "TRACE"):
            answer = await http.request(method, "/alpha/mcp", headers=base)
            assert answer.status_code == 405, method
            assert not any(name.startswith("access-control") for name in answer.headers)
        narrow = await ingress.modern(http, "tools/list", headers={"accept": "text/html"})

    assert narrow.status_code == 406
    assert host.seen == []


async def test_there_is_no_websocket_and_no_page(anyio_backend: str) -> None:
    """WEB-4, NET-R4"""
    async with rig() as ingress, ingress.http() as http:
        await ingress.serve()
        upgrade = [
            "upgrade: websocket",
            "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
            "sec-websocket-version: 13",
        ]
        status, _ = await raw(ingress, [*head(ingress), *upgrade], method="GET")
        pages = [
            (await http.get(path, headers=ingress.headers())).status_code
            for path in (
                "/",
                "/docs",
                "/openapi.json",
                "/alpha",
                "/alpha/",
                "/alpha/mcp/x",
                "/alpha%2Fmcp",
                "/alpha/%6dcp",
            )
        ]
        pages.append((await raw(ingress, head(ingress), method="GET", path="/x/../alpha/mcp"))[0])
        health = await http.get("/healthz")

    assert status == 400
    assert set(pages) == {404}
    assert health.json() == {"status": "ok", "version": "0"}


async def test_a_session_of_another_principal_is_as_unknown_as_any(anyio_backend: str) -> None:
    """PROTO-R13, SDK-R12, MCP-1"""
    async with rig() as ingress, ingress.http() as http:
        await ingress.serve()
        session = await open_session(ingress, http)
        thief = ingress.headers(ingress.tokens.mint(scopes=["*"]).token)
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        mine = session["mcp-session-id"]
        stolen = await http.post("/alpha/mcp", json=ping, headers={**thief, "mcp-session-id": mine})
        ended = await http.delete("/alpha/mcp", headers={**thief, "mcp-session-id": mine})
        unknown = await http.post("/alpha/mcp", json=ping, headers={**thief, "mcp-session-id": "0" * 32})
        still = await http.post("/alpha/mcp", json=ping, headers=session)
        done = await http.delete("/alpha/mcp", headers=session)
        after = await http.post("/alpha/mcp", json=ping, headers=session)
        served = ingress.routes.get("alpha")
        await until(lambda: served is not None and served.manager.open_sessions == 0 and not served.book.live)

    assert (stolen.status_code, stolen.content) == (unknown.status_code, unknown.content)
    assert (stolen.status_code, ended.status_code) == (404, 404)
    assert (still.status_code, done.status_code, after.status_code) == (200, 200, 404)
    assert len(mine) == 32


async def test_sessions_requests_and_streams_have_caps_per_principal(anyio_backend: str) -> None:
    """SDK-R20, PROTO-R13"""
    host = Host()

    async def wait(call: Any, arguments: Any) -> Any:
        await asyncio.Event().wait()

    host.functions["sleep"] = wait
    definition = ServerDefinition(tools=[tool("echo"), tool("sleep")])
    async with rig(limits=Limits(sessions=2, requests=3, streams=1)) as ingress, ingress.http() as http:
        await ingress.serve(host=host, definition=definition)
        for _ in range(2):
            await open_session(ingress, http)
        hello = {
            "jsonrpc": "2.0",
            "id": 0,
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-11-25",
                "capabilities": {},
                "clientInfo": {"name": "t", "version": "0"},
            },
        }
        full = await http.post("/alpha/mcp", json=hello, headers=ingress.headers())
        other = ingress.tokens.mint(scopes=["*"]).token
        await open_session(ingress, http, token=other)
        sleeping = [
            asyncio.create_task(ingress.modern(http, "tools/call", call_params("sleep"))) for _ in range(3)
        ]
        await until(lambda: len(host.seen) == 3)
        busy = await ingress.modern(http, "tools/list")
        elsewhere = await ingress.modern(http, "tools/list", headers={"authorization": f"Bearer {other}"})
        for task in sleeping:
            task.cancel()
        sent, body = modern_request("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        headers = {**ingress.headers(), **sent}
        async with http.stream("POST", "/alpha/mcp", json=body, headers=headers) as stream:
            await anext(stream.aiter_lines())
            second = await http.post("/alpha/mcp", json=body, headers=headers)

    assert (full.status_code, full.headers["retry-after"]) == (503, "10")
    assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
    assert elsewhere.status_code == 200
    assert second.status_code == 429


async def test_idle_sessions_end(anyio_backend: str) -> None:
    """PROTO-R13"""
    async with rig(limits=Limits(session_idle=0.1)) as ingress, ingress.http() as http:
        await ingress.serve()
        session = await open_session(ingress, http)
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        await asyncio.sleep(0.3)  # the idle time itself
        answer = await http.post("/alpha/mcp", json=ping, headers=session)

    assert answer.status_code == 404


async def test_killed_connections_leave_the_others_in_peace(anyio_backend: str) -> None:
    """MCP-9"""
    async with rig() as ingress, ingress.http() as http:
        await ingress.serve()
        port = int(ingress.url.rsplit(":", 1)[1])
        for cut in range(0, 400, 7):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            sent, message = modern_request("tools/call", call_params("echo", text="x"))
            body = json.dumps(message)
            lines = ["POST /alpha/mcp HTTP/1.1", *head(ingress), *(f"{k}: {v}" for k, v in sent.items())]
            whole = "\r\n".join([*lines, f"content-length: {len(body)}", "", body])
            writer.write(whole.encode()[: -cut or None])
            writer.transport.abort()
            if cut % 5 == 0:
                answer = await ingress.modern(http, "tools/call", call_params("echo", text="ok"))
                assert answer.json()["result"]["content"][0]["text"] == "ok"
