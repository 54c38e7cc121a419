"""The jobs of one server as its functions show them: states, queue, unread output, the footer.

Records belong to the executor and outlive this process; what is here is a view of them, the queue of what may not
run yet, and how far this server's readers have read. A job that must wait gets its handle at once from a *ticket*, a
hosted job without work; when its command starts, the ticket ends and names it, so the handle stays good, also for
the next process.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from typing_extensions import TypedDict

from toolhost.tools.log_access import LogAccess
from toolhost.tools.logs import Piece, read_piece, whole_view
from toolhost.tools.rendering import Masker, Reader, ending, one_line, seconds, size
from toolhost_sdk.endpoints.envelope import to_envelope
from toolhost_sdk.errors import CapacityError, ConflictError, GoneError, NotFoundError, ToolhostError
from toolhost_sdk.node.port import Cause, CommandSpec, Executor, JobRecord

ToolState = Literal["queued", "running", "succeeded", "failed", "cancelled", "timed_out"]
LONGEST_WAIT = 45.0  # many clients give up at 60 s
MOST_LIVE, WARN_LIVE = 64, 56
_TICKET = "toolhost/started_as"
LISTED = 50  # ended jobs in a list
_NEWS = 8_000  # characters of new output in a status


class JobError(TypedDict):
    code: str
    message: str


class JobStatus(TypedDict):
    """One job as the model sees it."""

    job_id: str
    state: ToolState
    done: bool
    label: str
    seconds: float
    output: str  # what is new since this server last showed some
    next_offset: int
    result: dict[str, Any] | None
    error: JobError | None
    progress: dict[str, Any] | None
    hint: str
    running: list[str]


class JobLine(TypedDict):
    """One row of a list of jobs."""

    job_id: str
    state: ToolState
    label: str
    seconds: float
    age: float
    unread_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInfo:
    """A job that was submitted: its executor id and the handle people say."""

    id: str
    handle: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class _Waiting:
    ticket: JobRecord
    start: Callable[[], Awaitable[JobRecord]]


class JobBook:
    """The jobs of one session.

    Args:
        max_running: how many run at once; further ones wait. None: commands are waited for by their callers, and only
            those that go on without one are named (`name`).
        function: prefix of the functions that follow a job (`run` for `run_status`).
    """

    def __init__(
        self, executor: Executor, session: str, *, masker: Masker, max_running: int | None = None,
        function: str = "run",
    ) -> None:  # fmt: skip
        self.executor = executor
        self.session = session
        self.masker = masker
        self.function = function
        self._max_running = max_running
        self._running: set[str] = set()
        self._queue: list[_Waiting] = []
        self._latest: str | None = None  # handle of the latest job that this process started
        self._seen: dict[str, int] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._named: set[str] = set()  # ids of jobs somebody may follow, until they are seen to have ended
        self._handles: dict[str, str] = {}  # what commands that waited are called: their tickets' handles

    # -- finding -------------------------------------------------------------------------------------------------

    async def find(self, handle: str | None) -> JobRecord:
        """The job with *handle*, or the latest one. Raises NotFoundError naming the live ones."""
        handle = handle or self._latest
        if handle is None:
            records = await self.all()
            if not records:
                raise NotFoundError(f"server {self.session!r} has no jobs yet")
            return records[-1]
        try:
            return await self._followed(await self.executor.find(self.session, handle))
        except GoneError:
            raise
        except NotFoundError:
            live = [record.handle for record in await self.live()]
            words = f"live are {', '.join(live)}" if live else "no job is live"
            raise NotFoundError(f"no job {handle!r} here; {words}") from None

    async def all(self) -> list[JobRecord]:
        """Every job that is on record, oldest first; tickets are shown as what they became."""
        records = await self.executor.jobs(session=self.session)
        names = {target: ticket for ticket in records if (target := _started_as(ticket))}
        named = [
            replace(record, handle=names[record.id].handle) if record.id in names else record
            for record in records
            if not _started_as(record)
        ]
        return sorted(named, key=lambda record: _number(record.handle))

    async def live(self) -> list[JobRecord]:
        """Named jobs that have not ended. Asks nobody while there are none."""
        if not self._named:
            return []
        records = await self.executor.jobs(session=self.session, live=True)
        self._named &= {record.id for record in records}
        named = [
            replace(record, handle=self._handles.get(record.id, record.handle))
            for record in records
            if record.id in self._named
        ]
        return sorted(named, key=lambda record: _number(record.handle))

    async def adopt(self) -> None:
        """Take over what earlier processes of this server started."""
        for record in await self.all():
            if not record.done:
                self.name(record)
                self._hold(record.id, self._until_done(record.id))

    def name(self, record: JobRecord) -> None:
        """The job's handle is out: it is listed until it ends."""
        self._named.add(record.id)
        self._handles[record.id] = record.handle

    async def _followed(self, record: JobRecord) -> JobRecord:
        target = _started_as(record)
        return record if not target else replace(await self.executor.record(target), handle=record.handle)

    # -- starting and ending -------------------------------------------------------------------------------------

    async def start_command(self, spec: CommandSpec, *, key: str | None = None) -> JobInfo:
        """Start a command, or queue it while `max_running` jobs run. *key*: see `Executor.start`."""

        async def start() -> JobRecord:
            return await self._start_now(spec, key)

        return await self._start_or_queue(spec.label, start)

    async def start_hosted(
        self, label: str, timeout: float | None, work: Callable[[JobRecord], Awaitable[None]]
    ) -> JobInfo:
        """Run *work* as a job of this process, at once or when a place is free."""

        async def start() -> JobRecord:
            record = await self.executor.open_hosted(self.session, label=label, timeout=timeout)
            self._hold(record.id, work(record))
            return record

        return await self._start_or_queue(label, start)

    async def _start_or_queue(self, label: str, start: Callable[[], Awaitable[JobRecord]]) -> JobInfo:
        if len(self._named) >= MOST_LIVE and (live := len(await self.live())) >= MOST_LIVE:
            raise CapacityError(
                f"server {self.session!r} already has {live} live jobs, its limit is {MOST_LIVE}: cancel one first"
            )
        if not self._full():
            record = await start()
        else:
            record = await self.executor.open_hosted(self.session, label=label)
            self._queue.append(_Waiting(record, start))
        self._latest = record.handle
        if self._max_running is not None:
            self.name(record)
        return JobInfo(id=record.id, handle=record.handle, label=label)

    async def _start_now(self, spec: CommandSpec, key: str | None = None) -> JobRecord:
        record = await self.executor.start(spec, key=key)
        if not record.done and self._max_running is not None:
            self._hold(record.id, self._until_done(record.id))
        return record

    async def _until_done(self, job: str) -> None:
        while not (await self.executor.wait(job, timeout=3600.0)).done:
            pass

    def _hold(self, job: str, work: Awaitable[None]) -> None:
        """Let *job* take a place until *work* is done."""
        self._running.add(job)

        async def held() -> None:
            try:
                await work
            finally:
                self._running.discard(job)
                await self._start_waiting()

        self._keep(asyncio.get_running_loop().create_task(held()))

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _full(self) -> bool:
        return self._max_running is not None and len(self._running) >= self._max_running

    async def _start_waiting(self) -> None:
        while self._queue and not self._full():
            waiting = self._queue.pop(0)
            try:
                record = await waiting.start()
            except ToolhostError as error:
                await self.executor.finish_hosted(waiting.ticket.id, error=to_envelope(error))
            else:
                self.name(replace(record, handle=waiting.ticket.handle))
                await self.executor.finish_hosted(waiting.ticket.id, result={_TICKET: record.id})

    def is_queued(self, record: JobRecord) -> bool:
        return any(waiting.ticket.id == record.id for waiting in self._queue)

    async def wait(self, record: JobRecord, wait_seconds: float) -> JobRecord:
        """Wait until the job is done or the time is up. Holds no thread."""
        until = time.monotonic() + min(max(wait_seconds, 0.0), LONGEST_WAIT)
        handle = record.handle
        while True:
            left = max(until - time.monotonic(), 0.0)
            record = await self.executor.wait(record.id, timeout=left)
            target = _started_as(record)  # a ticket ended: on to what it stood for
            if target is None:
                return replace(record, handle=handle)
            record = await self.executor.record(target)

    async def cancel(self, record: JobRecord, cause: Cause = "cancelled") -> JobRecord:
        """End the tree; a job that waits never starts. Idempotent."""
        if self.is_queued(record):
            self._queue = [waiting for waiting in self._queue if waiting.ticket.id != record.id]
            return await self.executor.finish_hosted(record.id, cause=cause)
        return replace(await self.executor.terminate(record.id, cause=cause), handle=record.handle)

    async def end_all(self) -> None:
        """Cancel every job of the session: the server stops."""
        live = await self.executor.jobs(session=self.session, live=True)
        self._queue, queued = [], self._queue
        waiting = {entry.ticket.id for entry in queued}
        await asyncio.gather(
            *(self.executor.finish_hosted(ticket, cause="server_stopped") for ticket in waiting),
            *(
                self.executor.terminate(record.id, cause="server_stopped")
                for record in live
                if record.id not in waiting
            ),
        )
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        for task in self._tasks:
            task.cancel()

    # -- showing -------------------------------------------------------------------------------------------------

    def log(self, record: JobRecord) -> LogAccess:
        reader = Reader(function=f"{self.function}_output", job=record.handle)
        return LogAccess(executor=self.executor, record=record, masker=self.masker, reader=reader)

    def mark_seen(self, record: JobRecord, offset: int) -> None:
        self._seen[record.id] = max(self._seen.get(record.id, 0), offset)

    def unread(self, record: JobRecord) -> int:
        return max(record.size - self._seen.get(record.id, 0), 0)

    async def read(self, record: JobRecord, piece: Piece, *, limit: int) -> str:
        text, seen = await read_piece(self.log(record), piece, limit=limit)
        self.mark_seen(record, seen)
        return text

    async def status(self, record: JobRecord) -> JobStatus:
        """The record in words and fields, with the output nobody has seen yet."""
        queued = self.is_queued(record)
        start = min(self._seen.get(record.id, 0), record.size)
        log = self.log(record)
        end = max(start, await log.shown_end()) if record.size > start else start
        news = await whole_view(log, limit=_NEWS, start=start, end=end) if end > start else None
        self.mark_seen(record, end)
        state = tool_state(record, queued=queued)
        return JobStatus(
            job_id=record.handle,
            state=state,
            done=record.done,
            label=self.masker.mask(record.label),
            seconds=round(record.duration or 0.0, 3),
            output=news.text if news else "",
            next_offset=end,
            result=_result(record) if record.done else None,
            error=_error(record, state),
            progress=dict(record.progress) if record.progress else None,
            hint=self._hint(record, state),
            running=[self._line(other) for other in await self.live() if other.id != record.id],
        )

    def _hint(self, record: JobRecord, state: ToolState) -> str:
        name = self.function
        if state == "queued":
            return f"waits for a free place; {name}_status waits with it, {name}_cancel ends it"
        if not record.done:
            stdin = " It waits for input that will not come: cancel it." if record.waiting_on_stdin else ""
            return f"still running; {name}_status waits for it, {name}_output reads its output.{stdin}"
        words = [ending(record)]
        words += [
            f"{gap.end - gap.start} bytes of output were not kept ({gap.reason})" for gap in record.gaps
        ]
        if record.leftovers:
            words.append(f"ended with it: {', '.join(record.leftovers)}")
        if not record.size:
            words.append("no output")
        return "; ".join(words)

    async def listed(self) -> list[JobLine]:
        """Live jobs and the latest ended ones."""
        now = time.time()
        records = await self.all()
        recent = {record.id for record in records[-LISTED:]}
        return [
            JobLine(
                job_id=record.handle,
                state=tool_state(record, queued=self.is_queued(record)),
                label=self.masker.mask(record.label),
                seconds=round(record.duration or 0.0, 1),
                age=round(now - (record.started_at or now), 1),
                unread_bytes=self.unread(record),
            )
            for record in records
            if record.id in recent or not record.done
        ]

    async def footer(self, *, but: str = "") -> str:
        """`running: job-5 "npm run dev" 3 m, +14 KiB unread; ...`, empty when nothing runs."""
        live = [record for record in await self.live() if record.id != but]
        if not live:
            return ""
        words = "; ".join(map(self._line, live))
        warning = f" ({len(live)} of at most {MOST_LIVE}: end some)" if len(live) >= WARN_LIVE else ""
        return f"running: {words}{warning}"

    def _line(self, record: JobRecord) -> str:
        label = one_line(" ".join(record.label.split()))
        short = label if len(label) <= 40 else f"{label[:39]}…"
        words = f"{record.handle} {json.dumps(self.masker.mask(short), ensure_ascii=False)}"
        words += " queued" if self.is_queued(record) else f" {seconds(record.duration or 0.0)}"
        if unread := self.unread(record):
            words += f", +{size(unread)} unread"
        return f"{words}, waiting on stdin" if record.waiting_on_stdin else words


