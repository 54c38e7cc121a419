"""Handles and the module-level verbs: `spawn`, `stop`. A handle is a name and an address; it owns nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from toolhost.hosting.control_client import ControlClient
from toolhost.hosting.endpoint import ToolEndpoint
from toolhost.hosting.home import Home
from toolhost.settings import Settings
from toolhost.tools.server import ToolSpec
from toolhost.wire import ServerState, ServerStatus
from toolhost_sdk.bridge import shared
from toolhost_sdk.errors import NotFoundError

T = TypeVar("T")


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
        """Where it answers, with a token for this server alone."""
        token = _ask(
            self.home,
            lambda client: client.mint_token(label=f"endpoint {self.name}", scopes=[self.name], ttl=None),
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

    def status(self) -> ServerStatus:
        """Raises NotFoundError once it is gone."""
        return _ask(self.home, lambda client: client.server(self.name))

    def stop(self, *, grace: float = 5.0) -> bool:
        """End it with all it runs, in at most *grace* + 1 seconds. False: it was gone already."""
        return _ask(self.home, lambda client: client.stop(self.name, grace=grace))

    def drain(self, *, timeout: float = 30.0) -> bool:
        """Let running calls end, refuse new ones, stop. False: some were cancelled after *timeout* seconds."""
        return _ask(self.home, lambda client: client.drain(self.name, timeout=timeout))

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
        await asyncio.to_thread(self.stop)


def spawn(
    spec: ToolSpec,
    *,
    name: str,
    expose: Sequence[str] | None = None,
    placement: Mapping[str, Any] | None = None,
    isolation: Literal["shared", "process"] = "shared",
    detached: bool = False,
    start_timeout: float = 30.0,
    max_restarts: int = 3,
    prefix: bool = False,
) -> ToolHandle:
    """Run a server in the host of this user's home (`$TOOLHOST_HOME`); returns when it answers.

    Args:
        expose: functions to offer; default all.
        placement: Ray's `resources`, `num_cpus`, `num_gpus`, `memory`, `scheduling_strategy`, `label_selector`.
            Servers of equal placement share a process.
        isolation: `"process"` gives the server one of its own.
        detached: outlive this process, and come back when the host is started again.
        start_timeout: seconds until it must answer.
        max_restarts: deaths within five minutes after which it is `failed`.
        prefix: name functions `{name}_{function}`, as the seed did.

    Raises:
        UnavailableError: no host runs. ConflictError: the name is taken. PlacementError: no node offers it.
        UsageError: a bad name, selection or spec. StartupTimeoutError: nothing is left behind.
    """
    home = _home()
    url = home.read_host_file().url
    _ask(
        home.root,
        lambda client: client.spawn(
            spec,
            name=name,
            expose=expose,
            placement=placement,
            isolation=isolation,
            detached=detached,
            start_timeout=start_timeout,
            max_restarts=max_restarts,
            prefix=prefix,
        ),
    )
    return ToolHandle(name, home.root, url)


def stop(name: str, *, grace: float = 5.0) -> bool:
    """Stop a server by name, from any process of this user. False: nothing had this name."""
    return _ask(_home().root, lambda client: client.stop(name, grace=grace))


def _home() -> Home:
    return Home(Settings.from_process().home)


_clients: dict[
    Path, ControlClient
] = {}  # one connection a home: leases of what this process spawned hang on it


def _ask(home: Path, verb: Callable[[ControlClient], Awaitable[T]]) -> T:
    async def ask() -> T:
        client = _clients.get(home)
        if client is None:
            client = _clients[home] = ControlClient(Home(home))
        return await verb(client)

    return shared.run(ask())
