"""What a request must pass before anything reads its meaning: Host, Origin, form, size, depth, token.

Rules of this file: pure checks and bounded reading; every refusal is an `Answer` or a `Refusal`, none depends on what a
route does. Forwarding headers are never read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
from mcp_types import HEADER_MISMATCH, INVALID_REQUEST, PARSE_ERROR
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.types import Message, Receive, Send

from toolhost.ingress.config import Limits

Headers = Sequence[tuple[bytes, bytes]]
_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
_HOST: Final = re.compile(r"(?P<name>\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9_.-]{1,255})(:(?P<port>[0-9]{1,5}))?")
# A proxy and we must never read two of these differently.
_SINGLE: Final = frozenset(
    {
        b"host",
        b"origin",
        b"authorization",
        b"content-type",
        b"content-length",
        b"mcp-session-id",
        b"last-event-id",
    }
)
_TOKENS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A small JSON response."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)

    async def __call__(self, send: Send) -> None:
        content = json.dumps(self.body, separators=(",", ":")).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(content)),
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            **self.headers,
        }
        raw = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": raw})
        await send({"type": "http.response.body", "body": content})


class Refusal(Exception):
    """A request goes no further. `answer` says why."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def refusal(
    status: int, code: str, message: str, *, retryable: bool = False, headers: Mapping[str, str] | None = None
) -> Refusal:
    """A refusal with the platform's error envelope."""
    error = {"code": code, "message": message, "retryable": retryable, "details": {}}
    return Refusal(Answer(status=status, body={"error": error}, headers=headers or {}))


