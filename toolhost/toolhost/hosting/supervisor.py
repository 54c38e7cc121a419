"""Tool servers over their lives: spawn, supervise, restart, drain, stop. Pure asyncio; processes come from ports.

A tool host holds every server of equal placement. When one dies, its servers become `restarting` at once and the
same specs are loaded into a new host under the same names. The warden ends the commands of calls that were cut off
(they are tied to the dead host's connection); jobs with a handle live on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from toolhost.hosting.launcher import LaunchedHost, Launcher
from toolhost.hosting.routes import RouteRegistry
from toolhost.hosting.service import HostConfig
from toolhost.hosting.specs import SpecStore
from toolhost.tools.server import check_server_name
from toolhost.wire import ServerDefinition, ServerStatus, SpawnRequest
from toolhost_sdk.endpoints.channel import CallHeader
from toolhost_sdk.errors import (
    ConflictError,
    StartupTimeoutError,
    ToolhostError,
    UnavailableError,
)
from toolhost_sdk.node.port import Executor

logger = logging.getLogger(__name__)
RESTART_WINDOW = 300.0  # seconds over which `max_restarts` counts
_FIRST_BACKOFF = 0.05
_LONGEST_BACKOFF = 5.0
_COUNT_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class _Server:
    """One spawn under a name. The name may be another's later; what holds one of these never touches that one."""

    request: SpawnRequest
    host: str  # key of its tool host
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    restarts: deque[float] = field(default_factory=deque)
    total_restarts: int = 0
    error: str | None = None


@dataclass(slots=True)
class _Host:
    key: str
    placement: dict[str, Any]
    launched: LaunchedHost
    watcher: asyncio.Task[None] | None = None


