"""A tool server at work: bounds, deadlines, and the one boundary where failures become words.

Rules of this file: it is the only place that translates what functions raise. The project's own errors reach the
model with their message and code; anything else becomes an incident id, and the log has the rest.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from toolhost.tools.context import CapabilityRequiredError, ServerEnvironment, ToolContext
from toolhost.tools.functions import invoke, read_resource
from toolhost.tools.server import ServerParts, ToolServer
from toolhost.wire import ServerDefinition, ToolOutcome
from toolhost_sdk.endpoints.channel import IncomingCall
from toolhost_sdk.errors import (
    CapacityError,
    DeadlineExceededError,
    NotFoundError,
    ToolhostError,
    ToolServerUnavailableError,
)

logger = logging.getLogger(__name__)


class ServerRuntime:
    """Runs one server's calls. `open` and `aclose` belong to one loop; `dispatch` is a channel dispatcher."""

    def __init__(self, parts: ServerParts, env: ServerEnvironment) -> None:
        self.name = env.name
        self.definition: ServerDefinition = parts.definition()
        self._parts = parts
        self._env = env
        self._slots = asyncio.Semaphore(parts.server.max_concurrent)
        self._queued: set[asyncio.Task[Any]] = set()
        self._running: set[asyncio.Task[Any]] = set()
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def open(self) -> None:
        await self._parts.server.start(self._env)

    async def aclose(self, grace: float = 5.0) -> None:
        """Cancel queued and running calls, wait for their end at most *grace* seconds, close the server."""
        self._draining = True
        calls = self._queued | self._running
        for task in calls:
            task.cancel()
        if calls:
            await asyncio.wait(calls, timeout=grace)
        try:
            async with asyncio.timeout(max(grace, 1.0)):
                await self._parts.server.aclose()
        except (
            Exception
        ):  # the boundary: a user's method may raise anything, and the server is gone all the same
            logger.exception("server %r did not close", self.name)
        finally:
            self._env.threads.shutdown(wait=False, cancel_futures=True)

    async def drain(self, timeout: float) -> bool:
        """Refuse new calls, let queued and running ones end. False when some were left after *timeout* seconds."""
        self._draining = True
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    @property
    def server(self) -> ToolServer:
        return self._parts.server

    @property
    def running_calls(self) -> int:
        return len(self._running)

    async def dispatch(self, call: IncomingCall) -> Any:
        match call.method:
            case "tools/call":
                return await self._call_tool(call)
            case "resources/read":
                async with self._admitted():
                    return await read_resource(self._parts.resources, call.payload["uri"], self._env.threads)
            case "prompts/get":
                return await self._get_prompt(call)
            case "completion/complete":
                return await self._complete(call.payload)
        raise NotFoundError(f"a tool server has no method {call.method!r}")

    async def _call_tool(self, call: IncomingCall) -> ToolOutcome:
        name = call.payload["name"]
        try:
            function = self._parts.tools.get(name)
            if function is None:
                raise NotFoundError(f"{self.name!r} has no function {name!r}")
            context = ToolContext(call, self.name, asyncio.get_running_loop())
            timeout = function.definition.timeout or self._parts.server.call_timeout
            async with self._admitted(), _deadline(timeout, name):
                return await function.call(call.payload.get("arguments") or {}, context, self._env.threads)
        except CapabilityRequiredError:
            raise
        except ToolhostError as error:
            return failure(error)
        except Exception:  # the boundary: whatever a function raises ends here
            incident = secrets.token_hex(6)
            logger.exception("function %r of server %r failed (incident %s)", name, self.name, incident)
            return _incident(name, incident)

    async def _get_prompt(self, call: IncomingCall) -> dict[str, Any]:
        name = call.payload["name"]
        prompt = self._parts.prompts.get(name)
        if prompt is None:
            raise NotFoundError(f"{self.name!r} has no prompt {name!r}")
        context = ToolContext(call, self.name, asyncio.get_running_loop())
        async with self._admitted():
            return await prompt.get(call.payload.get("arguments") or {}, context, self._env.threads)

    async def _complete(self, payload: dict[str, Any]) -> dict[str, Any]:
        if self._parts.complete is None:
            raise NotFoundError(f"{self.name!r} completes nothing")
        arguments = (payload["ref"], payload["argument"], payload.get("context") or {})
        async with self._admitted():
            values = await invoke(partial(self._parts.complete, *arguments), {}, None, self._env.threads)
        return {"values": list(values)[:100], "total": len(values), "has_more": len(values) > 100}

    @asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        """A slot of this server, after a bounded queue."""
        if self._draining:
            raise ToolServerUnavailableError(f"server {self.name!r} is stopping and takes no new calls")
        limit = self._parts.server.max_queued
        if self._slots.locked() and len(self._queued) >= limit:
            raise CapacityError(
                f"server {self.name!r} already runs {self._parts.server.max_concurrent} calls and queues {limit}: "
                "try again when one has ended",
                limit=limit,
            )
        task = asyncio.current_task()
        assert task is not None
        self._idle.clear()
        self._queued.add(task)
        try:
            await self._slots.acquire()
            self._queued.discard(task)
            self._running.add(task)
            try:
                yield
            finally:
                self._slots.release()
        finally:
            self._queued.discard(task)
            self._running.discard(task)
            if not self._running and not self._queued:
                self._idle.set()


@asynccontextmanager
async def _deadline(seconds: float | None, name: str) -> AsyncIterator[None]:
    started = time.monotonic()
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        if isinstance(error, ToolhostError) or seconds is None or time.monotonic() - started < seconds:
            raise
        raise DeadlineExceededError(f"function {name!r} exceeded its timeout of {seconds:g} s") from None


def failure(error: ToolhostError) -> ToolOutcome:
    """A failed call in words, with the stable code for programs."""
    facts = {"code": error.code, "retryable": error.retryable, "details": error.details}
    return {
        "content": [{"type": "text", "text": f"{error.message} [{error.code}]"}],
        "is_error": True,
        "meta": {"toolhost/error": facts},
    }


def _incident(name: str, incident: str) -> ToolOutcome:
    text = f"function {name!r} failed inside; its cause is in the server's log under incident {incident} [internal]"
    facts = {"code": "internal", "retryable": False, "details": {"incident": incident}}
    return {
        "content": [{"type": "text", "text": text}],
        "is_error": True,
        "meta": {"toolhost/error": facts},
    }


def new_threads(name: str, workers: int) -> ThreadPoolExecutor:
    """The worker threads of one server: its own, so that one server's sleepers never starve another."""
    return ThreadPoolExecutor(max_workers=max(workers, 1), thread_name_prefix=f"tool-{name}")
