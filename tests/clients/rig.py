"""The real ingress process in front of servers of this process: everything of a host but Ray and the supervisor.

A rig starts in a second, so tests of the ingress can have one each. It plays the controller (route table, tokens)
and the tool host (one unix socket a server), with the product's own parts wherever they can be had without Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from toolhost.hosting.control import RevisionWaiter
from toolhost.hosting.home import Home
from toolhost.hosting.ingress_process import IngressProcess, bind, not_serving
from toolhost.hosting.routes import RouteRegistry
from toolhost.hosting.tokens import TokenService
from toolhost.tools import ToolSpec
from toolhost.tools.local import LocalServer
from toolhost.wire import Address, ServerDefinition, ServerState
from toolhost_sdk.bridge import Bridge
from toolhost_sdk.endpoints.channel import Dispatcher, IncomingCall
from toolhost_sdk.endpoints.unix_server import serve_unix
from toolhost_sdk.errors import NotFoundError
from toolhost_sdk.node.port import Executor

_READY = 20.0


class Rig:
    """A running ingress with servers behind it; a context manager for synchronous tests.

    `with Rig(tmp_path) as rig: rig.spawn(Greeter.bind(), name="greeter"); rig.url`

    Args:
        executor: what servers get to run commands with; without one only servers that run none can be spawned.
        ingress_arguments: more of the command line of `python -m toolhost.ingress`.
    """

    def __init__(
        self,
        home: Path,
        *,
        executor: Executor | None = None,
        heartbeat: float = 15.0,
        orphan_grace: float = 30.0,
        ingress_arguments: Sequence[str] = (),
    ) -> None:
        self.home = Home(home.absolute())
        self.routes = RouteRegistry()
        self.url = ""
        self._executor = executor
        self._options = [
            "--heartbeat",
            str(heartbeat),
            "--orphan-grace",
            str(orphan_grace),
            *ingress_arguments,
        ]
        self._bridge = Bridge("rig")
        self._seen = RevisionWaiter()
        self._stack = AsyncExitStack()
        self._servers: dict[str, AsyncExitStack] = {}
        self._ingress: IngressProcess | None = None

    def __enter__(self) -> Self:
        self.home.prepare()
        try:
            self._bridge.run(self._open())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the ingress, then the servers."""
        try:
            self._bridge.run(self._close(), timeout=30)
        finally:
            self._bridge.close()

    def spawn(self, spec: ToolSpec, *, name: str, anonymous: bool = False) -> None:
        """Run a server in this process and route it; returns when the ingress serves it."""
        self._bridge.run(self._spawn(spec, name, anonymous), timeout=_READY)

    def serve(
        self, dispatch: Dispatcher, definition: ServerDefinition, *, name: str, anonymous: bool = False
    ) -> None:
        """Route a bare dispatcher, for servers that misbehave in ways `ToolServer` cannot."""
        self._bridge.run(self._serve(dispatch, definition, name, anonymous, AsyncExitStack()), timeout=_READY)

    def move(self, name: str, state: ServerState) -> None:
        """Put a route into another state, as the supervisor would; returns when the ingress knows."""
        self._bridge.run(self._move(name, state), timeout=_READY)

    def redefine(self, name: str, definition: ServerDefinition) -> None:
        """Let a server come back with another definition, as after a deployment."""
        self._bridge.run(self._redefine(name, definition), timeout=_READY)

    def stop(self, name: str) -> None:
        """End a server and its route."""
        self._bridge.run(self._stop(name), timeout=_READY)

    def mint_token(self, *, scopes: Sequence[str] = ("*",), label: str = "", ttl: float | None = None) -> str:
        payload = {"scopes": list(scopes), "label": label, "ttl": ttl}
        return cast("str", self._bridge.run(self._tokens.dispatch("mint", payload))["token"])

    @property
    def ingress_pid(self) -> int:
        assert self._ingress is not None
        pid = self._ingress.pid
        assert pid is not None
        return pid

    def ingress_log(self) -> str:
        path = self.home.logs_dir / "ingress.log"
        return path.read_text(errors="replace") if path.exists() else ""

    async def _open(self) -> None:
        listener = self._stack.enter_context(bind("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._tokens = TokenService(self.home)
        self._stack.callback(self._tokens.close)
        await self._stack.enter_async_context(serve_unix(self._control, self.home.control_socket))
        arguments = ["--control-socket", str(self.home.control_socket), "--home", str(self.home.root)]
        self._ingress = IngressProcess(
            self.home,
            listener,
            [*arguments, "--url", self.url, *self._options],
            on_death=self._seen.reset,
            on_restart=lambda _: None,
        )
        self._stack.push_async_callback(self._ingress.aclose)
        await self._ingress.start()
        await self._until_seen()

    async def _close(self) -> None:
        if self._ingress is not None:
            await self._ingress.aclose()
        for name in list(self._servers):
            await self._servers.pop(name).aclose()
        await self._stack.aclose()

    async def _until_seen(self) -> None:
        try:
            async with asyncio.timeout(_READY):
                await self._seen.reach(self.routes.revision)
        except TimeoutError:
            raise not_serving(self.home, _READY) from None

    async def _spawn(self, spec: ToolSpec, name: str, anonymous: bool) -> None:
        stack = AsyncExitStack()
        state_dir = self.home.state_dir(name)
        state_dir.mkdir(parents=True, exist_ok=True)
        # Servers that run no commands never touch it.
        executor = cast("Executor", self._executor)
        server = LocalServer(spec, name=name, executor=executor, state_dir=state_dir)
        await stack.enter_async_context(server)
        await self._serve(server.dispatch, server.definition, name, anonymous, stack)

    async def _serve(
        self,
        dispatch: Dispatcher,
        definition: ServerDefinition,
        name: str,
        anonymous: bool,
        stack: AsyncExitStack,
    ) -> None:
        path = self.home.runtime_dir / f"host-{name}.sock"
        await stack.enter_async_context(serve_unix(dispatch, path))
        self._servers[name] = stack
        self.routes.add(name, anonymous=anonymous)
        address = Address(node_id="rig", unix=str(path))
        self.routes.move(name, "ready", address=address, definition=definition)
        await self._until_seen()

    async def _move(self, name: str, state: ServerState) -> None:
        address = None
        if state == "ready":
            address = Address(node_id="rig", unix=str(self.home.runtime_dir / f"host-{name}.sock"))
        self.routes.move(name, state, address=address)
        await self._until_seen()

    async def _redefine(self, name: str, definition: ServerDefinition) -> None:
        address = self.routes.get(name).address
        self.routes.move(name, "restarting")
        self.routes.move(name, "ready", address=address, definition=definition)
        await self._until_seen()

    async def _stop(self, name: str) -> None:
        self.routes.move(name, "stopped")
        await self._until_seen()
        await self._servers.pop(name).aclose()

    async def _control(self, call: IncomingCall) -> Any:
        match call.method:
            case "routes.watch":
                async for table in self.routes.watch():
                    await call.emit("item", table.model_dump(mode="json"))
            case "routes.seen":
                self._seen.advance(int(call.payload["revision"]))
            case "ingress.ready":
                pass
            case method if method.startswith("tokens."):
                return await self._tokens.dispatch(method.removeprefix("tokens."), call.payload or {})
            case method:
                raise NotFoundError(f"the control endpoint has no method {method!r}")
        return None
