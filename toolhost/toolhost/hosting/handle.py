"""Handles and the module-level verbs: `spawn`, `stop`. A handle is a name and an address; it owns nothing.

Whatever blocks has an awaitable twin: `handle.stop()` and `await handle.stop.aio()`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, Unpack

from toolhost.hosting.control_client import ControlClient, SpawnOptions
from toolhost.hosting.endpoint import ToolEndpoint
from toolhost.hosting.home import Home
from toolhost.settings import Settings
from toolhost.tools.server import ToolSpec
from toolhost.wire import ServerState, ServerStatus
from toolhost_sdk.bridge import blocking, blocking_method
from toolhost_sdk.errors import NotFoundError

ENDPOINT_TTL: Final = 30 * 86400.0  # seconds that a token in an endpoint or a client's configuration is valid


@dataclass(frozen=True, slots=True)
class ToolHandle:
    """A running server. Copying, pickling or dropping it changes nothing; any copy can stop the server.

    Args:
        name: the server's.
        home: of the host it runs in.
        host_url: of the ingress.
    """

    name: str
    home: Path
    host_url: str

    @property
    def endpoint(self) -> ToolEndpoint:
        """`new_endpoint()`. Read it once and keep it: each time has a token of its own."""
        return self.new_endpoint()

    @blocking_method
    async def new_endpoint(self, *, ttl: float = ENDPOINT_TTL) -> ToolEndpoint:
        """Where it answers, with a new token for this server alone, valid for *ttl* seconds."""
        token = await _client(self.home).mint_token(
            label=f"endpoint {self.name}", scopes=[self.name], ttl=ttl
        )
        return ToolEndpoint(self.name, self.url, {"Authorization": f"Bearer {token}"})

    @property
    def url(self) -> str:
        return f"{self.host_url}/{self.name}/mcp"

    @property
    def state(self) -> ServerState:
        """`stopped` once it is gone."""
        try:
            return self.status().state
        except NotFoundError:
            return "stopped"

    @property
    def node_id(self) -> str | None:
        return self.status().node_id

    @blocking_method
    async def status(self) -> ServerStatus:
        """Raises NotFoundError once it is gone."""
        return await _client(self.home).server(self.name)

    @blocking_method
    async def stop(self, *, grace: float = 5.0) -> bool:
        """End it with all it runs, in at most *grace* + 1 seconds. False: it was gone already."""
        return await _client(self.home).stop(self.name, grace=grace)

    @blocking_method
    async def drain(self, *, timeout: float = 30.0) -> bool:
        """Let running calls end, refuse new ones, stop. False: some were cancelled after *timeout* seconds."""
        return await _client(self.home).drain(self.name, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop.aio()


@blocking
async def spawn(spec: ToolSpec, *, name: str, **options: Unpack[SpawnOptions]) -> ToolHandle:
    """Run a server in the host of this user's home (`$TOOLHOST_HOME`); returns when it answers.

    Args:
        options: see `SpawnOptions`.

    Raises:
        UnavailableError: no host runs. ConflictError: the name is taken. PlacementError: no node offers it.
        UsageError: a bad name, option or spec. StartupTimeoutError: nothing is left behind.
    """
    home = _home()
    url = home.read_host_file().url
    await _client(home.root).spawn(spec, name=name, **options)
    return ToolHandle(name, home.root, url)


@blocking
async def stop(name: str, *, grace: float = 5.0) -> bool:
    """Stop a server by name, from any process of this user. False: nothing had this name."""
    return await _client(_home().root).stop(name, grace=grace)


def _home() -> Home:
    return Home(Settings.from_process().home)


# One connection a process and home: the leases of what this process spawned hang on it.
_clients: dict[tuple[int, Path], ControlClient] = {}


def _client(home: Path) -> ControlClient:
    key = (os.getpid(), home)  # a fork must not speak on its parent's connection
    client = _clients.get(key)
    if client is None:
        client = _clients[key] = ControlClient(Home(home))
    return client