def rpc_refusal(code: int, message: str) -> Refusal:
    """A refusal of a body that is no message, as JSON-RPC says it."""
    return Refusal(
        Answer(status=400, body={"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}})
    )


class HostCheck:
    """Which names may stand in `Host` and `Origin`: loopback ones and the configured ones.

    Args:
        allowed: `name` for any port, or `name:port`.
    """

    def __init__(self, allowed: Iterable[str]) -> None:
        self._names = {name.lower() for name in (*_LOOPBACK, *allowed)}

    def check(self, headers: Headers) -> str:
        """Raise `Refusal` for a foreign Host (421) or Origin (403); return the Host."""
        host = _one(headers, b"host")
        if host is None or not self._knows(host):
            raise refusal(
                421, "misdirected", "this host does not answer to the name in Host; see --allowed-host"
            )
        origin = _one(headers, b"origin")
        if origin is not None and not self._knows_origin(origin):
            raise refusal(403, "foreign_origin", "requests from this Origin are refused; see --allowed-host")
        return host

    def _knows(self, authority: str) -> bool:
        match = _HOST.fullmatch(authority)
        if match is None or int(match["port"] or 1) > 65535:
            return False
        name = match["name"].lower()
        return name in self._names or f"{name}:{match['port']}" in self._names

    def _knows_origin(self, origin: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        plain = f"{parts.scheme}://{parts.netloc}" == origin
        return plain and parts.scheme in ("http", "https") and self._knows(parts.netloc)


def check_headers(headers: Headers, limit: int) -> None:
    """Refuse too many fields (431), repeated ones that must be single, two lengths of one body, upgrades (400)."""
    if len(headers) > limit:
        raise refusal(431, "limit_exceeded", f"a request has at most {limit} header fields")
    counts = Counter(name for name, _ in headers)
    for name in _SINGLE & counts.keys():
        if counts[name] > 1:
            raise refusal(400, "usage", f"the header {name.decode()!r} stands there more than once")
    if counts[b"mcp-protocol-version"] > 1:
        first = next(value for name, value in headers if name == b"mcp-protocol-version")
        if (
            first.decode("latin-1") in HANDSHAKE_PROTOCOL_VERSIONS
        ):  # the modern side refuses it itself, with the id
            raise rpc_refusal(HEADER_MISMATCH, "mcp-protocol-version header appears more than once")
    if (
        counts[b"content-length"] and counts[b"transfer-encoding"]
    ):  # RFC 9112, 6.1: and never another request after it
        both = "Content-Length and Transfer-Encoding in one request"
        raise refusal(400, "usage", both, headers={"connection": "close"})
    if counts[b"upgrade"]:
        raise refusal(400, "usage", "nothing here upgrades: there is no WebSocket endpoint")


def bearer(headers: Headers) -> str | None:
    """The bearer token, or None without one. Anything else in `Authorization` is none."""
    value = _one(headers, b"authorization")
    scheme, _, token = (value or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def check_json_type(headers: Headers) -> None:
    """Refuse bodies that a form or a simple cross-site request could send (415)."""
    kind = (_one(headers, b"content-type") or "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise refusal(415, "usage", "Content-Type must be application/json")


async def read_body(headers: Headers, receive: Receive, limits: Limits) -> bytes:
    """The whole body, within its limits of size (413, before it is read where its length is told) and time (408).

    Raises:
        Refusal: see above; also when the client left in the middle (its status is never seen).
    """
    told = _one(headers, b"content-length")
    if told is not None and (not told.isdigit() or int(told) > limits.body):
        raise _too_large(limits.body)
    parts: list[bytes] = []
    size = 0
    with anyio.move_on_after(limits.body_seconds):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise refusal(499, "cancelled", "the client left")
            part = message.get("body", b"")
            size += len(part)
            if size > limits.body:
                raise _too_large(limits.body)
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)
    raise refusal(408, "deadline_exceeded", f"the body was not complete within {limits.body_seconds:g} s")


def _too_large(limit: int) -> Refusal:
    return refusal(
        413, "limit_exceeded", f"a request body has at most {limit} bytes", headers={"connection": "close"}
    )


def check_body(body: bytes, depth: int) -> None:
    """Refuse what is no JSON text in UTF-8, too deep, or a batch; the SDK parses what passes."""
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        raise rpc_refusal(PARSE_ERROR, "Parse error: the body is not UTF-8") from None
    if b"\0" in body:  # also every other encoding of JSON that a lenient parser would guess
        raise rpc_refusal(PARSE_ERROR, "Parse error: the body is not UTF-8 text")
    if is_deeper(body, depth):
        raise rpc_refusal(PARSE_ERROR, f"Parse error: arrays and objects are nested deeper than {depth}")
    if body.lstrip()[:1] == b"[":
        raise rpc_refusal(INVALID_REQUEST, "one message per request: there are no batches")


def check_legacy_envelope(body: bytes) -> None:
    """What the modern side of the SDK tells apart and its legacy side does not: no JSON, and no message."""
    try:
        message = json.loads(body)
    except ValueError:
        raise rpc_refusal(PARSE_ERROR, "Parse error") from None
    shaped = isinstance(message, dict) and message.get("jsonrpc") == "2.0"
    identified = shaped and _is_id(message.get("id"))
    is_call = shaped and isinstance(message.get("method"), str) and ("id" not in message or identified)
    is_answer = identified and "method" not in message and ("result" in message or "error" in message)
    if not (is_call or is_answer) or not isinstance(message.get("params", {}), dict):
        raise rpc_refusal(INVALID_REQUEST, "the body is no single JSON-RPC message")


def is_deeper(body: bytes, depth: int) -> bool:
    """Whether arrays and objects of *body* are nested deeper than *depth*."""
    if body.count(b"[") + body.count(b"{") <= depth:
        return False
    level = 0
    for match in _TOKENS.finditer(body):
        token = match.group()
        if token in (b"[", b"{"):
            level += 1
            if level > depth:
                return True
        elif token in (b"]", b"}"):
            level -= 1
    return False


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives *body* once and then what the client does."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _one(headers: Headers, wanted: bytes) -> str | None:
    return next((value.decode("latin-1") for name, value in headers if name == wanted), None)


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)
