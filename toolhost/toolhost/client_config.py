"""What MCP clients need to be told to reach tool servers: pure text, one function per client.

A token is part of a header and never of a URL. With `token_env` the text holds a reference to an environment
variable in the client's own syntax, so that the configuration may be shared.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from toolhost_sdk.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAccess:
    """How a client reaches one server. Exactly one of *token* and *token_env* is set."""

    name: str
    url: str
    token: str | None = field(default=None, repr=False)
    token_env: str | None = None

    def __post_init__(self) -> None:
        if (self.token is None) == (self.token_env is None):
            raise UsageError(f"access to server {self.name!r} needs either a token or token_env")


def server_url(host_url: str, name: str) -> str:
    """The one URL shape: `{host}/{name}/mcp`."""
    return f"{host_url.rstrip('/')}/{name}/mcp"


def reachable_url(url: str) -> str:
    """*url* as a client on the same machine says it: an address that means "every one" becomes loopback."""
    parts = urlsplit(url)
    loopback = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(parts.hostname or "")
    if loopback is None:
        return url
    return urlunsplit(parts._replace(netloc=loopback if parts.port is None else f"{loopback}:{parts.port}"))


def claude_commands(servers: Iterable[ServerAccess]) -> list[str]:
    """One `claude mcp add` line per server. A token in it is stored by Claude Code in its own settings."""
    return [
        shlex.join(["claude", "mcp", "add", "--transport", "http", server.name, server.url, "--header"])
        + f" {_shell_header(server)}"
        for server in servers
    ]


def mcp_json(servers: Iterable[ServerAccess]) -> dict[str, Any]:
    """The `mcpServers` object of `.mcp.json`, as Claude Code and many other clients read it."""
    return {
        "mcpServers": {
            server.name: {
                "type": "http",
                "url": server.url,
                "headers": {
                    "Authorization": "Bearer " + (server.token or "${" + str(server.token_env) + "}"),
                },
            }
            for server in servers
        }
    }


def codex_toml(servers: Iterable[ServerAccess]) -> str:
    """Tables for Codex's `config.toml`. Codex takes a token from an environment variable only.

    Raises:
        UsageError: a server's access has no `token_env`.
    """
    return "\n".join(_codex_table(server) for server in servers)


def _codex_table(server: ServerAccess) -> str:
    if server.token_env is None:
        raise UsageError(f"Codex reads the token of server {server.name!r} from a variable: give token_env")
    # A JSON string is also a TOML basic string, for the characters that names and URLs may have.
    return (
        f"[mcp_servers.{server.name}]\n"
        f"url = {json.dumps(server.url)}\n"
        f"bearer_token_env_var = {json.dumps(server.token_env)}\n"
        "tool_timeout_sec = 900\n"  # Codex gives up after 60 s by itself, and a build takes longer
    )


def _shell_header(server: ServerAccess) -> str:
    if server.token is not None:
        return shlex.quote(f"Authorization: Bearer {server.token}")
    return f'"Authorization: Bearer ${{{server.token_env}}}"'
