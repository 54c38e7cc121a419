"""The one bridge from synchronous callers to the async core: a loop in a daemon thread.

Blocking spellings are the async ones, run there; there is no second implementation. `@blocking` and
`@blocking_method` make both spellings of one coroutine function: `f(...)` and `await f.aio(...)`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine
from functools import partial, update_wrapper
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from toolhost_sdk.errors import UsageError

T = TypeVar("T")
P = ParamSpec("P")
S = TypeVar("S")
_CLEANUP_SECONDS = 15.0  # that interrupted work gets to put things in order


class Bridge:
    """A loop in a thread of its own. Started by its first use, ended by `close` or with the process."""

    def __init__(self, name: str = "toolhost-bridge") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._pid != os.getpid():  # a fork leaves the thread behind
                self._loop = asyncio.new_event_loop()
                self._pid = os.getpid()
                self._thread = threading.Thread(target=self._loop.run_forever, name=self._name, daemon=True)
                self._thread.start()
            return self._loop

    def run(self, work: Coroutine[Any, Any, T], *, timeout: float | None = None) -> T:
        """Run *work* to its end. An interrupt of the caller cancels it, and waits until it has cleaned up.

        Raises:
            UsageError: called from the bridge's own loop, where it would wait for itself.
        """
        loop = self.loop
        if threading.current_thread() is self._thread:
            work.close()
            raise UsageError("a blocking call was made from the async core: use its `.aio` twin and await it")
        running = _Running(loop, work)
        try:
            return running.outcome.result(timeout)
        except BaseException:
            if not running.outcome.done():
                running.cancel()
                concurrent.futures.wait([running.outcome], timeout=_CLEANUP_SECONDS)
            raise

    async def arun(self, work: Coroutine[Any, Any, T]) -> T:
        """`run` for a caller in a loop of its own, which goes on turning meanwhile."""
        loop = self.loop
        if asyncio.get_running_loop() is loop:
            return await work
        running = _Running(loop, work)
        try:
            return await asyncio.shield(asyncio.wrap_future(running.outcome))
        except asyncio.CancelledError:
            running.cancel()
            raise

    def close(self) -> None:
        """Stop the loop and its thread. Idempotent."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is not None and thread is not None and self._pid == os.getpid():
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout=5)
            if not thread.is_alive():
                loop.close()


class _Running(Generic[T]):
    """Work in the bridge's loop. Its outcome is there when the work has ended, not when its end was asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> None:
        self.outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._loop = loop
        self._work = work
        self._task: asyncio.Task[T] | None = None
        loop.call_soon_threadsafe(self._begin)

    def cancel(self) -> None:
        self._loop.call_soon_threadsafe(self._cancel)

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._work)
        self._task.add_done_callback(self._ended)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _ended(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.outcome.cancel()
            self.outcome.set_running_or_notify_cancel()  # only that ends a wait for it
        elif (error := task.exception()) is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(task.result())


shared = Bridge()


class Blocking(Generic[P, T]):
    """One coroutine function in two spellings: called, it blocks; `aio` is awaited."""

    def __init__(self, fn: Callable[P, Coroutine[Any, Any, T]], bridge: Bridge) -> None:
        self._fn = fn
        self._bridge = bridge
        update_wrapper(self, fn)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._bridge.run(self._fn(*args, **kwargs))

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """The same, awaited."""
        return await self._bridge.arun(self._fn(*args, **kwargs))


def blocking(fn: Callable[P, Coroutine[Any, Any, T]]) -> Blocking[P, T]:
    """Make an async function callable from synchronous code; the awaitable spelling is its `.aio`."""
    return Blocking(fn, shared)


class blocking_method(Generic[S, P, T]):  # noqa: N801  a decorator
    """`blocking` for methods. The object's `bridge` runs them, or the shared one where it has none."""

    def __init__(self, fn: Callable[Concatenate[S, P], Coroutine[Any, Any, T]]) -> None:
        self._fn = fn
        self.__doc__ = fn.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: S, owner: type) -> Blocking[P, T]: ...
    def __get__(self, instance: S | None, owner: type) -> Self | Blocking[P, T]:
        if instance is None:
            return self
        bound = update_wrapper(partial(self._fn, instance), self._fn)
        return Blocking(bound, getattr(instance, "bridge", shared))
