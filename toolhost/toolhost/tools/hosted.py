"""Work that runs in the server's own process as a job: its context, its thread or task, its ending.

Rules of this file: the executor's record is the truth about the state; a thread cannot be ended, it can be told.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from toolhost.tools.job_book import JobBook, JobInfo
from toolhost_sdk.endpoints.envelope import to_envelope
from toolhost_sdk.errors import CancelledByCaller, UnavailableError, UsageError
from toolhost_sdk.node.port import Executor, JobRecord, Stream

logger = logging.getLogger(__name__)
Result = dict[str, Any] | None
Work = Callable[["JobContext"], Result] | Callable[["JobContext"], Awaitable[Result]]
_GRACE = 1.5  # seconds told work has before its record ends without it
_PUMP_SECONDS = 30.0
_PENDING = 1 << 20  # bytes a thread may be ahead of the log


class JobContext:
    """What running work can say and see. Its methods may be called from the work's thread or task."""

    def __init__(self, executor: Executor, record: JobRecord, loop: asyncio.AbstractEventLoop) -> None:
        self.handle = record.handle
        self.label = record.label
        self.cancelled = False
        self.in_thread = False
        self._executor = executor
        self._job = record.id
        self._loop = loop
        self._outbox: list[tuple[Stream, bytes]] = []
        self._progress: dict[str, Any] | None = None
        self._pending = 0
        self._closed = False
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def write(self, data: bytes, *, stream: Stream = "stdout") -> None:
        """Append to the job's output. Blocks a thread that is far ahead of the log.

        Raises:
            CancelledByCaller: the job was cancelled or timed out; the work should end.
        """
        if self.cancelled:
            raise CancelledByCaller(f"job {self.handle!r} is being ended")
        if _in_loop(self._loop):
            self._put(stream, bytes(data))
            return
        asyncio.run_coroutine_threadsafe(self._put_slowly(stream, bytes(data)), self._loop).result()

    def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Say how far the work is."""
        value = {"progress": progress, "total": total, "message": message}
        self._loop.call_soon_threadsafe(self._set_progress, value)

    def _set_progress(self, value: dict[str, Any]) -> None:
        self._progress = value
        self._wake.set()

    def _put(self, stream: Stream, data: bytes) -> None:
        self._outbox.append((stream, data))
        self._pending += len(data)
        if self._pending > _PENDING:
            self._room.clear()
        self._wake.set()

    async def _put_slowly(self, stream: Stream, data: bytes) -> None:
        await self._room.wait()
        self._put(stream, data)

    async def pump(self) -> None:
        """Carry output and progress to the executor, in order, until `close` and all of it is there."""
        while not (self._closed and not self._outbox and self._progress is None):
            await self._wake.wait()
            self._wake.clear()
            outbox, self._outbox = self._outbox, []
            progress, self._progress = self._progress, None
            for stream, data in outbox:
                await self._executor.append_hosted(self._job, data, stream=stream)
                self._pending -= len(data)
            self._room.set()
            if progress is not None:
                await self._executor.progress_hosted(self._job, progress)

    def release(self) -> None:
        """Let a thread go on that waits for the log to catch up."""
        self._room.set()

    def close(self) -> None:
        """No more will come."""
        self._closed = True
        self._wake.set()


class Jobs:
    """`self.jobs` of a server: submits work of this process.

    Args:
        max_running: threads of work at once; the book holds further jobs back.
    """

    def __init__(self, book: JobBook, *, max_running: int) -> None:
        self._book = book
        self._threads = ThreadPoolExecutor(max_workers=max_running, thread_name_prefix=f"job-{book.session}")

    async def submit(self, work: Work, *, label: str = "", timeout: float | None = None) -> JobInfo:
        """Run `work(context)` as a job and return at once. A synchronous function may return what this returns.

        Args:
            work: sync (runs in a thread) or async (runs in the host's loop); returns a dict or None. What it raises
                makes the job `failed`.
            timeout: seconds after which the job ends; its output is kept.
        """
        if not callable(work):
            raise UsageError(f"work is a function that takes a job context, not {type(work).__name__!r}")
        return await self._book.start_hosted(label, timeout, lambda record: self._run(record, work))

    async def _run(self, record: JobRecord, work: Work) -> None:
        executor = self._book.executor
        loop = asyncio.get_running_loop()
        context = JobContext(executor, record, loop)
        running = asyncio.ensure_future(self._call(work, context))
        pump = loop.create_task(context.pump())
        watch = loop.create_task(_watch_for_end(executor, record.id))
        try:
            await asyncio.wait({running, watch, pump}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                context.cancelled = True
                context.release()
                if not context.in_thread:
                    running.cancel()
                await asyncio.wait({running}, timeout=_GRACE)
            context.close()
            # Never cancelled half way: no byte is lost or doubled.
            await asyncio.wait({pump}, timeout=_PUMP_SECONDS)
            if pump.done() and (error := pump.exception()) is not None and not context.cancelled:
                raise error
            await self._finish(record, context, running)
            if not running.done():
                logger.warning(
                    "work of job %s goes on after its end: it does not look at `cancelled`", record.handle
                )
                await asyncio.wait({running})  # its thread holds a place until it returns
        except UnavailableError:
            context.cancelled = True
            logger.exception("job %s lost its supervisor", record.handle)
        finally:
            for task in (pump, watch):
                task.cancel()

    async def _call(self, work: Work, context: JobContext) -> Result:
        value: Any
        if inspect.iscoroutinefunction(work):
            value = work(context)
        else:
            sync: Callable[[JobContext], Any] = work
            context.in_thread = True
            value = await asyncio.get_running_loop().run_in_executor(self._threads, sync, context)
            context.in_thread = False
        result: Result = await value if inspect.isawaitable(value) else value
        return result

    async def _finish(self, record: JobRecord, context: JobContext, running: asyncio.Future[Result]) -> None:
        finish = self._book.executor.finish_hosted
        if not running.done() or running.cancelled():
            await finish(record.id, cause="cancelled")
        elif (error := running.exception()) is None:
            await finish(record.id, result=running.result())
        elif isinstance(error, CancelledByCaller) and context.cancelled:
            await finish(record.id, cause="cancelled")
        else:
            await finish(record.id, error=to_envelope(error))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


async def _watch_for_end(executor: Executor, job: str) -> None:
    """Return when somebody asked for the job's end: cancel, timeout, a stopped server."""
    size = 0
    while True:
        chunk = await executor.read(job, offset=size, limit=1, wait=30.0)
        if chunk.state != "running":
            return
        size = chunk.size


def _in_loop(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
