"""The controller: puts warden, tool hosts, route table and ingress together, and keeps them so.

It runs inside the process that drives Ray (`toolhost serve`, or a program that embeds `ToolHost`), in a loop of its
own. Nothing of a call passes through it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version

from toolhost.hosting.control import ControlService
from toolhost.hosting.home import Home, HostFile
from toolhost.hosting.ingress_process import IngressProcess, not_serving
from toolhost.hosting.launcher import Launcher
from toolhost.hosting.routes import RouteRegistry
from toolhost.hosting.service import HostConfig
from toolhost.hosting.specs import SpecStore
from toolhost.hosting.supervisor import Supervisor
from toolhost.hosting.tokens import TokenService
from toolhost.hosting.warden_lease import WardenLease
from toolhost.wire import HostStatus
from toolhost_sdk.endpoints.unix_server import serve_unix

logger = logging.getLogger(__name__)
_INGRESS_START = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a host is started with.

    Args:
        allowed_hosts: names a client may put into `Host` besides the address served on.
        heartbeat: seconds between progress messages of a silent call.
        orphan_grace: seconds a legacy client may be away before its call is cancelled.
    """

    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    heartbeat: float = 15.0
    orphan_grace: float = 30.0
    lease_ttl: float = 60.0


class Controller:
    """Made by `running_controller`; alive until that context is left."""

    def __init__(self, home: Home, supervisor: Supervisor, tokens: TokenService, url: str) -> None:
        self.home = home
        self.supervisor = supervisor
        self.tokens = tokens
        self.url = url
        self.shutdown_requested = asyncio.Event()


@asynccontextmanager
async def running_controller(
    home: Home, listener: socket.socket, launcher: Launcher, options: Options, *, ray_address: str | None
) -> AsyncIterator[Controller]:
    """Start everything below the controller and end it on exit.

    Raises:
        StartupTimeoutError: the warden or the ingress did not come up; the message has its log's end.
    """
    started_at = time.time()
    address, port = listener.getsockname()[:2]
    url = f"http://{f'[{address}]' if ':' in address else address}:{port}"
    async with AsyncExitStack() as stack:
        warden = WardenLease(home, ttl=options.lease_ttl)
        await stack.enter_async_context(warden)
        routes = RouteRegistry()
        supervisor = Supervisor(
            launcher=launcher,
            executor=warden.executor,
            routes=routes,
            specs=SpecStore(home),
            new_config=lambda host_id: HostConfig(
                host_id=host_id, home=str(home.root), instance=home.instance
            ),
            until_served=lambda _name: control.ingress_seen.reach(routes.revision),
            url=url,
        )
        stack.push_async_callback(supervisor.aclose)
        tokens = TokenService(home)
        stack.callback(tokens.close)
        controller = Controller(home, supervisor, tokens, url)

        async def status() -> HostStatus:
            return HostStatus(
                url=url,
                pid=os.getpid(),
                version=version("toolhost-platform"),
                home=str(home.root),
                node_id=launcher.node_id,
                ray_address=ray_address,
                started_at=started_at,
                servers=await supervisor.statuses(),
            )

        control = ControlService(
            routes=routes,
            supervisor=supervisor,
            status=status,
            tokens=tokens.dispatch,
            shutdown=controller.shutdown_requested.set,
        )
        stack.push_async_callback(control.aclose)
        await stack.enter_async_context(serve_unix(control.dispatch, home.control_socket))

        def write_host_file(ingress_pid: int) -> None:
            home.write_host_file(
                HostFile(
                    url=url,
                    pid=os.getpid(),
                    ingress_pid=ingress_pid,
                    instance=home.instance,
                    control_socket=str(home.control_socket),
                    started_at=started_at,
                )
            )

        ingress = IngressProcess(
            home,
            listener,
            _ingress_arguments(home, options, url),
            on_death=control.ingress_seen.reset,
            on_restart=write_host_file,
        )
        stack.push_async_callback(ingress.aclose)
        await ingress.start()
        try:
            async with asyncio.timeout(_INGRESS_START):
                await control.ingress_seen.reach(routes.revision)
        except TimeoutError:
            raise not_serving(home, _INGRESS_START) from None
        write_host_file(ingress.pid or 0)
        tokens.ensure_operator_token()
        await supervisor.restore()
        yield controller


def _ingress_arguments(home: Home, options: Options, url: str) -> list[str]:
    arguments = [
        "--control-socket", str(home.control_socket),
        "--home", str(home.root),
        "--url", url,
        "--heartbeat", str(options.heartbeat),
        "--orphan-grace", str(options.orphan_grace),
    ]  # fmt: skip
    for name in options.allowed_hosts:
        arguments += ["--allowed-host", name]
    return arguments


def new_host_id() -> str:
    return secrets.token_hex(4)
