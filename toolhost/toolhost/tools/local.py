"""A server in the caller's own process: for tests of servers, and for programs that need no host."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from typing_extensions import override

from toolhost.tools.context import ServerEnvironment
from toolhost.tools.runtime import ServerRuntime, new_threads
from toolhost.tools.server import ToolServer, ToolSpec, check_server_name
from toolhost.wire import ServerDefinition, ToolOutcome
from toolhost_sdk.endpoints.channel import CallHeader, Dispatcher, FrameKind, IncomingCall, Peer
from toolhost_sdk.errors import CancelledByCaller
from toolhost_sdk.node.port import Executor


class LocalServer:
    """`async with LocalServer(spec, name="x", executor=..., state_dir=...) as server: await server.call(...)`."""

    def __init__(
        self, spec: ToolSpec, *, name: str, executor: Executor | None = None, state_dir: Path
    ) -> None:
        self._spec = spec
        self._name = check_server_name(name)
        self._executor = executor
        self._state_dir = state_dir

    async def __aenter__(self) -> Self:
        parts = self._spec.build()
        env = ServerEnvironment(
            name=self._name,
            commands=self._executor,
            state_dir=self._state_dir,
            threads=new_threads(self._name, parts.server.max_concurrent),
        )
        self._runtime = ServerRuntime(parts, env)
        await self._runtime.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._runtime.aclose()

    @property
    def definition(self) -> ServerDefinition:
        return self._runtime.definition

    @property
    def dispatch(self) -> Dispatcher:
        """The channel dispatcher, to serve this server on a socket."""
        return self._runtime.dispatch

    @property
    def server(self) -> ToolServer:
        """The constructed server itself."""
        return self._runtime.server

    async def drain(self, timeout: float) -> bool:
        """See `ServerRuntime.drain`."""
        return await self._runtime.drain(timeout)

    async def call(
        self, tool: str, arguments: dict[str, Any] | None = None, *, meta: dict[str, Any] | None = None
    ) -> ToolOutcome:
        """Call a function. Frames beside the result are dropped; questions cannot be answered."""
        payload = {"name": tool, "arguments": arguments or {}, "meta": meta or {}}
        outcome: ToolOutcome = await self._runtime.dispatch(_DirectCall(self._name, payload))
        return outcome


class _DirectCall(IncomingCall):
    def __init__(self, endpoint: str, payload: dict[str, Any]) -> None:
        self.endpoint = endpoint
        self.method = "tools/call"
        self.payload = payload
        self.header = CallHeader()
        self.peer = Peer()

    @override
    async def emit(self, kind: FrameKind, payload: Any = None) -> None:
        del kind, payload

    @override
    async def receive(self) -> Any:
        raise CancelledByCaller("a direct call cannot answer questions")

    @override
    async def peer_gone(self) -> None:
        await asyncio.Event().wait()
