"""The outer application: what every request passes, in this order, before MCP or the control API sees it.

    form of the headers -> Host and Origin -> path -> token -> scope -> caps -> body -> the route's MCP server

Paths: `/{name}/mcp` (with or without a slash at the end), `/api/v1/...`, `/healthz`, and the protected-resource
documents that clients ask for after a 401. Everything else is a 404 that says nothing.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any, Final

from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolhost.ingress import guard
from toolhost.ingress.callers import LIFE_KEY, RESUMED_KEY
from toolhost.ingress.config import IngressConfig
from toolhost.ingress.dispatch import RequestLife
from toolhost.ingress.guard import Answer, Headers, Refusal, refusal
from toolhost.ingress.routes import RouteBook, ServedRoute
from toolhost.tokens import CONTROL_SCOPE, TokenRecord, TokenStore

logger = logging.getLogger(__name__)
API_PREFIX: Final = "/api/v1"
_NAME: Final = r"(?P<name>[A-Za-z0-9][A-Za-z0-9_-]{0,63})"
_MCP: Final = re.compile(rf"/{_NAME}/mcp/?")
_METADATA: Final = re.compile(rf"/\.well-known/oauth-protected-resource/{_NAME}/mcp")
_MCP_METHODS: Final = ("GET", "POST", "DELETE")
_STARTING_RETRY: Final = "1"


class IngressApp:
    """ASGI application of one ingress process.

    Args:
        api: serves what is below `/api/v1`; it sees authorised requests with complete bodies only.
    """

    def __init__(
        self, config: IngressConfig, *, routes: RouteBook, tokens: TokenStore, api: ASGIApp, version: str
    ) -> None:
        self._limits = config.limits
        self._hosts = guard.HostCheck(config.allowed_hosts)
        self._routes = routes
        self._tokens = tokens
        self._api = api
        self._health = {"status": "ok", "version": version}
        self._buffered = 0
        self._requests: Counter[str] = Counter()
        self._streams: Counter[str] = Counter()
        self._resumed: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            raise RuntimeError(f"an ingress serves HTTP, not {scope['type']!r}")
        try:
            headers: Headers = scope["headers"]
            guard.check_headers(headers, self._limits.headers)
            host = self._hosts.check(headers)
            await self._route(scope, receive, send, f"{scope['scheme']}://{host}")
        except Refusal as refused:
            await refused.answer(send)

    async def _route(self, scope: Scope, receive: Receive, send: Send, base: str) -> None:
        path: str = scope["path"]
        if b"%" in scope.get("raw_path", b""):
            raise _nothing_there()  # names are matched as they stand; nothing of ours needs an escape
        if (match := _MCP.fullmatch(path)) is not None:
            await self._serve_mcp(match["name"], scope, receive, send, base)
        elif path.startswith(f"{API_PREFIX}/"):
            await self._serve_api(scope, receive, send)
        elif path == "/healthz" and scope["method"] == "GET":
            await Answer(status=200, body=self._health)(send)
        elif (match := _METADATA.fullmatch(path)) is not None and scope["method"] == "GET":
            await Answer(status=200, body=_resource_document(base, match["name"]))(send)
        else:
            raise _nothing_there()

    async def _serve_api(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Headers = scope["headers"]
        record = self._authenticate(headers, None)
        if not record.allows_control():
            raise refusal(
                403,
                "permission_denied",
                f"the control API needs a token with the scope {CONTROL_SCOPE!r}",
                headers={"www-authenticate": f'Bearer error="insufficient_scope", scope="{CONTROL_SCOPE}"'},
            )
        if scope["method"] in ("POST", "PUT", "PATCH"):
            guard.check_json_type(headers)
            body = await guard.read_body(headers, receive, self._limits)
            if guard.is_deeper(body, self._limits.depth):
                raise refusal(400, "usage", f"the body is nested deeper than {self._limits.depth}")
            receive = guard.replay(body, receive)
        with self._counted(self._requests, record.id, self._limits.requests, "requests at once"):
            await self._api(scope, receive, send)

    async def _serve_mcp(self, name: str, scope: Scope, receive: Receive, send: Send, base: str) -> None:
        headers: Headers = scope["headers"]
        served = self._routes.get(name)
        principal = self._authorise(headers, name, served, base)
        if served is None:
            raise _unknown_server(name)
        if served.route.state == "starting":
            raise refusal(
                503,
                "unavailable",
                f"server {name!r} is starting",
                retryable=True,
                headers={"retry-after": _STARTING_RETRY},
            )
        if scope["method"] not in _MCP_METHODS:
            allowed = {"allow": ", ".join(_MCP_METHODS)}
            raise refusal(405, "usage", f"{name!r} is spoken to with POST", headers=allowed)
        user = None if principal is None else _user(principal)
        key = "anonymous" if principal is None else principal.id
        with self._admitted(key, scope), self._buffered_body(scope):
            body = await self._checked_body(scope, receive) if scope["method"] == "POST" else None
            if user is not None:
                scope["user"] = user
            token = auth_context_var.set(user)
            try:
                await self._hand_over(served, body, scope, receive, send)
            finally:
                auth_context_var.reset(token)

    def _authorise(
        self, headers: Headers, name: str, served: ServedRoute | None, base: str
    ) -> TokenRecord | None:
        if served is not None and served.route.anonymous:
            return None
        document = f"{base}/.well-known/oauth-protected-resource/{name}/mcp"
        record = self._authenticate(headers, document)
        if not record.allows_server(name):
            challenge = f'Bearer error="insufficient_scope", scope="{name}", resource_metadata="{document}"'
            raise refusal(
                403,
                "permission_denied",
                f"this token does not open server {name!r}",
                headers={"www-authenticate": challenge},
            )
        return record

    def _authenticate(self, headers: Headers, document: str | None) -> TokenRecord:
        token = guard.bearer(headers)
        record = None if token is None else self._tokens.verify(token)
        if record is None:
            parts = [] if token is None else ['error="invalid_token"']
            if document is not None:
                parts.append(f'resource_metadata="{document}"')
            raise refusal(
                401,
                "unauthenticated",
                "a valid token is needed, as 'Authorization: Bearer th_...'; mint one with `toolhost token mint`",
                headers={"www-authenticate": " ".join(["Bearer", ", ".join(parts)]).strip()},
            )
        return record

    async def _checked_body(self, scope: Scope, receive: Receive) -> bytes:
        headers: Headers = scope["headers"]
        guard.check_json_type(headers)
        body = await guard.read_body(headers, receive, self._limits)
        guard.check_body(body, self._limits.depth)
        if not _is_modern(scope):
            guard.check_legacy_envelope(body)
        return body

    async def _hand_over(
        self, served: ServedRoute, body: bytes | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if served.live.gone:  # while the body came
            raise _unknown_server(served.live.name)
        if body is None:
            await self._serve_legacy(served, scope, receive, send)
        elif not _is_modern(scope):
            await self._serve_legacy(served, scope, guard.replay(body, receive), send)
        elif not await served.exchange.answer(body, scope, receive, send):
            await served.asgi_app(scope, guard.replay(body, receive), send)

    async def _serve_legacy(self, served: ServedRoute, scope: Scope, receive: Receive, send: Send) -> None:
        """Through the SDK's sessions, with word of when the client is there."""
        life = RequestLife()
        scope[LIFE_KEY] = life
        session = _header(scope, b"mcp-session-id")
        resumes = scope["method"] == "GET" and _header(scope, b"last-event-id") is not None
        if session is not None:
            scope[RESUMED_KEY] = lambda: self._resumed[session] > 0
        try:
            with ExitStack() as stack:
                if resumes and session is not None:
                    limit = self._limits.streams
                    stack.enter_context(self._counted(self._resumed, session, limit, "resumed streams"))
                await served.asgi_app(scope, receive, _with_retry_after(send))
        finally:
            life.end()

    @contextmanager
    def _buffered_body(self, scope: Scope) -> Iterator[None]:
        """Room for the body, by what its length is told to be; a body of untold length may be the largest."""
        told = _header(scope, b"content-length")
        size = self._limits.body if scope["method"] == "POST" else 0
        if told is not None and told.isdigit():
            size = min(size, int(told))
        if self._buffered + size > self._limits.buffered:
            raise refusal(
                503,
                "capacity",
                f"all bodies held at once have at most {self._limits.buffered} bytes: try again in a moment",
                retryable=True,
                headers={"retry-after": "1"},
            )
        self._buffered += size
        try:
            yield
        finally:
            self._buffered -= size

    @contextmanager
    def _admitted(self, principal: str, scope: Scope) -> Iterator[None]:
        # The modern side refuses a request whose Mcp-Method differs from its body, so the header may be counted by.
        streams = scope["method"] == "GET" or _header(scope, b"mcp-method") == "subscriptions/listen"
        if streams:
            with self._counted(self._streams, principal, self._limits.streams, "open streams"):
                yield
        else:
            with self._counted(self._requests, principal, self._limits.requests, "requests at once"):
                yield

    @contextmanager
    def _counted(self, counts: Counter[str], key: str, limit: int, what: str) -> Iterator[None]:
        if counts[key] >= limit:
            raise refusal(
                429,
                "capacity",
                f"a principal has at most {limit} {what}: try again when one has ended",
                retryable=True,
                headers={"retry-after": "1"},
            )
        counts[key] += 1
        try:
            yield
        finally:
            counts[key] -= 1
            if not counts[key]:
                del counts[key]


