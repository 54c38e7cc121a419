"""`ToolHost`: a host inside a Python program. `toolhost serve` is one of these with a terminal around it.

What blocks has an awaitable twin: `host.spawn(...)` and `await host.spawn.aio(...)`; for `start` and `close` that is
`async with`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from toolhost.client_config import ServerAccess, mcp_json, server_url
from toolhost.hosting.control_client import ControlClient, SpawnOptions
from toolhost.hosting.controller import Controller, Options, running_controller
from toolhost.hosting.handle import ENDPOINT_TTL, ToolHandle
from toolhost.hosting.home import Home
from toolhost.hosting.ingress_process import bind
from toolhost.hosting.orphans import end_previous_ingress
from toolhost.hosting.runtime_ray import namespace, ray_running
from toolhost.settings import Settings
from toolhost.tools.server import ToolSpec
from toolhost.wire import HostStatus, ServerStatus
from toolhost_sdk.bridge import Bridge, blocking_method
from toolhost_sdk.errors import UsageError

logger = logging.getLogger(__name__)


class ToolHost:
    """A running host: Ray, warden, tool hosts and the ingress on one port. Constructing it does nothing.

    `with ToolHost() as host: host.spawn(BashTool.bind(work_dir="."), name="bash"); host.mcp_config()`

    Args:
        home: state directory, 0700; default `$TOOLHOST_HOME`. One host a home.
        port: default `$TOOLHOST_PORT` or 7420; 0 lets the system choose.
        host: address to listen on. Anything but loopback is reachable for others: every request needs a token
            anyway.
        address: Ray cluster to join; default: a local Ray of its own, or the one this process already uses.
        num_cpus: CPUs of the local Ray.
        allowed_hosts: further names clients may use in `Host`.
        heartbeat: seconds between signs of life on a silent call.
        orphan_grace: seconds a legacy client may be gone before its call is cancelled.
    """

    def __init__(
        self,
        home: Path | str | None = None,
        *,
        port: int | None = None,
        host: str = "127.0.0.1",
        address: str | None = None,
        num_cpus: int | None = None,
        allowed_hosts: Sequence[str] = (),
        heartbeat: float = 15.0,
        orphan_grace: float = 30.0,
    ) -> None:
        settings = Settings.from_process()
        self._home = Home(Path(home).expanduser().absolute() if home is not None else settings.home)
        self._port = settings.port if port is None else port
        self._address = address or settings.ray_address
        self._num_cpus = num_cpus
        self._options = Options(
            host=host, allowed_hosts=tuple(allowed_hosts), heartbeat=heartbeat, orphan_grace=orphan_grace
        )
        self.bridge = Bridge("toolhost")
        self._pid = os.getpid()
        self._stack = ExitStack()
        self._controller: Controller | None = None
        self._client: ControlClient | None = None

    def start(self) -> Self:
        """Start everything; returns when the ingress serves.

        Raises:
            ConflictError: a host already runs in this home, or the port is in use.
            UnavailableError: no Ray, or the cluster does not answer.
            UsageError, NoSpaceError: the home cannot be used.
            StartupTimeoutError: a part did not come up.
        """
        if self._controller is not None:
            raise UsageError("this host is already started")
        self._pid = os.getpid()
        with ExitStack() as stack:
            self._home.prepare()
            stack.enter_context(self._home.locked())
            end_previous_ingress(self._home)
            listener = stack.enter_context(bind(self._options.host, self._port))
            ray_address = stack.enter_context(
                ray_running(self._home, address=self._address, num_cpus=self._num_cpus)
            )
            stack.callback(self.bridge.close)
            from toolhost.hosting.launcher_ray import RayLauncher  # Ray's environment is set by now

            running = running_controller(
                self._home,
                listener,
                RayLauncher(namespace(self._home)),
                self._options,
                ray_address=ray_address,
            )
            self._controller = self.bridge.run(_enter(running))
            stack.callback(lambda: self.bridge.run(running.__aexit__(None, None, None)))
            self._client = ControlClient(self._home)
            client = self._client
            stack.callback(lambda: self.bridge.run(client.aclose()))
            self._stack = stack.pop_all()
        return self

    def close(self) -> None:
        """End everything that runs here, within seconds. Detached servers come back with the next host.

        Idempotent. In a fork of the process that started the host it does nothing: the host is not the fork's.
        """
        if self._pid != os.getpid():
            return
        self._controller = None
        self._client = None
        self._stack.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    @property
    def home(self) -> Path:
        return self._home.root

    @property
    def url(self) -> str:
        """Where the ingress serves, such as `http://127.0.0.1:7420`."""
        return self._running().url

    @property
    def operator_token(self) -> str:
        """The token of this home's operator: every server, and the control API."""
        return self._running().tokens.operator_token()

    @blocking_method
    async def status(self) -> HostStatus:
        return await self._control().status()

    @blocking_method
    async def servers(self) -> list[ServerStatus]:
        return await self._control().servers()

    @blocking_method
    async def spawn(self, spec: ToolSpec, *, name: str, **options: Unpack[SpawnOptions]) -> ToolHandle:
        """Run a server; returns when it answers. See `toolhost.spawn`."""
        status = await self._control().spawn(spec, name=name, **options)
        return ToolHandle(status.name, self._home.root, self.url)

    @blocking_method
    async def stop(self, name: str, *, grace: float = 5.0) -> bool:
        """Stop a server. False: nothing had this name."""
        return await self._control().stop(name, grace=grace)

    @blocking_method
    async def mint_token(
        self, *, label: str = "", scopes: Sequence[str] = ("*",), ttl: float | None = None
    ) -> str:
        """A new bearer token.

        Args:
            scopes: server names, `server:function`, `*` for all servers, `control`.
            ttl: seconds it is valid; None means until it is revoked.
        """
        return await self._control().mint_token(label=label, scopes=list(scopes), ttl=ttl)

    @blocking_method
    async def serve_token(self, names: Sequence[str], *, ttl: float) -> tuple[str, float]:
        """A token for these servers that stays the same from one host of this home to the next, and when it expires.

        It is kept in clear in the home, in a file of mode 0600, so that what clients were told stays true.
        """
        token, record = self._running().tokens.serve_token(tuple(names), ttl=ttl)
        return token, record.expires_at if record.expires_at is not None else math.inf

    @blocking_method
    async def mcp_config(
        self, names: Sequence[str] | None = None, *, token: str | None = None
    ) -> dict[str, Any]:
        """The `mcpServers` document of these servers (default: all), with a token for just them, for 30 days.

        It holds the token in clear text, as clients want it: write it to files of mode 0600 only.
        """
        control = self._control()
        chosen = list(names) if names is not None else [status.name for status in await control.servers()]
        if token is None and chosen:
            token = await control.mint_token(label="mcp_config", scopes=chosen, ttl=ENDPOINT_TTL)
        return mcp_json(
            ServerAccess(name=name, url=server_url(self.url, name), token=token) for name in chosen
        )

    def wait_for_shutdown(self, interrupted: threading.Event | None = None) -> None:
        """Block until somebody asks the host to end through its control API, or *interrupted* is set."""
        controller = self._running()
        while not controller.shutdown_requested.is_set():
            if interrupted is not None and interrupted.wait(0.2):
                return
            if interrupted is None:
                self.bridge.run(controller.shutdown_requested.wait())

    def _running(self) -> Controller:
        if self._pid != os.getpid():
            raise UsageError(
                f"this host belongs to process {self._pid}, and a fork has no part in it: use a handle, or `spawn`"
            )
        if self._controller is None:
            raise UsageError("this host is not started: use `with ToolHost() as host:` or call `start()`")
        return self._controller

    def _control(self) -> ControlClient:
        self._running()
        assert self._client is not None
        return self._client


async def _enter(context: Any) -> Any:
    return await context.__aenter__()
