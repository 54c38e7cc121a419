"""Requests as bytes, for tests of what no well-behaved client sends."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

MODERN = "2026-07-28"
_JSON = {"content-type": "application/json", "accept": "application/json, text/event-stream"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """One answer.

    Args:
        rest: what came after the body that the headers announce: further answers on the connection.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    rest: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> Any:
        """Of the error, in the platform's envelope or JSON-RPC's."""
        return self.json()["error"]["code"]


def exchange(url: str, data: bytes | Iterable[bytes], *, within: float = 20.0) -> bytes:
    """Everything a server says to *data* until it closes; a connection it drops in the middle is an end too."""
    with connection(url, within=within) as sock:
        said = b""
        try:
            for piece in [data] if isinstance(data, bytes) else data:
                sock.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has answered already, and reads no further
        try:
            while piece := sock.recv(65536):
                said += piece
        except ConnectionResetError:
            pass
        return said


def connection(url: str, *, within: float = 20.0) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return socket.create_connection((parts.hostname, parts.port), timeout=within)


def parsed(said: bytes) -> Raw:
    head, _, rest = said.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    assert lines[0].startswith("HTTP/1.1 "), said[:200]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    size = int(headers.get("content-length", len(rest)))
    return Raw(status=int(lines[0].split()[1]), headers=headers, body=rest[:size], rest=rest[size:])


def head(method: str, path: str, fields: Iterable[tuple[str, str]]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), "", ""]
    return "\r\n".join(lines).encode("utf-8")


def request(
    url: str,
    method: str,
    path: str,
    *,
    token: str | None = None,
    headers: Mapping[str, str | None] | None = None,
    body: bytes | None = None,
) -> Raw:
    """One request on a connection of its own. A header of None is left out."""
    fields: dict[str, str | None] = {"host": urlsplit(url).netloc, "connection": "close"}
    if token is not None:
        fields["authorization"] = f"Bearer {token}"
    if body is not None:
        fields |= {**_JSON, "content-length": str(len(body))}
    fields |= headers or {}
    sent = [(name, value) for name, value in fields.items() if value is not None]
    return parsed(exchange(url, head(method, path, sent) + (body or b"")))


def call(
    url: str,
    server: str,
    tool: str,
    arguments: Mapping[str, Any],
    *,
    token: str | None,
    headers: Mapping[str, str | None] | None = None,
) -> Raw:
    """A tool call of the newest revision, as one POST."""
    message, sent = call_message(tool, arguments)
    return request(
        url,
        "POST",
        f"/{server}/mcp",
        token=token,
        headers={**sent, **(headers or {})},
        body=json.dumps(message).encode(),
    )


def call_message(
    tool: str, arguments: Mapping[str, Any], *, id: int = 1
) -> tuple[dict[str, Any], dict[str, str]]:
    """The message of a tool call, and the headers that must agree with it."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": tool, "arguments": dict(arguments), "_meta": meta}
    message = {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}
    return message, {"mcp-protocol-version": MODERN, "mcp-method": "tools/call", "mcp-name": tool}


def text_of(answer: Raw) -> str:
    """Of a call's result."""
    return "\n".join(block["text"] for block in answer.json()["result"]["content"])
