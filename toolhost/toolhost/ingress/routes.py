"""The names this ingress serves, as the controller says; each with an MCP server that outlives the hosts behind it.

Rules of this file: a session manager is entered and left by one task of its own (the SDK's cancel scopes want that);
a route is published when it can answer, and withdrawn before anything of it ends; one route's change touches no other.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

from starlette.types import ASGIApp

from toolhost.ingress.catalog import Catalog
from toolhost.ingress.config import IngressConfig
from toolhost.ingress.dispatch import ChannelPool, Dispatch, LiveRoute
from toolhost.ingress.exchange import Exchange
from toolhost.ingress.listen import LIST_EVENTS, ListenHub, event_of
from toolhost.ingress.protocol import McpServer
from toolhost.ingress.sessions import SessionBook, SessionManager
from toolhost.wire import Route, RouteTable
from toolhost_sdk.endpoints.channel import Channel
from toolhost_sdk.errors import ToolhostError, UnavailableError

logger = logging.getLogger(__name__)
_RETRY = 0.2
_LOOK = 0.01
_LAST_WORDS = 0.05  # between the end of a call and the end of the session that carries its result
_CLOSE_SECONDS = 1.0


class ServedRoute:
    """One name: its route as it is now, and everything MCP about it."""

    def __init__(self, route: Route, dispatch: Dispatch, config: IngressConfig) -> None:
        self.live = LiveRoute(route)
        self.catalog = Catalog(route.definition)
        self.hub = ListenHub()
        self.book = SessionBook()
        self.server = McpServer(
            self.live,
            lambda: self.catalog,
            dispatch=dispatch,
            hub=self.hub,
            book=self.book,
            keys=config.keys,
        )
        self.manager = SessionManager(
            self.server, limits=config.limits, definition=lambda: self.catalog.definition
        )
        self.exchange = Exchange(self.server, ping=config.heartbeat)
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def route(self) -> Route:
        return self.live.route

    @property
    def asgi_app(self) -> ASGIApp:
        return self.manager.asgi_app

    async def open(self) -> None:
        """Return when requests may come."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.get_running_loop().create_task(self._serve(ready), name=f"mcp-{self.live.name}")
        await ready

    async def _serve(self, ready: asyncio.Future[None]) -> None:
        async with self.manager.run():
            ready.set_result(None)
            await self._stop.wait()

    def update(self, route: Route) -> None:
        """Take over a newer state; tell clients which lists changed."""
        changed: list[str] = []
        if route.definition != self.route.definition:
            before, self.catalog = self.catalog, Catalog(route.definition)
            changed = self.catalog.changes(before)
            self.server.take_identity()
        self.live.update(route)
        for what in changed:
            logger.info("server %r has other %s in generation %d", self.live.name, what, route.generation)
            self.announce(what, None)

    def announce(self, what: str, uri: str | None) -> None:
        """Tell listen streams and legacy sessions of a change."""
        event = event_of(what, uri)
        if event is None:
            logger.warning("server %r announced a change of %r, which nobody knows", self.live.name, what)
            return
        self.hub.publish(event)
        self.book.publish(event)

    def withdraw(self) -> None:
        """The server is gone: its clients are told, its streams end."""
        self.live.end()
        self.hub.publish(LIST_EVENTS["tools"])
        self.hub.close()

    async def aclose(self) -> None:
        """End the sessions. Bounded."""
        self.hub.close()
        self._stop.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=_CLOSE_SECONDS)


class RouteBook:
    """All served routes. `follow` keeps them as the controller has them."""

    def __init__(self, config: IngressConfig) -> None:
        self._config = config
        self._served: dict[str, ServedRoute] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._channels = ChannelPool()
        self.dispatch = Dispatch(
            self._channels,
            heartbeat=config.heartbeat,
            orphan_grace=config.orphan_grace,
            announce=self._announce,
        )

    def get(self, name: str) -> ServedRoute | None:
        return self._served.get(name)

    def names(self) -> list[str]:
        return list(self._served)

    async def apply(self, table: RouteTable) -> None:
        """Serve what *table* says."""
        wanted = {route.name: route for route in table.routes if route.state != "stopped"}
        for name in [name for name in self._served if name not in wanted]:
            served = self._served.pop(name)
            served.withdraw()
            self._close_later(served)
        for name, route in wanted.items():
            known = self._served.get(name)
            if known is None:
                served = ServedRoute(route, self.dispatch, self._config)
                await served.open()
                self._served[name] = served
            elif known.route != route:
                known.update(route)
        await self._channels.keep({route.address for route in wanted.values() if route.address is not None})

    async def follow(self, control: Channel, on_served: Callable[[], None]) -> None:
        """Follow the controller until it stays away for longer than `controller_patience`.

        Args:
            on_served: called once, when the first table is served.

        Raises:
            UnavailableError: the controller stayed away.
        """
        loop = asyncio.get_running_loop()
        away_since = loop.time()
        told = False
        while loop.time() - away_since <= self._config.controller_patience:
            try:
                async with control.call("control", "routes.watch", {}) as stream:
                    async for frame in stream:
                        if frame.kind != "item":
                            continue
                        away_since = math.inf
                        table = RouteTable.model_validate(frame.payload)
                        await self.apply(table)
                        if not told:
                            told = True
                            on_served()
                        await control.request("control", "routes.seen", {"revision": table.revision})
            except ToolhostError as error:
                logger.warning("the controller does not answer: %s", error)
            away_since = min(away_since, loop.time())
            await asyncio.sleep(_RETRY)
        raise UnavailableError(
            f"no controller for {self._config.controller_patience:g} s, and nothing can be served for long without one"
        )

    async def quiet(self, seconds: float) -> None:
        """Return when no call runs and no listen stream is open, or after *seconds*."""
        served = list(self._served.values())
        await _until(
            lambda: not self.dispatch.running() and not any(s.hub.open_streams for s in served), seconds
        )

    def end_streams(self) -> None:
        """Finish every listen stream with its final result."""
        for served in self._served.values():
            served.hub.close()

    async def aclose(self) -> None:
        """End calls and sessions. Bounded."""
        self.dispatch.stop()
        closing = [asyncio.ensure_future(served.aclose()) for served in self._served.values()]
        closing.extend(self._closing)
        if closing:
            await asyncio.wait(closing, timeout=_CLOSE_SECONDS + 0.5)
        await self._channels.aclose()

    def _close_later(self, served: ServedRoute) -> None:
        task = asyncio.get_running_loop().create_task(self._close(served))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self, served: ServedRoute) -> None:
        """Calls end in words; sessions, which carry the words of older clients, after them."""
        self.dispatch.end_calls(served.live)
        await _until(lambda: not self.dispatch.has_calls(served.live), _CLOSE_SECONDS)
        await asyncio.sleep(_LAST_WORDS)
        await served.aclose()

    def _announce(self, name: str, what: str, uri: str | None) -> None:
        served = self._served.get(name)
        if served is not None:
            served.announce(what, uri)


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Return when *condition* holds, or after *seconds*."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition() and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110  counts, not events
        await asyncio.sleep(_LOOK)
