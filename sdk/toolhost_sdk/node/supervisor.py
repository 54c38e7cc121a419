"""The executor in the warden's own process: every method of the port over live jobs and stored records.

Rules of this file: one event loop; nothing waits for a reader; a job is registered before anything exists that would
have to be ended with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from toolhost_sdk.errors import ConflictError, GoneError, NoSpaceError, NotFoundError
from toolhost_sdk.node import checks, clock, logstore, plans, reading
from toolhost_sdk.node.command import Command
from toolhost_sdk.node.containment import Containment
from toolhost_sdk.node.job import Hosted, Job
from toolhost_sdk.node.leases import Leases
from toolhost_sdk.node.places import Places, no_room
from toolhost_sdk.node.port import (
    TERMINAL,
    Cause,
    CommandSpec,
    Executor,
    JobRecord,
    Lease,
    OutputChunk,
    Stream,
)
from toolhost_sdk.node.records import Records
from toolhost_sdk.node.spawner import Init, Spawner

log = logging.getLogger(__name__)

READ_AT_MOST = 4 << 20
LIST_AT_MOST = 1 << 30
WAIT_AT_MOST = 3600.0


class Supervisor(Executor):
    """Made and closed by `warden.serve`.

    Args:
        cwd: where commands start that name no directory.
        retention: seconds a log is kept after its job's end.
        quota: bytes all logs may hold before starts are refused.
        hidden: directories that read-only commands do not see.
    """

    def __init__(
        self, home: Path, records: Records, containment: Containment, *, cwd: str,
        retention: float = 86400.0, quota: int = 16 << 30, hidden: Sequence[Path] = (),
    ) -> None:  # fmt: skip
        self.home = home
        self.hidden = hidden
        self.stored = records
        self.containment = containment
        self.live: dict[str, Job | None] = {}  # None while it is being made
        self.leases = Leases(records, self._lease_ended)
        self.retention = retention
        self.quota = quota
        self.used = 0  # bytes in logs of ended jobs, by the last sweep
        self.unsaved: dict[str, JobRecord] = {}
        self._places = Places(home / "jobs")
        self._spawner = Spawner(containment, self._places, self.live)
        self._cwd = cwd
        self._user = pwd.getpwuid(os.getuid()).pw_name if _has_account() else str(os.getuid())
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._keys: dict[str, asyncio.Future[str]] = {}
        self._closing = False

    def open(self) -> None:
        """Start the zygote."""
        self._spawner.open()

    def tend(self) -> None:
        """Reap what reached this process."""
        self._spawner.tend()

    def directory(self, job: str) -> Path:
        return self.home / "jobs" / job

    # -- starting ------------------------------------------------------------------------------------------------

    @override
    async def start(
        self, spec: CommandSpec, *, key: str | None = None, given: int | None = None, nameless: bool = False
    ) -> JobRecord:
        """See the port.

        Args:
            given: a descriptor whose file becomes stdin; it is closed in every case.
            nameless: the key was made for this one call, so a cancelled call leaves nobody who could name the job.
        """
        try:
            checks.check_spec(spec)
            if key is not None and (known := await self._known(key)) is not None:
                return known
            if spec.lease is not None:
                self.leases.check(spec.lease)
            if key is not None:
                self._keys[key] = asyncio.get_running_loop().create_future()
            try:
                job = await self._start(spec, key, given)
            finally:
                if key is not None and not (waiting := self._keys.pop(key)).done():
                    waiting.set_result(key)
        finally:
            if given is not None:
                os.close(given)
        try:
            while not job.launched.is_set():
                await job.changed.wait(None)
        except asyncio.CancelledError:
            if key is None or nameless or spec.tied:  # what nobody can name is cancelled
                job.spawn(job.terminate(grace=0, cause="cancelled"))
            raise
        return job.record()

    async def abandon(self, key: str) -> None:
        """End the job of a start whose caller went away before the answer reached it."""
        found = self.stored.by_key(key)
        job = None if found is None else self._live(found)
        if job is not None:
            job.spawn(job.terminate(grace=0, cause="cancelled"))

    async def _known(self, key: str) -> JobRecord | None:
        if key in self._keys:
            await asyncio.wait([self._keys[key]])
        found = self.stored.by_key(key)
        if found is None:
            return None
        job = self.live.get(found)
        while isinstance(job, Command) and not job.launched.is_set():
            await job.changed.wait(None)
        return await self.record(found)

    async def _start(self, spec: CommandSpec, key: str | None, given: int | None) -> Command:
        if self._closing:
            raise ConflictError("the warden is ending; start it again")
        if self.used > self.quota:
            raise NoSpaceError(
                f"logs hold {self.used} bytes, more than the quota of {self.quota}; see `retention`"
            )
        init = await self._spawner.take()
        try:
            job = self._make(spec, key, init, given)
        except OSError as error:
            self._spawner.discard(init)
            raise no_room(error) from error
        except BaseException:
            self._spawner.discard(init)
            raise
        self.live[job.base.id] = job
        self._watch_clocks(job)
        if self._closing:
            job.spawn(job.terminate(grace=0, cause="server_stopped"))
        elif spec.lease is not None and not self.leases.runs(spec.lease):
            job.spawn(job.terminate(grace=0, cause="lease_ended"))
        return job

    def _make(self, spec: CommandSpec, key: str | None, init: Init, given: int | None) -> Command:
        """A job that was sent off. Raises OSError or NoSpaceError, having left nothing but what *init* holds."""
        record = JobRecord(
            id=init.job,
            session=spec.session,
            handle="",
            label=spec.label,
            kind="command",
            state="starting",
            started_at=time.time(),
            user=spec.user or self._user,
            cwd=spec.cwd or self._cwd,
            timeout=spec.timeout,
            containment=self.containment.ranks(init.job),
        )
        plans.describe(self.directory(record.id), record, spec)
        groups, refused = self.containment.prepare(record.id, spec)
        label = self.containment.label(record.id)
        plan = plans.plan(record, spec, label=label, groups=groups, refused=refused, hidden=self.hidden)
        job = Command(
            record, self.directory(record.id), spec=spec, init=init, end_tree=self.containment.end,
            give_back=self._spawner.give_back, save=self.save, given=given,
        )  # fmt: skip
        try:
            job.base = self.stored.insert(record, key=key, lease=spec.lease, boot=clock.BOOT_ID)
            job.launch(plan, self._null)
        except BaseException:
            job.log.close()
            with contextlib.suppress(NoSpaceError):  # a sweep will call it lost
                self.stored.delete(record.id)
            raise
        return job

    def _watch_clocks(self, job: Job) -> None:
        due = job.check_clocks()
        if due is not None:
            # Short timers only: the boot clock runs on in suspend, the loop's clock does not.
            delay = min(max(0.0, due - clock.now()) + 0.001, 10.0)
            job.timer = asyncio.get_running_loop().call_later(delay, self._watch_clocks, job)

    def save(self, record: JobRecord) -> None:
        try:
            self.stored.update(record)
            self.unsaved.pop(record.id, None)
        except NoSpaceError:
            log.exception("the record of job %s is kept in memory until the disk takes it", record.id)
            self.unsaved[record.id] = record
        if record.state in TERMINAL and record.id not in self.unsaved:
            self.live.pop(record.id, None)

    # -- looking -------------------------------------------------------------------------------------------------

    def _stored(self, job: str) -> JobRecord:
        found = self.stored.get(job)
        if found is None:
            raise NotFoundError(f"no job {job!r}")
        record, gone = found
        if gone:
            hours = self.retention / 3600
            raise GoneError(
                f"job {record.handle!r} ended more than {hours:g} hours ago; its log was kept that long and is gone"
            )
        return record

    def _live(self, job: str) -> Job | None:
        return self.live.get(job)

    @override
    async def record(self, job: str) -> JobRecord:
        found = self._live(job)
        return self._stored(job) if found is None else found.record()

    @override
    async def read(
        self,
        job: str,
        *,
        offset: int = 0,
        limit: int = 65536,
        stream: Stream | None = None,
        wait: float = 0.0,
    ) -> OutputChunk:
        checks.check_range("limit", limit, 1, READ_AT_MOST)
        checks.check_range("offset", offset, 0, 1 << 62)
        waiting = clock.seconds(min(wait, WAIT_AT_MOST), "wait", zero=True) or 0.0
        found = self._live(job)
        if found is not None:
            await self._until_news(found, offset, waiting)
            size, state, done = found.log.size, found.state, found.ended is not None
            segments, gaps = found.segments, found.gaps()
        else:
            record = self._stored(job)
            size, state, done, gaps = record.size, record.state, record.done, record.gaps
            segments = logstore.stored_segments(self.directory(job))
        return reading.chunk(
            self.directory(job), reading.Extent(segments=segments, gaps=gaps, size=size, state=state, done=done),
            offset=offset, limit=limit, stream=stream,
        )  # fmt: skip

    async def _until_news(self, job: Job, offset: int, wait: float) -> None:
        until = clock.now() + wait
        state = job.state
        while offset >= job.log.size and job.state == state and job.ended is None:
            left = until - clock.now()
            if left <= 0 or not await job.changed.wait(left):
                return

    @override
    async def wait(self, job: str, *, timeout: float | None = None) -> JobRecord:
        bound = clock.seconds(timeout, "timeout", zero=True)
        found = self._live(job)
        return self._stored(job) if found is None else await found.until_done(bound)

    @override
    async def find(self, session: str, handle: str) -> JobRecord:
        job = self.stored.by_handle(session, handle)
        if job is None:
            live = [record.handle for record in await self.jobs(session=session, live=True)]
            words = f"live are {', '.join(live)}" if live else "no job is live"
            raise NotFoundError(f"no job {handle!r} in session {session!r}; {words}")
        return await self.record(job)

    @override
    async def jobs(
        self, *, session: str | None = None, live: bool = False, limit: int | None = None
    ) -> list[JobRecord]:
        if limit is not None:
            checks.check_range("limit", limit, 1, LIST_AT_MOST)
        listed = self.stored.listed(session=session, live=live, limit=limit)
        current = [
            job.record() if (job := self._live(record.id)) is not None else record for record in listed
        ]
        return [record for record in current if not (live and record.done)]

    @override
    async def read_report(self, job: str) -> bytes | None:
        await self.record(job)
        try:
            return (self.directory(job) / "report").read_bytes()
        except FileNotFoundError:
            return None

    # -- acting --------------------------------------------------------------------------------------------------

    @override
    async def signal(self, job: str, signal: int) -> None:
        checks.check_range("signal", signal, 1, 64)
        found = self._live(job)
        if found is None:
            self._stored(job)
        elif isinstance(found, Command):
            found.signal(signal)
        else:
            raise ConflictError(
                f"job {found.base.handle!r} runs in its tool host, which takes no signals; cancel it"
            )

    @override
    async def terminate(
        self, job: str, *, grace: float | None = None, cause: Cause = "cancelled"
    ) -> JobRecord:
        checked = clock.seconds(grace, "grace", zero=True)
        found = self._live(job)
        if found is None:
            return self._stored(job)
        if checked is None:
            checked = found.spec.grace if isinstance(found, Command) else 2.0
        return await found.terminate(grace=checked, cause=cause)

    @override
    async def untie(self, job: str) -> None:
        command = self._command(job)
        if command is not None:
            command.tied = False

    async def owner_gone(self, job: str) -> None:
        """The connection that started a tied job ended."""
        found = self._live(job)
        if isinstance(found, Command) and found.tied:
            found.base = replace(found.base, reason="owner_gone")
            await found.terminate(grace=found.grace, cause="cancelled")

    def _command(self, job: str) -> Command | None:
        found = self._live(job)
        if found is None:
            self._stored(job)
        return found if isinstance(found, Command) else None

    @override
    async def write_stdin(self, job: str, data: bytes, *, offset: int | None = None) -> int:
        command = self._command(job)
        if command is None or command.stdin is None:
            raise ConflictError(f"stdin of job {job!r} is not open; start it with stdin='pipe'")
        return await command.stdin.write(data, offset=offset)

    @override
    async def close_stdin(self, job: str) -> None:
        command = self._command(job)
        if command is not None and command.stdin is not None:
            command.stdin.close()

    # -- hosted jobs ---------------------------------------------------------------------------------------------

    @override
    async def open_hosted(self, session: str, *, label: str = "", timeout: float | None = None) -> JobRecord:
        bound = clock.seconds(timeout, "timeout")
        checks.check_session(session)
        record = JobRecord(
            id=self._places.make(), session=session, handle="", label=label, kind="hosted", state="starting",
            started_at=time.time(), timeout=bound,
        )  # fmt: skip
        try:
            job = Hosted(record, self.directory(record.id), timeout=bound, save=self.save)
        except OSError as error:
            self._places.drop(record.id)
            raise no_room(error) from error
        try:
            job.base = self.stored.insert(record, key=None, lease=None, boot=clock.BOOT_ID)
        except BaseException:
            job.log.close()
            self._places.drop(record.id)
            raise
        self.live[record.id] = job
        job.move("running")
        self._watch_clocks(job)
        return job.record()

    def _hosted(self, job: str) -> Hosted:
        found = self._live(job)
        if not isinstance(found, Hosted):
            record = self._stored(job) if found is None else found.record()
            raise ConflictError(f"job {record.handle!r} is {record.state}, not a running hosted job")
        return found

    @override
    async def append_hosted(self, job: str, data: bytes, *, stream: Stream = "stdout") -> None:
        self._hosted(job).write(stream, data)

    @override
    async def progress_hosted(self, job: str, progress: Mapping[str, Any]) -> None:
        self._hosted(job).progress(dict(progress))

    @override
    async def finish_hosted(
        self,
        job: str,
        *,
        result: Any = None,
        error: Mapping[str, Any] | None = None,
        cause: Cause | None = None,
    ) -> JobRecord:
        found = self._live(job)
        if found is None:
            return self._stored(job)
        return await self._hosted(job).finish(
            result=result, error=None if error is None else dict(error), cause=cause
        )

    async def lose_hosted(self, job: str) -> None:
        """The connection of the job's host ended."""
        if isinstance(found := self._live(job), Hosted):
            await found.lose()

    # -- leases and the end --------------------------------------------------------------------------------------

    @override
    async def open_lease(self, owner: str, *, ttl: float = 60.0, max_life: float | None = None) -> Lease:
        return self.leases.open(owner, ttl=ttl, max_life=max_life)

    @override
    async def renew(self, lease: str) -> Lease:
        return self.leases.renew(lease)

    @override
    async def release(self, lease: str, *, cause: Cause = "lease_ended") -> None:
        await self.leases.release(lease, cause)

    async def _lease_ended(self, lease: str, cause: Cause) -> None:
        held = [job for job in self.live.values() if job is not None and job.lease == lease]
        await asyncio.gather(*(job.terminate(grace=2.0, cause=cause) for job in held))

    async def end_all(self, cause: Cause) -> None:
        """End every job; no further start is taken."""
        self._closing = True
        held = [job for job in self.live.values() if job is not None]
        await asyncio.gather(*(job.terminate(grace=2.0, cause=cause) for job in held))

    @override
    async def manifest(self) -> dict[str, Any]:
        return {
            **self.containment.manifest(),
            "namespace": self.containment.namespace,
            "generation": self.containment.generation,
            "pid": os.getpid(),
            "zygote_pid": self._spawner.zygote_pid,
            "live_jobs": sum(job is not None for job in self.live.values()),
            "retention": self.retention,
            "log_quota": self.quota,
            "default_cwd": self._cwd,
        }

    @override
    async def aclose(self) -> None:
        """Jobs of this process end with the warden; this only lets go of what is kept in stock."""
        await self._spawner.aclose()
        if self._null >= 0:
            os.close(self._null)
            self._null = -1


def _has_account() -> bool:
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True