def tool_state(record: JobRecord, *, queued: bool = False) -> ToolState:
    """The view of a record that job functions show. One table, no other place decides."""
    if not record.done:
        return "queued" if queued else "running"
    if record.timed_out:
        return "timed_out"
    if record.cancelled or record.cause == "server_stopped":
        return "cancelled"
    return "succeeded" if record.state == "exited" and record.exit_code == 0 else "failed"


def _error(record: JobRecord, state: ToolState) -> JobError | None:
    if state != "failed":
        return None
    if record.error is not None:
        return JobError(code=str(record.error.get("code")), message=str(record.error.get("message")))
    if record.state == "lost":
        return JobError(code="host_lost", message=f"the job was lost: {record.reason}; nobody saw its end")
    if record.state == "start_failed":
        return JobError(code=str(record.start_error), message=record.message or ending(record))
    return JobError(code="oom" if record.oom_killed else "exit", message=ending(record))


def _result(record: JobRecord) -> dict[str, Any] | None:
    if record.kind == "hosted":
        return (
            record.result
            if isinstance(record.result, dict) or record.result is None
            else {"value": record.result}
        )
    return {"exit_code": record.exit_code, "signal": record.signal}


def _started_as(record: JobRecord) -> str | None:
    result = record.result if record.kind == "hosted" else None
    return result.get(_TICKET) if isinstance(result, dict) else None


def _number(handle: str) -> int:
    return int(handle.rpartition("-")[2])


def check_idle(book: JobBook | None) -> JobBook:
    """The book of a started server. Raises ConflictError before `start`."""
    if book is None:
        raise ConflictError("the server has not started: jobs exist in a tool host only")
    return book
