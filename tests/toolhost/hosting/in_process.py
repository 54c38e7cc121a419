"""A supervisor over tool hosts in this process: the real service behind real sockets, without Ray."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
from typing_extensions import override

from toolhost.hosting.home import Home
from toolhost.hosting.launcher import LaunchedHost, Launcher
from toolhost.hosting.routes import RouteRegistry
from toolhost.hosting.service import HostConfig, ToolHostService
from toolhost.hosting.specs import SpecStore
from toolhost.hosting.supervisor import Supervisor
from toolhost.wire import Address
from toolhost_sdk.endpoints.unix_client import UnixChannel
from toolhost_sdk.endpoints.unix_server import serve_unix
from toolhost_sdk.node.port import Executor


class NoCommands:
    """An executor that runs nothing, as far as a supervisor looks."""

    async def jobs(self, **_: object) -> list[Any]:
        return []


class InProcessLauncher(Launcher):
    """Hosts that live until they are killed. Cleared, `may_launch` holds launches up; `launching` says so."""

    node_id = "here"

    def __init__(self, home: Home) -> None:
        self._home = home
        self.hosts: dict[str, AsyncExitStack] = {}
        self.may_launch = anyio.Event()
        self.may_launch.set()
        self.launching = anyio.Event()

    def hold(self) -> None:
        self.may_launch = anyio.Event()

    @override
    async def check(self, placement: Mapping[str, Any]) -> None: ...

    @override
    async def launch(
        self, config: HostConfig, placement: Mapping[str, Any], *, timeout: float
    ) -> LaunchedHost:
        self.launching.set()
        await self.may_launch.wait()
        executor = cast("Executor", NoCommands())
        service = ToolHostService(config, executor, self._home.state_dir)
        path = self._home.runtime_dir / f"host-{config.host_id}.sock"
        stack = self.hosts[config.host_id] = AsyncExitStack()
        await stack.enter_async_context(serve_unix(service.dispatch, path))
        return LaunchedHost(
            host_id=config.host_id,
            address=Address(node_id="here", unix=str(path)),
            pid=os.getpid(),
            channel=UnixChannel(path),
        )

    @override
    async def kill(self, host: LaunchedHost) -> None:
        await host.channel.aclose()
        await self.die(host.host_id)

    async def die(self, host_id: str) -> None:
        if (stack := self.hosts.pop(host_id, None)) is not None:
            await stack.aclose()


class Rig:
    def __init__(self, home: Home) -> None:
        self.launcher = InProcessLauncher(home)
        self.routes = RouteRegistry()
        self.specs = SpecStore(home)
        self.supervisor = Supervisor(
            launcher=self.launcher,
            executor=cast("Executor", NoCommands()),
            routes=self.routes,
            specs=self.specs,
            new_config=lambda host_id: HostConfig(
                host_id=host_id, home=str(home.root), instance=home.instance
            ),
            until_served=self._served,
            url="http://127.0.0.1:1",
        )

    async def _served(self, name: str) -> None: ...


@asynccontextmanager
async def supervising(root: Path) -> AsyncIterator[Rig]:
    home = Home(root)
    home.prepare()
    rig = Rig(home)
    try:
        yield rig
    finally:
        await rig.supervisor.aclose()
