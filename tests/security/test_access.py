"""Who may speak to a host at all: tokens, Host and Origin, browsers, odd methods, smuggled requests."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.support import raw
from tests.support.waiting import eventually

from toolhost import ToolHost
from toolhost.tools.bash import BashTool

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def servers(host: ToolHost) -> Iterator[None]:
    for name in ("alpha", "beta"):
        host.spawn(BashTool.bind(), name=name)
    yield
    for name in ("alpha", "beta"):
        host.stop(name, grace=0.5)


class Canary:
    """A file that a command would create. Nobody may."""

    def __init__(self, place: Path) -> None:
        self.path = place / secrets.token_hex(8)
        self.arguments = {"command": f"touch {self.path}"}

    @property
    def sings(self) -> bool:
        return self.path.exists()


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    canary = Canary(tmp_path)
    yield canary
    assert not canary.sings


def touch(
    host: ToolHost,
    canary: Canary,
    token: str | None,
    server: str = "alpha",
    headers: Mapping[str, str | None] | None = None,
) -> raw.Raw:
    return raw.call(host.url, server, "run_command", canary.arguments, token=token, headers=headers)


def mint(host: ToolHost, *scopes: str, ttl: float | None = None) -> tuple[str, str]:
    """Id and token, over the control API."""
    body = json.dumps({"scopes": scopes, "ttl": ttl, "label": "test"}).encode()
    minted = raw.request(host.url, "POST", "/api/v1/tokens", token=host.operator_token, body=body).json()
    return minted["id"], minted["token"]


def test_a_valid_token_opens_what_it_names_in_the_header_alone(host: ToolHost, tmp_path: Path) -> None:
    """SEC-R1: so that every refusal below is for its own reason."""
    canary = Canary(tmp_path)
    _, token = mint(host, "alpha")

    answer = touch(host, canary, token)

    assert (answer.status, canary.sings) == (200, True)


def test_without_a_valid_token_there_is_one_answer_for_all(host: ToolHost, canary: Canary) -> None:
    """SEC-R1, SEC-A1, WEB-2: missing, malformed, forged, expired and revoked; for what exists and what does not."""
    operator = host.operator_token
    revoked_id, revoked = mint(host, "alpha")
    raw.request(host.url, "DELETE", f"/api/v1/tokens/{revoked_id}", token=operator)
    _, expired = mint(host, "alpha", ttl=0.05)
    eventually(
        lambda: raw.call(host.url, "alpha", "run_jobs", {}, token=expired).status == 401,
        what="the token's end",
    )
    wrong: dict[str, str | None] = {
        "no header": None,
        "nothing": "Bearer",
        "blanks": "Bearer    ",
        "another scheme": f"Basic {operator}",
        "no scheme": operator,
        "garbage": "Bearer th_" + secrets.token_urlsafe(32),
        "a part of one": f"Bearer {operator[:-1]}",
        "one and more": f"Bearer {operator}A",
        "two": f"Bearer {operator}, Bearer {operator}",
        "another case": f"Bearer {operator.swapcase()}",
        "very long": "Bearer th_" + "A" * 60_000,
        "no ASCII": "Bearer th_ü\u20ac",
        "a hash": f"Bearer {revoked_id}",
        "SQL": "Bearer th_' OR 1=1 --",
        "revoked": f"Bearer {revoked}",
        "expired": f"Bearer {expired}",
    }
    answers: set[Any] = set()
    for authorization in wrong.values():
        headers = {"authorization": authorization}
        for path in ("alpha", "nobody"):
            answer = touch(host, canary, None, path, headers)
            challenge = answer.headers["www-authenticate"]
            assert challenge.startswith("Bearer"), authorization
            told = f"{challenge} {answer.body.decode()}"
            assert not any(word in told for word in (authorization or "").split() if len(word) > 6), told
            answers.add((answer.status, answer.body))
        for method, path in (("GET", "/api/v1/tokens"), ("DELETE", "/api/v1/servers/alpha")):
            answer = raw.request(host.url, method, path, headers=headers)
            answers.add((answer.status, answer.body))

    (only,) = answers
    assert only[0] == 401
    assert json.loads(only[1])["error"]["code"] == "unauthenticated"


@pytest.mark.parametrize(
    "place",
    ["/alpha/mcp?token={}", "/alpha/mcp?access_token={}", "/alpha/mcp?authorization=Bearer%20{}", "cookie", "x-api-key",
     "proxy-authorization", "mcp-session-id", "body"],
)  # fmt: skip
def test_a_token_anywhere_but_in_its_header_is_none(host: ToolHost, canary: Canary, place: str) -> None:
    """SEC-R1, WEB-2: neither in URLs nor in cookies, which browsers send by themselves."""
    token = host.operator_token
    message, headers = raw.call_message("run_command", canary.arguments)
    sent: dict[str, str | None] = dict(headers)
    path = "/alpha/mcp"
    if place.startswith("/"):
        path = place.format(token)
    elif place == "body":
        message["params"]["_meta"]["authorization"] = message["token"] = f"Bearer {token}"
    else:
        sent[place] = f"token={token}" if place == "cookie" else f"Bearer {token}"

    answer = raw.request(host.url, "POST", path, headers=sent, body=json.dumps(message).encode())

    assert answer.status == 401
    assert token not in answer.body.decode() + str(answer.headers)


def test_a_token_opens_its_own_servers_and_functions_and_no_others(host: ToolHost, canary: Canary) -> None:
    """SEC-R1, SEC-A1, MCP-4, PROTO-R11: also against names that only look alike."""
    _, beta = mint(host, "beta")
    _, function = mint(host, "alpha:run_jobs")
    _, every = mint(host, "*")
    _, control = mint(host, "control")

    wrong_server = touch(host, canary, beta)
    wrong_name = [touch(host, canary, beta, name).status for name in ("bet", "betaa", "BETA", "beta-2")]
    wrong_function = touch(host, canary, function)
    right_function = raw.call(host.url, "alpha", "run_jobs", {}, token=function)
    no_control = [
        raw.request(host.url, "GET", "/api/v1/tokens", token=token).status
        for token in (beta, function, every)
    ]
    no_server = touch(host, canary, control)

    assert (wrong_server.status, wrong_server.code) == (403, "permission_denied")
    assert 'error="insufficient_scope", scope="alpha"' in wrong_server.headers["www-authenticate"]
    assert wrong_name == [403] * 4
    assert wrong_function.json()["result"]["isError"] is True
    assert right_function.json()["result"].get("isError") is not True
    assert no_control == [403] * 3
    assert no_server.status == 403


def test_a_token_for_one_function_lists_that_one(host: ToolHost) -> None:
    """SEC-R1"""
    _, token = mint(host, "alpha:run_jobs", "alpha:run_status")
    message, headers = raw.call_message("x", {})
    message["method"] = "tools/list"
    del message["params"]["name"], message["params"]["arguments"]
    listed = {**headers, "mcp-method": "tools/list", "mcp-name": None}

    answer = raw.request(
        host.url, "POST", "/alpha/mcp", token=token, headers=listed, body=json.dumps(message).encode()
    )

    assert sorted(tool["name"] for tool in answer.json()["result"]["tools"]) == ["run_jobs", "run_status"]


OWN = ["127.0.0.1", "localhost", "[::1]", "LocalHost", "127.0.0.1:1", "[::1]:65535"]
FOREIGN = [
    "evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "localhost.", "127.0.0.1.", "xlocalhost",
    "127.1", "2130706433", "0x7f000001", "017700000001", "0.0.0.0", "0", "[::]", "[::ffff:127.0.0.1]", "[::1%lo]",
    "[::1", "::1", "user@127.0.0.1", "localhost@evil.example", "127.0.0.1:", "127.0.0.1:+80", "127.0.0.1:65536",
    "127.0.0.1:80:80", "localhost/", "localhost#", "localhost, evil.example", "１２７.0.0.1", "null", "",
]  # fmt: skip


def test_only_our_own_names_may_stand_in_host(host: ToolHost, canary: Canary) -> None:
    """SEC-R2, SEC-A2, WEB-1: before the token is looked at, on every path."""
    token = host.operator_token
    own = {name: raw.request(host.url, "GET", "/healthz", headers={"host": name}).status for name in OWN}
    foreign = {name: touch(host, canary, token, headers={"host": name}).status for name in FOREIGN}
    health = raw.request(host.url, "GET", "/healthz", headers={"host": "evil.example"})
    api = raw.request(host.url, "GET", "/api/v1/tokens", token=token, headers={"host": "evil.example"})
    forwarded = touch(host, canary, token, headers={"host": "evil.example", "x-forwarded-host": "localhost"})
    none = touch(host, canary, token, headers={"host": None})

    assert own == dict.fromkeys(OWN, 200)
    assert foreign == dict.fromkeys(FOREIGN, 421)
    assert [health.status, api.status, forwarded.status] == [421, 421, 421]
    assert none.status in (400, 421)


OWN_ORIGINS = ["http://localhost", "http://127.0.0.1:5", "https://localhost:443", "http://[::1]:8"]
FOREIGN_ORIGINS = [
    "null", "", "http://evil.example", "http://127.0.0.1.evil.example", "http://user@127.0.0.1", "http://localhost.",
    "http://localhost/", "http://localhost?", "http://localhost#", "http://localhost:", "http://localhost:99999",
    "file://", "http://", "localhost", "ws://localhost", "chrome-extension://abc", "http://[::1",
    "http://[::ffff:127.0.0.1]", "http://2130706433", "http://127.1", "http://0.0.0.0", "http://localhost\\@evil.example",
    "http://localhost http://evil.example", "http://localhost, http://evil.example", "HTTP://evil.example",
]  # fmt: skip


def test_a_page_of_another_origin_gets_nothing_even_with_a_token(host: ToolHost, canary: Canary) -> None:
    """SEC-R2, SEC-A2, WEB-1: our own origins are let in to authenticate, no answer invites another page."""
    token = host.operator_token
    own = {
        origin: raw.request(host.url, "GET", "/healthz", headers={"origin": origin}) for origin in OWN_ORIGINS
    }
    foreign = {origin: touch(host, canary, token, headers={"origin": origin}) for origin in FOREIGN_ORIGINS}
    preflight = raw.request(
        host.url,
        "OPTIONS",
        "/alpha/mcp",
        headers={"origin": "http://evil.example", "access-control-request-method": "POST"},
    )

    assert {origin: answer.status for origin, answer in own.items()} == dict.fromkeys(OWN_ORIGINS, 200)
    assert {origin: answer.status for origin, answer in foreign.items()} == dict.fromkeys(
        FOREIGN_ORIGINS, 403
    )
    assert preflight.status == 403
    for answer in [*own.values(), *foreign.values(), preflight]:
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None, "", "text/json",
     "text/plain; application/json", "application/jsonx"],
)  # fmt: skip
def test_what_a_form_can_send_has_no_effect(host: ToolHost, canary: Canary, kind: str | None) -> None:
    """WEB-2: no body but JSON by its own type, with a token or without one."""
    with_token = touch(host, canary, host.operator_token, headers={"content-type": kind})
    without = touch(host, canary, None, headers={"content-type": kind})
    body = json.dumps({"name": "by-form", "kind": "bash"}).encode()
    api = raw.request(
        host.url,
        "POST",
        "/api/v1/servers",
        token=host.operator_token,
        headers={"content-type": kind},
        body=body,
    )

    assert [with_token.status, without.status, api.status] == [415, 401, 415]
    assert "by-form" not in [server.name for server in host.servers()]


METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "post"]
PATHS = {
    "/alpha/mcp": 401,
    "/alpha/mcp/": 401,
    "/nobody/mcp": 401,
    "/api/v1/servers": 401,
    "/api/v1/servers/alpha": 401,
    "/api/v1/tokens": 401,
    "/api/v1/shutdown": 401,
    "/api/v1/nothing": 401,
    "/": 404,
    "/mcp": 404,
    "/alpha": 404,
    "/alpha/mcp/more": 404,
    "//alpha/mcp": 404,
    "/x/../alpha/mcp": 404,
    "/alpha%2fmcp": 404,
    "/%61lpha/mcp": 404,
    "/api/v1": 404,
    "/docs": 404,
    "/redoc": 404,
    "/openapi.json": 404,
    "/docs/oauth2-redirect": 404,
    "/metrics": 404,
    "/.env": 404,
    "/host.json": 404,
}


@pytest.mark.parametrize("method", METHODS)
def test_no_method_on_any_path_does_anything_without_a_token(host: ToolHost, method: str) -> None:
    """SEC-R1, SEC-A1, WEB-2, NET-R4: what needs a token says so, and nothing else is there, no pages either."""
    before = [(server.name, server.state) for server in host.servers()]
    got = {path: raw.request(host.url, method, path).status for path in PATHS}
    after = [(server.name, server.state) for server in host.servers()]

    assert {path: status for path, status in got.items() if status != PATHS[path]} == {}
    assert after == before


def test_health_says_that_it_lives_and_nothing_about_whom_it_serves(host: ToolHost) -> None:
    """NET-R4, SEC-R1"""
    health = raw.request(host.url, "GET", "/healthz")

    assert (health.status, sorted(health.json())) == (200, ["status", "version"])
    assert [raw.request(host.url, method, "/healthz").status for method in ("POST", "DELETE")] == [404, 404]


@pytest.mark.parametrize("path", ["/alpha/mcp", "/healthz", "/api/v1/servers"])
@pytest.mark.parametrize("origin", [None, "http://evil.example"])
def test_a_websocket_is_refused(host: ToolHost, path: str, origin: str | None) -> None:
    """WEB-4"""
    upgrade = {
        "connection": "Upgrade, close", "upgrade": "websocket", "sec-websocket-version": "13",
        "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==", "origin": origin,
    }  # fmt: skip

    answer = raw.request(host.url, "GET", path, token=host.operator_token, headers=upgrade)

    assert answer.status in (400, 403)


def smuggled(fields: list[str], inner: bytes, body: bytes) -> bytes:
    lines = ["POST /alpha/mcp HTTP/1.1", *fields, "content-type: application/json", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body + inner


@pytest.mark.parametrize(
    "fields",
    [
        ["content-length: 5", "transfer-encoding: chunked"],
        ["transfer-encoding: chunked", "content-length: 5"],
        ["content-length: 5", "content-length: 0"],
        ["content-length: 0, 5"],
        ["content-length: +5"],
        ["content-length: -1"],
        ["content-length: 0x5"],
        ["content-length : 5"],
        ["transfer-encoding: xchunked"],
        ["transfer-encoding: chunked, identity"],
        ["transfer-encoding: identity"],
        ["transfer-encoding: chunked", "transfer-encoding: identity"],
        ["transfer-encoding : chunked"],
        ["transfer-encoding:\x0bchunked"],
        ["content-length: 0\r\n transfer-encoding: chunked"],
        ["host: evil.example"],
        ["content-length: 0\nx: y"],
    ],
)
def test_a_request_that_two_parsers_would_read_differently_is_refused(
    host: ToolHost, canary: Canary, fields: list[str]
) -> None:
    """WEB-6: one answer at most on the connection, and what hides behind the first request is never run."""
    message, headers = raw.call_message("run_command", canary.arguments)
    hidden = json.dumps(message).encode()
    own = [
        ("host", urlsplit(host.url).netloc),
        ("authorization", f"Bearer {host.operator_token}"),
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
        ("content-length", str(len(hidden))),
        ("connection", "close"),
        *headers.items(),
    ]
    inner = raw.head("POST", "/alpha/mcp", own) + hidden
    outer = [f"host: {urlsplit(host.url).netloc}", *fields]

    said = raw.exchange(host.url, smuggled(outer, inner, b"0\r\n\r\n"), within=5)

    assert said.count(b"HTTP/1.1 ") <= 2
    assert raw.parsed(said).status in (400, 401, 501)


def test_a_forwarded_address_or_user_counts_for_nothing(host: ToolHost, canary: Canary) -> None:
    """WEB-6"""
    trusted: dict[str, str | None] = {
        "x-forwarded-for": "127.0.0.1", "forwarded": "for=127.0.0.1;host=localhost", "x-real-ip": "127.0.0.1",
        "x-forwarded-user": "root", "x-original-url": "/healthz", "x-rewrite-url": "/healthz",
        "x-http-method-override": "GET",
    }  # fmt: skip

    assert touch(host, canary, None, headers=trusted).status == 401