@lru_cache(maxsize=1024)
def _user(record: TokenRecord) -> AuthenticatedUser:
    """The SDK's form of a principal. It holds the token's id, never the token."""
    return AuthenticatedUser(AccessToken(token=record.id, client_id=record.id, scopes=list(record.scopes)))


def _with_retry_after(send: Send) -> Send:
    """A full house (503) says when to come back."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 503:
            message = {**message, "headers": [*message["headers"], (b"retry-after", b"10")]}
        await send(message)

    return sending


def _resource_document(base: str, name: str) -> dict[str, Any]:
    return {
        "resource": f"{base}/{name}/mcp",
        "authorization_servers": [],
        "bearer_methods_supported": ["header"],
        "scopes_supported": [name],
    }


def _header(scope: Scope, wanted: bytes) -> str | None:
    found: bytes | None = next((value for name, value in scope["headers"] if name == wanted), None)
    return None if found is None else found.decode("latin-1")


def _is_modern(scope: Scope) -> bool:
    version = _header(scope, b"mcp-protocol-version")
    return version is not None and version not in HANDSHAKE_PROTOCOL_VERSIONS


def _unknown_server(name: str) -> Refusal:
    return refusal(404, "not_found", f"no server is named {name!r}; `toolhost list` shows those that are")


def _nothing_there() -> Refusal:
    return refusal(404, "not_found", "nothing is served at this path")
