"""Jobs while they live: what a command and a hosted job have in common, and the hosted job.

Rules of this file: one event loop; the state changes through `endings.MOVES` only; a terminal state is shown after the
tree is empty and the `state` file is durable; nothing a reader does is awaited here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from toolhost_sdk.node import clock, endings, records
from toolhost_sdk.node.logstore import LogWriter, Segment
from toolhost_sdk.node.port import TERMINAL, Cause, Gap, JobRecord, JobState, Stream

log = logging.getLogger(__name__)

_SLOW_DISK = 0.003  # seconds; handing two fsyncs of 0.1 ms to a thread and back costs more than they do
_BESIDE_FOR = 5.0
_slow_until = [0.0]
Save = Callable[[JobRecord], None]


class Changed:
    """Wakes everyone who waits for the next change."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def fire(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, timeout: float | None) -> bool:
        """Whether something changed within *timeout* seconds."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            if timeout is None:
                await waiter
            else:
                await asyncio.wait_for(waiter, timeout)
            return True
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)


class Job(ABC):
    """A live job: record, log, and who waits for it.

    Args:
        save: keeps a changed record.
    """

    def __init__(
        self, record: JobRecord, directory: Path, *, log_limit: int, save: Save, lease: str | None
    ) -> None:
        self.base = record
        self.state: JobState = record.state
        self.directory = directory
        self.log = LogWriter(directory, limit=log_limit)
        self.changed = Changed()
        self.lease = lease
        self.cause: Cause | None = None
        self.began = clock.now()
        self.last_output = self.began
        self.counts: dict[Stream, int] = {"stdout": 0, "stderr": 0, "tty": 0, "unknown": 0}
        self.ended: JobRecord | None = None
        self.grace = 2.0
        self.timer: asyncio.TimerHandle | None = None  # of whoever looks at the clocks
        self._save = save
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def segments(self) -> list[Segment]:
        return self.log.segments

    def gaps(self) -> tuple[Gap, ...]:
        return self.log.gaps()

    def record(self) -> JobRecord:
        """The record now."""
        if self.ended is not None:
            return self.ended
        return replace(
            self.base,
            state=self.state,
            stdout_bytes=self.counts["stdout"] + self.counts["tty"],
            stderr_bytes=self.counts["stderr"],
            size=self.log.size,
            gaps=self.gaps(),
            duration=clock.now() - self.began,
            cause=self.cause,
            timed_out=self.cause in ("timeout", "idle_timeout"),
            cancelled=self.cause == "cancelled",
        )

    def move(self, state: JobState) -> None:
        """Raises InternalError for an illegal move, which changes nothing."""
        self.state = endings.move(self.state, state)
        if state != "running":  # a restart treats `starting` and `running` alike
            self._save(self.record())
        self.changed.fire()

    def write(self, stream: Stream, data: bytes) -> None:
        self.log.append(stream, data)
        self.counts[stream] += len(data)
        self.last_output = clock.now()
        self.changed.fire()

    @abstractmethod
    async def terminate(self, *, grace: float, cause: Cause) -> JobRecord:
        """End the job for *cause* unless it has one. Idempotent."""

    @abstractmethod
    def bounds(self) -> list[tuple[float, Cause]]:
        """When the job has to end, on the boot clock, and for what cause."""

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run *coroutine* beside the job; its failure is ours and is logged."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("job %s: its supervision failed", self.base.id, exc_info=task.exception())

    def check_clocks(self) -> float | None:
        """End the job when a bound has passed. Returns the time of the next bound, or None when there is none."""
        if self.cause is not None or self.ended is not None:
            return None
        due, cause = min(self.bounds(), default=(None, None))
        if due is None or cause is None or due > clock.now():
            return due
        self.spawn(self.terminate(grace=self.grace, cause=cause))
        return None

    async def publish(self, final: JobRecord) -> JobRecord:
        """Make *final* durable, then visible. The first call wins."""
        endings.move(self.state, final.state)
        self.log.close()
        if self.timer is not None:
            self.timer.cancel()  # it would keep all of the job for seconds
        try:
            await _durable(self.directory, final)
        except OSError:
            log.exception("the state of job %s could not be made durable", final.id)
        if self.ended is None:
            self.ended = final
            self.state = final.state
            self._save(final)
            self.changed.fire()
        return self.ended

    async def until_done(self, timeout: float | None) -> JobRecord:
        until = None if timeout is None else clock.now() + timeout
        while self.ended is None:
            left = None if until is None else until - clock.now()
            if left is not None and left <= 0:
                break
            await self.changed.wait(left)
        return self.record()


async def _durable(directory: Path, record: JobRecord) -> None:
    """Write the state here while the disk answers at once, in a thread for a while after it did not."""
    loop = asyncio.get_running_loop()
    if loop.time() < _slow_until[0]:
        await loop.run_in_executor(None, records.write_state, directory, record)
        return
    began = loop.time()
    records.write_state(directory, record)
    if loop.time() - began > _SLOW_DISK:
        _slow_until[0] = loop.time() + _BESIDE_FOR


class Hosted(Job):
    """A job whose work runs in the process of a tool host. We hold its log and its ending."""

    def __init__(self, record: JobRecord, directory: Path, *, timeout: float | None, save: Save) -> None:
        super().__init__(record, directory, log_limit=256 << 20, save=save, lease=None)
        self.timeout = timeout
        self._asked = False

    def progress(self, progress: dict[str, Any]) -> None:
        self.base = replace(self.base, progress=progress)
        self.changed.fire()

    async def finish(self, *, result: Any, error: dict[str, Any] | None, cause: Cause | None) -> JobRecord:
        """See `Executor.finish_hosted`."""
        if self.ended is not None:
            return self.ended
        cause = self.cause or cause
        state: JobState = "killed" if cause is not None else "exited"
        code = None if cause is not None else int(error is not None)
        return await self._end(state, exit_code=code, cause=cause, result=result, error=error)

    async def lose(self) -> None:
        if self.ended is None:
            await self._end("lost", reason="host_lost")

    @override
    def bounds(self) -> list[tuple[float, Cause]]:
        return [] if self.timeout is None else [(self.began + self.timeout, "timeout")]

    @override
    async def terminate(self, *, grace: float, cause: Cause) -> JobRecord:
        """Ask by state `killing`; a host that does not finish the job within *grace* finds it ended."""
        if self.ended is not None:
            return self.ended
        if self.cause is None:
            self.cause = cause
        if self.state not in TERMINAL and self.state != "killing":
            self.move("killing")
        self.spawn(self._end_after(grace))
        return await self.until_done(grace + 5.0)

    async def _end_after(self, grace: float) -> None:
        if not (await self.until_done(grace)).done:
            await self._end("killed", cause=self.cause)

    async def _end(self, state: JobState, **changes: Any) -> JobRecord:
        if self._asked:
            return await self.until_done(None)
        self._asked = True
        cause = changes.setdefault("cause", self.cause)
        final = replace(
            self.record(),
            state=state,
            shell_status=changes.get("exit_code"),
            ended_at=time.time(),
            timed_out=cause in ("timeout", "idle_timeout"),
            cancelled=cause == "cancelled",
            **changes,
        )
        return await self.publish(final)
