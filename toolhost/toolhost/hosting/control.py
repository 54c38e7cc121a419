"""The control endpoint of a host (`control.sock`): what the CLI, the SDK and ingresses ask of the controller."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from toolhost.hosting.routes import RouteRegistry
from toolhost.hosting.supervisor import Supervisor
from toolhost.wire import HostStatus, SpawnRequest
from toolhost_sdk.endpoints.channel import IncomingCall
from toolhost_sdk.errors import NotFoundError

logger = logging.getLogger(__name__)


class ControlService:
    """Channel dispatcher of the controller.

    Args:
        status: facts of the host as they are now.
        tokens: dispatches `tokens.*`.
        shutdown: asks the host to end.
    """

    def __init__(
        self,
        *,
        routes: RouteRegistry,
        supervisor: Supervisor,
        status: Callable[[], Awaitable[HostStatus]],
        tokens: Callable[[str, dict[str, Any]], Awaitable[Any]],
        shutdown: Callable[[], None],
    ) -> None:
        self._routes = routes
        self._supervisor = supervisor
        self._status = status
        self._tokens = tokens
        self._shutdown = shutdown
        self._leases: set[asyncio.Task[None]] = set()
        self.ingress_seen = RevisionWaiter()
        self._methods: Mapping[str, Callable[[IncomingCall], Awaitable[Any]]] = {
            "routes.watch": self._watch,
            "routes.seen": self._seen,
            "servers.spawn": self._spawn,
            "servers.stop": self._stop,
            "servers.drain": self._drain,
            "servers.list": self._list,
            "servers.log": self._log,
            "ingress.ready": self._ready,
            "host.status": self._host_status,
            "host.shutdown": self._host_shutdown,
        }

    async def dispatch(self, call: IncomingCall) -> Any:
        """The channel dispatcher."""
        if call.method.startswith("tokens."):
            return await self._tokens(call.method.removeprefix("tokens."), call.payload or {})
        method = self._methods.get(call.method)
        if method is None:
            raise NotFoundError(f"the control endpoint has no method {call.method!r}")
        return await method(call)

    async def aclose(self) -> None:
        for task in self._leases:
            task.cancel()

    async def _watch(self, call: IncomingCall) -> None:
        async for table in self._routes.watch():
            await call.emit("item", table.model_dump(mode="json"))

    async def _seen(self, call: IncomingCall) -> None:
        self.ingress_seen.advance(int(call.payload["revision"]))

    async def _ready(self, call: IncomingCall) -> None:
        logger.info("an ingress serves at %s", call.payload.get("url"))

    async def _spawn(self, call: IncomingCall) -> dict[str, Any]:
        request = SpawnRequest.model_validate(call.payload)
        status = await self._supervisor.spawn(request)
        if not request.detached:
            lease = self._until_owner_left(call, request.name, self._supervisor.ended(request.name))
            task = asyncio.get_running_loop().create_task(lease)
            self._leases.add(task)
            task.add_done_callback(self._leases.discard)
        return status.model_dump(mode="json")

    async def _until_owner_left(self, call: IncomingCall, name: str, ended: asyncio.Event) -> None:
        """A server that is not detached is leased by its owner's connection."""
        owner = asyncio.ensure_future(call.peer_gone())
        stopped = asyncio.ensure_future(ended.wait())
        try:
            await asyncio.wait({owner, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            owner.cancel()
            stopped.cancel()
        if not ended.is_set():  # else the name may be another's by now
            logger.info("the owner of server %r left", name)
            await self._supervisor.stop(name)

    async def _stop(self, call: IncomingCall) -> dict[str, Any]:
        name = call.payload["name"]
        stopped = await self._supervisor.stop(name, grace=float(call.payload.get("grace", 5.0)))
        return {"name": name, "stopped": stopped}

    async def _drain(self, call: IncomingCall) -> dict[str, Any]:
        name = call.payload["name"]
        drained = await self._supervisor.drain(name, timeout=float(call.payload.get("timeout", 30.0)))
        return {"name": name, "drained": drained}

    async def _list(self, call: IncomingCall) -> list[dict[str, Any]]:
        del call
        return [status.model_dump(mode="json") for status in await self._supervisor.statuses()]

    async def _log(self, call: IncomingCall) -> dict[str, Any]:
        name = call.payload["name"]
        self._routes.get(name)
        tail = int(call.payload.get("tail", 200))
        return {"text": await asyncio.to_thread(self._supervisor.log, name, tail)}

    async def _host_status(self, call: IncomingCall) -> dict[str, Any]:
        del call
        return (await self._status()).model_dump(mode="json")

    async def _host_shutdown(self, call: IncomingCall) -> None:
        del call
        self._shutdown()


class RevisionWaiter:
    """Lets a spawn wait until the ingress has taken over a revision of the route table."""

    def __init__(self) -> None:
        self._revision = -1
        self._advanced = asyncio.Event()

    def reset(self) -> None:
        """A new ingress has seen nothing yet."""
        self._revision = -1

    def advance(self, revision: int) -> None:
        self._revision = max(self._revision, revision)
        advanced, self._advanced = self._advanced, asyncio.Event()
        advanced.set()

    async def reach(self, revision: int) -> None:
        while self._revision < revision:
            await self._advanced.wait()