class Supervisor:
    """Owns every tool host and server of one controller. Everything runs in one loop.

    Args:
        until_served: awaited with a route's name; returns when the ingress answers for it.
        url: of the ingress; a server answers at `{url}/{name}/mcp`.
    """

    def __init__(
        self,
        *,
        launcher: Launcher,
        executor: Executor,
        routes: RouteRegistry,
        specs: SpecStore,
        new_config: Callable[[str], HostConfig],
        until_served: Callable[[str], Awaitable[None]],
        url: str,
    ) -> None:
        self._launcher = launcher
        self._executor = executor
        self._routes = routes
        self._specs = specs
        self._new_config = new_config
        self._until_served = until_served
        self._url = url
        self._servers: dict[str, _Server] = {}
        self._hosts: dict[str, _Host] = {}
        self._launching: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    async def spawn(self, request: SpawnRequest) -> ServerStatus:
        """Start a server; returns when it answers through the ingress.

        Raises:
            UsageError, ConflictError, PlacementError: before anything starts.
            StartupTimeoutError: not ready within `start_timeout`; nothing is left behind.
        """
        name = check_server_name(request.name)
        if self._closing:
            raise UnavailableError("this host is shutting down and spawns nothing")
        if name in self._servers and self._routes.get(name).state == "failed":
            await self.stop(name, grace=0)
        await self._launcher.check(request.placement)
        server = self._reserve(request)
        try:
            async with asyncio.timeout(request.start_timeout):
                await self._start(name, server)
                await self._until_served(name)
            self._check_wanted(name, server)
            if request.detached:
                self._specs.save(request)
        except TimeoutError as error:
            await self._end(name, server, grace=0)
            if isinstance(error, ToolhostError):
                raise
            raise StartupTimeoutError(
                f"server {name!r} was not ready within {request.start_timeout:g} s; its log ends: {self.log(name, 20)}"
            ) from None
        except BaseException:
            await self._end(name, server, grace=0)
            raise
        return self.status(name)

    async def stop(self, name: str, *, grace: float = 5.0) -> bool:
        """Route first, then calls and jobs with their process trees, then the slot. False: nothing had this name."""
        server = self._servers.get(name)
        return server is not None and await self._end(name, server, grace=grace)

    def ended(self, name: str) -> asyncio.Event:
        """Set when the server that has *name* now is stopped, whoever has the name then."""
        return self._servers[name].ended

    async def drain(self, name: str, *, timeout: float) -> bool:
        """Refuse new calls, let running ones end, then stop. False: some had to be cancelled."""
        route = self._routes.get(name)
        if route.state == "ready":
            self._routes.move(name, "draining")
        server = self._servers[name]
        host = self._hosts.get(server.host)
        answer = None
        if host is not None:
            answer = await self._tell(
                host, "drain", {"name": name, "timeout": timeout}, timeout=timeout + 2.0
            )
        await self._end(name, server, grace=5.0)
        return bool(answer and answer["drained"])

    def status(self, name: str) -> ServerStatus:
        """Raises NotFoundError."""
        route = self._routes.get(name)
        server = self._servers[name]
        return ServerStatus(
            name=name,
            state=route.state,
            url=f"{self._url}/{name}/mcp",
            node_id=route.address.node_id if route.address else None,
            pid=host.launched.pid if (host := self._hosts.get(server.host)) else None,
            restarts=server.total_restarts,
            tools=[tool.name for tool in route.definition.tools],
            detached=server.request.detached,
            generation=route.generation,
            error=server.error,
        )

    async def statuses(self) -> list[ServerStatus]:
        """Every server, with the calls that run in it as its host counts them."""
        hosts = list(self._hosts.values())
        counts = await asyncio.gather(
            *(self._tell(host, "running", {}, timeout=_COUNT_SECONDS) for host in hosts)
        )
        running = {name: calls for count in counts for name, calls in (count or {}).items()}
        return [
            self.status(name).model_copy(update={"running_calls": running.get(name, 0)})
            for name in self._servers
        ]

    def log(self, name: str, tail: int) -> str:
        """The last *tail* lines of a server's log. Raises NotFoundError."""
        return self._specs.log(name, tail)

    async def restore(self) -> None:
        """Start what was detached when the host last ended. One that fails is listed with its error, and kept."""

        async def one(server: _Server) -> None:
            name = server.request.name
            try:
                await self._launcher.check(server.request.placement)
                async with asyncio.timeout(server.request.start_timeout):
                    await self._start(name, server)
            except (ToolhostError, TimeoutError) as error:
                server.error = str(error) or f"was not ready within {server.request.start_timeout:g} s"
                if self._servers.get(name) is server:
                    self._fail(name, server, "did not come back with this host")

        saved = [request for request in self._specs.saved() if request.name not in self._servers]
        await asyncio.gather(*(one(server) for server in [self._reserve(request) for request in saved]))

    async def aclose(self, grace: float = 2.0) -> None:
        """Stop everything; what was detached comes back with the next host in this home."""
        self._closing = True
        for server in self._servers.values():
            server.ended.set()
        for task in list(self._tasks):
            task.cancel()
        hosts = list(self._hosts.values())
        self._hosts.clear()

        async def end(host: _Host) -> None:
            names = [name for name, server in self._servers.items() if server.host == host.key]
            if host.watcher:
                host.watcher.cancel()
            await asyncio.gather(
                *(
                    self._tell(host, "unload", {"name": name, "grace": grace}, timeout=grace + 1.0)
                    for name in names
                )
            )
            await self._launcher.kill(host.launched)

        await asyncio.gather(*(end(host) for host in hosts), return_exceptions=True)
        self._servers.clear()

    def _reserve(self, request: SpawnRequest) -> _Server:
        """Take the name. Raises ConflictError when it is taken."""
        self._routes.add(request.name, anonymous=request.anonymous)
        server = self._servers[request.name] = _Server(request=request, host=_host_key(request))
        return server

    async def _start(self, name: str, server: _Server) -> None:
        """Load a server that is `starting` or `restarting` into a host of its placement."""
        host = await self._host_for(server)
        self._check_wanted(name, server)
        request = server.request
        payload = {"name": name, "spec": request.spec, "expose": request.expose, "prefix": request.prefix}
        try:
            definition = await host.launched.channel.request("host", "load", payload)
        except ToolhostError:
            self._check_wanted(name, server)  # a load that `_end` cut off has no words of its own
            raise
        self._check_wanted(name, server)
        if self._hosts.get(server.host) is not host:
            raise UnavailableError(f"the tool host of server {name!r} died while it started")
        self._routes.move(
            name,
            "ready",
            address=host.launched.address,
            definition=ServerDefinition.model_validate(definition),
        )

    def _check_wanted(self, name: str, server: _Server) -> None:
        if server.ended.is_set():
            raise ConflictError(f"server {name!r} was stopped while it started")

    async def _end(self, name: str, server: _Server, *, grace: float) -> bool:
        """Stop *server*, and no other one that has its name. False: it was stopped before."""
        first = not server.ended.is_set()
        if first:
            server.ended.set()
            del self._servers[name]
            self._specs.forget(name)
            self._routes.move(name, "stopped")
            if (host := self._hosts.get(server.host)) is not None:
                await self._tell(host, "unload", {"name": name, "grace": grace}, timeout=grace + 2.0)
            await self._end_commands(name, grace)
        await self._retire_unused(server.host)
        return first

    async def _host_for(self, server: _Server) -> _Host:
        lock = self._launching.setdefault(server.host, asyncio.Lock())
        async with lock:
            if (host := self._hosts.get(server.host)) is not None:
                return host
            config = self._new_config(secrets.token_hex(4))
            placement = server.request.placement
            launched = await self._launcher.launch(config, placement, timeout=server.request.start_timeout)
            if self._closing:
                await self._launcher.kill(launched)
                raise UnavailableError("this host is shutting down and starts nothing")
            host = _Host(key=server.host, placement=placement, launched=launched)
            self._hosts[server.host] = host
            host.watcher = self._background(self._watch(host))
            return host

    async def _watch(self, host: _Host) -> None:
        """Wait for the host's death, then bring its servers back."""
        with suppress(UnavailableError):
            await host.launched.channel.request("host", "alive")
        if self._hosts.get(host.key) is not host or self._closing:
            return
        logger.warning("tool host %s died", host.launched.host_id)
        del self._hosts[host.key]
        # One that is starting, restarting or failed is not brought back from here: its own start fails, or did.
        served = [
            (name, server)
            for name, server in self._servers.items()
            if server.host == host.key and self._routes.get(name).state in ("ready", "draining")
        ]
        for name, _ in served:
            self._routes.move(name, "restarting")
        await self._launcher.kill(host.launched)
        for name, server in served:
            self._background(self._restart(name, server))

    async def _restart(self, name: str, server: _Server) -> None:
        while not server.ended.is_set() and not self._closing:
            now = time.monotonic()
            while server.restarts and now - server.restarts[0] > RESTART_WINDOW:
                server.restarts.popleft()
            if len(server.restarts) >= server.request.max_restarts:
                self._fail(name, server, f"died {len(server.restarts) + 1} times in {RESTART_WINDOW:g} s")
                return
            if server.restarts:
                await asyncio.sleep(min(_FIRST_BACKOFF * 2 ** len(server.restarts), _LONGEST_BACKOFF))
            server.restarts.append(now)
            server.total_restarts += 1
            try:
                async with asyncio.timeout(server.request.start_timeout):
                    await self._start(name, server)
            except (ToolhostError, TimeoutError) as error:
                logger.warning("server %r did not come back: %s", name, error)
                server.error = str(error)
                continue
            return
        await self._retire_unused(server.host)

    def _fail(self, name: str, server: _Server, reason: str) -> None:
        server.error = f"{reason}; last error: {server.error}" if server.error else reason
        self._routes.move(name, "failed")
        logger.error("server %r failed: %s", name, server.error)

    async def _retire_unused(self, key: str) -> None:
        """End the host of *key* if no server is in it or on its way there."""
        if any(server.host == key for server in self._servers.values()):
            return
        if (host := self._hosts.pop(key, None)) is not None:
            if host.watcher:
                host.watcher.cancel()
            await self._launcher.kill(host.launched)

    async def _tell(self, host: _Host, verb: str, payload: dict[str, Any], *, timeout: float) -> Any:
        """Ask a host that may be dying: its death, silence or failure is no error here."""
        try:
            return await host.launched.channel.request(
                "host", verb, payload, header=CallHeader(timeout=timeout)
            )
        except (UnavailableError, TimeoutError) as error:
            logger.info("tool host %s did not answer %r: %s", host.launched.host_id, verb, error)
        except ToolhostError as error:
            logger.warning("tool host %s failed at %r: %s", host.launched.host_id, verb, error)
        return None

    async def _end_commands(self, name: str, grace: float) -> None:
        """End every job of a server that is gone, whoever started it."""
        try:
            jobs = await self._executor.jobs(session=name, live=True)
        except UnavailableError as error:
            logger.warning("jobs of server %r cannot be ended now: %s", name, error)
            return
        ending = (self._executor.terminate(job.id, grace=grace, cause="server_stopped") for job in jobs)
        await asyncio.gather(*ending, return_exceptions=True)

    def _background(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _host_key(request: SpawnRequest) -> str:
    """Servers with equal placement share a host, unless one wants a process of its own."""
    key = json.dumps(request.placement, sort_keys=True, default=repr)
    return f"{key}/{request.name}" if request.isolation == "process" else key
