"""Where a tool server answers, and with which headers: all that an adapter needs to hand it to an agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from typing_extensions import override

from toolhost.settings import Settings


@dataclass(frozen=True, slots=True)
class ToolEndpoint:
    """Args:
    name: the server's.
    url: of its MCP endpoint, as reachable from this node (see `resolve_tool_url`).
    headers: the bearer token; never part of a repr.
    """

    name: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        settings = Settings.from_process()
        resolved = resolve_tool_url(self.url, advertised=settings.advertise_host, relay=settings.relay_host)
        object.__setattr__(self, "url", resolved)

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return ToolEndpoint, (
            self.name,
            self.url,
            dict(self.headers),
        )  # constructed, so resolved, where it arrives

    def mcp_config(self) -> dict[str, Any]:
        """This server's entry in a client's `mcpServers`."""
        return {"type": "http", "url": self.url, "headers": dict(self.headers)}


def resolve_tool_url(url: str, *, advertised: str | None, relay: str | None) -> str:
    """*url* with its host replaced by *relay* where it is exactly *advertised*; port, path and query stay.

    Idempotent. Without both names the URL is returned as it is.
    """
    parts = urlsplit(url)
    if not advertised or not relay or parts.hostname != advertised.lower():
        return url
    host = f"[{relay}]" if ":" in relay else relay
    netloc = host if parts.port is None else f"{host}:{parts.port}"
    return urlunsplit(parts._replace(netloc=netloc))
