"""The route table: which names are served, by what, in which state. The only registry there is.

Rules of this file: values and transitions only; nothing is started here. An illegal move raises and changes
nothing. Every change makes a new revision, which watchers get whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from toolhost.wire import Address, Route, RouteTable, ServerDefinition, ServerState
from toolhost_sdk.errors import ConflictError, NotFoundError

MOVES: Mapping[ServerState, frozenset[ServerState]] = {
    "starting": frozenset({"ready", "failed", "stopped"}),
    "ready": frozenset({"draining", "restarting", "stopped"}),
    "draining": frozenset({"restarting", "stopped"}),
    "restarting": frozenset({"ready", "failed", "stopped"}),
    "failed": frozenset({"starting", "stopped"}),
    "stopped": frozenset(),
}


class RouteRegistry:
    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}
        self._revision = 0
        self._changed = asyncio.Event()

    def __contains__(self, name: str) -> bool:
        return name in self._routes

    def get(self, name: str) -> Route:
        """Raises NotFoundError naming what is routed."""
        try:
            return self._routes[name]
        except KeyError:
            known = ", ".join(sorted(self._routes)) or "none"
            raise NotFoundError(f"no server is named {name!r}; running: {known}", name=name) from None

    def all(self) -> list[Route]:
        return list(self._routes.values())

    @property
    def revision(self) -> int:
        return self._revision

    def add(self, name: str, *, anonymous: bool) -> Route:
        """Reserve *name* in state `starting`. Raises ConflictError when it is taken."""
        if name in self._routes:
            raise ConflictError(
                f"a server named {name!r} is already {self._routes[name].state}: stop it first or choose another name",
                name=name,
            )
        route = Route(
            name=name, generation=0, state="starting", definition=ServerDefinition(), anonymous=anonymous
        )
        self._publish(route)
        return route

    def move(
        self,
        name: str,
        state: ServerState,
        *,
        address: Address | None = None,
        definition: ServerDefinition | None = None,
    ) -> Route:
        """Move a route to *state*; a move to `ready` begins a new generation."""
        route = self.get(name)
        if state not in MOVES[route.state]:
            raise ConflictError(f"server {name!r} is {route.state} and cannot become {state}")
        changes: dict[str, object] = {"state": state}
        if state == "ready":
            changes["generation"] = route.generation + 1
        if address is not None or state in ("restarting", "failed"):
            changes["address"] = address
        if definition is not None:
            changes["definition"] = definition
        route = route.model_copy(update=changes)
        if state == "stopped":
            del self._routes[name]
            self._bump()
        else:
            self._publish(route)
        return route

    async def watch(self) -> AsyncIterator[RouteTable]:
        """The table now and after each change. A slow reader sees the newest, not each."""
        seen = -1
        while True:
            changed = self._changed
            if seen != self._revision:
                seen = self._revision
                yield RouteTable(revision=seen, routes=self.all())
            else:
                await changed.wait()

    def _publish(self, route: Route) -> None:
        self._routes[route.name] = route
        self._bump()

    def _bump(self) -> None:
        self._revision += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
