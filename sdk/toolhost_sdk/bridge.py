"""The one bridge from synchronous callers to the async core: a loop in a daemon thread.

Blocking spellings are the async ones, run there; there is no second implementation.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from toolhost_sdk.errors import UsageError

T = TypeVar("T")


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
        """Run *work* to its end. An interrupt of the caller cancels it.

        Raises:
            UsageError: called from the bridge's own loop, where it would wait for itself.
        """
        loop = self.loop
        if threading.current_thread() is self._thread:
            work.close()
            raise UsageError("a blocking call was made from the async core: use its `.aio` twin and await it")
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Stop the loop and its thread. Idempotent."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout=5)
            if not thread.is_alive():
                loop.close()


shared = Bridge()
