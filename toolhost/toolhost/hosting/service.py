"""A tool host: one process, many servers. Serves them on one channel, and lets the controller load and unload.

Knows no Ray: the actor in `launcher_ray` is a shell around it, and tests run it as it is.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import override

from toolhost.hosting.home import make_private_dir
from toolhost.tools.context import ServerEnvironment
from toolhost.tools.pickling import load_spec
from toolhost.tools.runtime import ServerRuntime, new_threads
from toolhost.tools.server import ServerParts
from toolhost_sdk.endpoints.channel import IncomingCall
from toolhost_sdk.errors import ConflictError, NotFoundError, ToolhostError, UsageError
from toolhost_sdk.node.port import Executor

logger = logging.getLogger(__name__)
T = TypeVar("T")
_OPEN_LOGS = 32
_current_server: contextvars.ContextVar[str | None] = contextvars.ContextVar("toolhost_server", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """What a tool host is told when it starts. Plain data."""

    host_id: str
    home: str
    instance: str


class ToolHostService:
    """Channel dispatcher of one tool host. Endpoint `host` is the controller's, every other one a server."""

    def __init__(self, config: HostConfig, executor: Executor, state_dir: Callable[[str], Path]) -> None:
        self._config = config
        self._executor = executor
        self._state_dir = state_dir
        self._servers: dict[str, ServerRuntime] = {}
        self._loading: dict[str, asyncio.Task[ServerRuntime]] = {}
        self._verbs: Mapping[str, Callable[[IncomingCall], Awaitable[Any]]] = {
            "load": self._load,
            "unload": self._unload,
            "drain": self._drain,
            "alive": self._alive,
            "running": self._running,
        }

    async def dispatch(self, call: IncomingCall) -> Any:
        """The channel dispatcher."""
        if call.endpoint == "host":
            verb = self._verbs.get(call.method)
            if verb is None:
                raise NotFoundError(f"a tool host has no method {call.method!r}")
            return await verb(call)
        server = self._servers.get(call.endpoint)
        if server is None:
            raise NotFoundError(f"no server {call.endpoint!r} runs here")
        _current_server.set(call.endpoint)
        return await server.dispatch(call)

    async def aclose(self, grace: float = 5.0) -> None:
        servers, self._servers = list(self._servers.values()), {}
        await asyncio.gather(*(server.aclose(grace) for server in servers), return_exceptions=True)

    async def _load(self, call: IncomingCall) -> dict[str, Any]:
        payload = call.payload
        name: str = payload["name"]
        if name in self._servers or name in self._loading:
            raise ConflictError(f"server {name!r} already runs in this tool host")
        _current_server.set(name)
        loading = asyncio.ensure_future(self._opened(name, payload))
        self._loading[name] = loading
        try:
            runtime = self._servers[name] = await loading
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            raise ConflictError(f"server {name!r} was unloaded while it started") from None
        finally:
            del self._loading[name]
        logger.info("server %r started", name)
        return runtime.definition.model_dump(mode="json")

    async def _opened(self, name: str, payload: Mapping[str, Any]) -> ServerRuntime:
        """Build and start a server. A failed or cancelled one leaves no thread behind."""
        state_dir = self._state_dir(name)
        make_private_dir(state_dir)
        try:
            parts = await _in_own_thread(name, lambda: _build(name, payload))
            threads = new_threads(name, parts.server.max_concurrent)
            try:
                env = ServerEnvironment(
                    name=name, commands=self._executor, state_dir=state_dir, threads=threads
                )
                runtime = ServerRuntime(parts, env)
                await runtime.open()
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        except ToolhostError:
            raise
        except Exception as error:  # the boundary: a user's constructor may raise anything
            logger.exception("server %r did not start", name)
            raise UsageError(f"server {name!r} did not start: {type(error).__name__}: {error}") from None
        return runtime

    async def _unload(self, call: IncomingCall) -> dict[str, Any]:
        name: str = call.payload["name"]
        if (loading := self._loading.get(name)) is not None:
            loading.cancel()
            await asyncio.wait({loading})
            return {"stopped": True}
        runtime = self._servers.pop(name, None)
        if runtime is not None:
            await runtime.aclose(float(call.payload.get("grace", 5.0)))
            logger.info("server %r stopped", name)
        return {"stopped": runtime is not None}

    async def _drain(self, call: IncomingCall) -> dict[str, Any]:
        runtime = self._servers.get(call.payload["name"])
        drained = runtime is None or await runtime.drain(float(call.payload["timeout"]))
        return {"drained": drained}

    async def _running(self, call: IncomingCall) -> dict[str, int]:
        del call
        return {name: runtime.running_calls for name, runtime in self._servers.items()}

    async def _alive(self, call: IncomingCall) -> None:
        """Never returns: its end tells the controller that this process died."""
        await call.emit("item", {"pid": os.getpid()})
        await asyncio.Event().wait()


def _build(name: str, payload: Mapping[str, Any]) -> ServerParts:
    spec = load_spec(payload["spec"])
    return spec.build().only(payload.get("expose"), prefix=name if payload.get("prefix") else None)


async def _in_own_thread(name: str, work: Callable[[], T]) -> T:
    """Importing a user's module and constructing an object of it take what they take: not on everybody's loop,
    and not in a pool that a few constructors which never return would fill."""
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"load-{name}")
    try:
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(thread, context.run, work)
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


class ServerLogHandler(logging.Handler):
    """One file a server, by the server whose call is running; everything else goes to the host's own file."""

    def __init__(self, logs_dir: Path, host_id: str) -> None:
        super().__init__()
        self._dir = logs_dir
        self._host_id = host_id
        self._files: dict[str, logging.FileHandler] = {}

    @override
    def emit(self, record: logging.LogRecord) -> None:
        name = _current_server.get() or f"host-{self._host_id}"
        if name not in self._files:
            if len(self._files) >= _OPEN_LOGS:  # names come and go; descriptors are few
                self._files.pop(next(iter(self._files))).close()
            handler = logging.FileHandler(self._dir / f"{name}.log", delay=True)
            handler.setFormatter(self.formatter)
            self._files[name] = handler
        self._files[name].emit(record)


def log_to_files(logs_dir: Path, host_id: str) -> None:
    """Send this process's log to files of mode 0600."""
    os.umask(0o077)
    handler = ServerLogHandler(logs_dir, host_id)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
