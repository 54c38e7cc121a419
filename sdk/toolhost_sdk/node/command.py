"""One command: its pipes, its init, its bounds, its ending.

Rules of this file: the leader's exit ends the command, not the end of its pipes; what is shown as ended has an empty
tree; every wait here has a bound or waits for the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from toolhost_sdk.node import clock, endings, procfs
from toolhost_sdk.node.job import Job, Save
from toolhost_sdk.node.port import Cause, CommandSpec, JobRecord, StartError, Stream
from toolhost_sdk.node.spawner import Init
from toolhost_sdk.node.stdin import StdinPipe, given_stdin

log = logging.getLogger(__name__)

CHUNK = 65536
QUIET = 0.1
DRAIN_AT_MOST = 1.0
REPORT_LIMIT = 1 << 20
FINAL_DRAIN = 4 << 20
_ANSWERED_AFTER = 0.002
_OBEYS_WITHIN = 0.5
READ_NUMBER = {"x86_64": 0}.get(os.uname().machine, 63)  # of the system call; 63 is the generic table's
EndTree = Callable[[str], Awaitable[bool]]


class Command(Job):
    """One command: its pipes, its init, its bounds."""

    def __init__(
        self,
        record: JobRecord,
        directory: Path,
        *,
        spec: CommandSpec,
        init: Init,
        end_tree: EndTree,
        give_back: Callable[[Init], None],
        save: Save,
        given: int | None = None,
    ) -> None:
        super().__init__(record, directory, log_limit=spec.log_limit, save=save, lease=spec.lease)
        self.spec = spec
        self.grace = spec.grace
        self.tied = spec.tied
        self.init = init
        self._end_tree = end_tree
        self._give_back = give_back
        self.launched = asyncio.Event()
        self.emptied = asyncio.Event()
        self.report: bytes | None = None
        self._loop = asyncio.get_running_loop()
        self._pipes: dict[int, Stream] = {}
        self._drained = asyncio.Event()
        self.stdin: StdinPipe | None = None
        self._given = given  # a descriptor whose file becomes stdin; whoever gave it closes it
        self._report_fd = -1
        self._refusals = -1  # readable when the start is settled, see `Init.start`
        self._report = bytearray()
        self._report_lost = False
        self._start_error: StartError | None = None
        self._status: int | None = None
        self._lost: str | None = None
        self._exited = False
        self._cpu, self._rss, self._oom = 0.0, 0, 0
        self._leftovers: tuple[str, ...] = ()
        self._stuck: tuple[int, ...] = ()
        init.on_message = self._heard
        init.on_end = self._init_ended

    def launch(self, plan: dict[str, Any], null: int) -> None:
        """Make the pipes and send the plan. Raises OSError when descriptors or room for a large input run out."""
        theirs: list[int] = []
        try:
            theirs.append(self._open_stdin(null))
            for stream in ("stdout", "stderr"):
                read, write = os.pipe2(os.O_CLOEXEC)
                theirs.append(write)
                os.set_blocking(read, False)
                self._pipes[read] = "stdout" if stream == "stdout" else "stderr"
                self._loop.add_reader(read, self._readable, read)
            if self.spec.state_file:
                self._report_fd, write = os.pipe2(os.O_CLOEXEC)
                theirs.append(write)
                os.set_blocking(self._report_fd, False)
                self._loop.add_reader(self._report_fd, self._report_readable)
            self._refusals = self.init.start(plan, theirs)
            self._loop.add_reader(self._refusals, self._settle_start)
        except OSError:
            self._close_all()
            raise
        finally:
            for fd in theirs:
                if fd not in (null, self._given):
                    os.close(fd)
            self._given = None

    def _open_stdin(self, null: int) -> int:
        if self._given is not None:
            return self._given
        if self.spec.stdin is None:
            return null
        if self.spec.stdin == "pipe":
            read, self.stdin = StdinPipe.open(self.base.handle)
            return read
        assert isinstance(self.spec.stdin, bytes)
        return given_stdin(self.spec.stdin)

    def _readable(self, fd: int) -> None:
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.write(self._pipes[fd], data)
            if self.log.limited and self.spec.on_log_limit == "kill" and self.cause is None:
                self.spawn(self.terminate(grace=self.spec.grace, cause="log_limit"))
            return
        self._close_pipe(fd)

    def _close_pipe(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        os.close(fd)
        del self._pipes[fd]
        if not self._pipes:
            self._drained.set()

    def _report_readable(self) -> None:
        try:
            data = os.read(self._report_fd, CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._report_fd)
            os.close(self._report_fd)
            self._report_fd = -1
            return
        if len(self._report) + len(data) > REPORT_LIMIT:
            self._report_lost = True
        else:
            self._report += data

    def _read_rest(self) -> None:
        """What already lies in the pipes; bounded, since a stranger may still hold their other ends."""
        budget = self.log.size + FINAL_DRAIN
        for fd in list(self._pipes):
            before = -1
            while fd in self._pipes and self.log.size != before and self.log.size < budget:
                before = self.log.size
                self._readable(fd)
        seen = -1
        while self._report_fd >= 0 and len(self._report) != seen and not self._report_lost:
            seen = len(self._report)
            self._report_readable()

    def _heard(self, message: dict[str, Any]) -> None:
        match message["t"]:
            case "exit":
                self._settle_start()
                self._status = message["status"]
                self._exited = True
                if self.stdin is not None:
                    self.stdin.close()
                self._measure(message)
                self.spawn(self._after_exit())
            case "empty":
                self._measure(message)
            case "stuck":
                self._stuck = tuple(message["pids"])
                if self.state in ("running", "background"):
                    self.move("killing")
        self.changed.fire()

    def _settle_start(self) -> None:
        """Exec closed the pipe, or the launcher wrote why it could not start."""
        if self._refusals < 0:
            return
        try:
            data = os.read(self._refusals, CHUNK)
        except BlockingIOError:
            return
        self._close_refusals()
        if data:
            refusal = json.loads(data)
            self._start_error = refusal["error"]
            self.base = replace(self.base, start_error=refusal["error"], message=refusal["message"])
        else:
            self.base = replace(self.base, pid=self.init.leader)
            if self.state == "starting":
                self.move("running")
            self.launched.set()
        self.changed.fire()

    def _close_refusals(self) -> None:
        if self._refusals >= 0:
            self._loop.remove_reader(self._refusals)
            os.close(self._refusals)
            self._refusals = -1

    def _measure(self, message: dict[str, Any]) -> None:
        self._cpu, self._rss, self._oom = message["cpu"], message["rss"], message["oom"]
        if message["empty"]:
            self.emptied.set()

    def _init_ended(self) -> None:
        """The init died before its tree: nobody waited for the leader."""
        if self.ended is None and not self.emptied.is_set():
            self.spawn(self._lose("supervisor_exited"))

    async def _lose(self, reason: str) -> None:
        if not self._exited:
            self._lost = reason
        self._exited = True
        while not await self._end_tree(self.base.id):
            if self.state in ("running", "background"):
                self.move("killing")
        self.emptied.set()
        if self._lost is not None:
            await self._finish()

    async def _after_exit(self) -> None:
        """The leader ended: drain, deal with what it left, finish."""
        if not self.emptied.is_set() or not self._at_end():
            await self._drain()
        if not self.emptied.is_set():
            if self.spec.leftovers == "keep" and self.state == "running" and self.cause is None:
                self._show_background()
            elif self.cause is None:
                self._leftovers = tuple(f"{pid} {procfs.name(pid)}" for pid in self._tree())
                self.init.send({"op": "kill"})
            await self.emptied.wait()
        await self._finish()

    def _at_end(self) -> bool:
        self._read_rest()
        return not self._pipes

    async def _drain(self) -> None:
        until = clock.now() + DRAIN_AT_MOST
        quiet_since = clock.now()
        while self._pipes and clock.now() < until:
            quiet_until = max(self.last_output, quiet_since) + QUIET
            left = min(until, quiet_until) - clock.now()
            if left <= 0:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drained.wait(), left)

    def _show_background(self) -> None:
        ending = endings.decide(endings.Facts(status=self._status))
        self.base = replace(
            self.base, exit_code=ending.exit_code, signal=ending.signal, shell_status=ending.shell_status
        )
        self.move("background")

    async def _finish(self) -> None:
        if self.ended is not None:
            return
        self._read_rest()
        self._close_all()
        if self._start_error is None and self._lost is None and self.state == "starting":
            self.move("running")
        facts = endings.Facts(
            status=self._status,
            start_error=self._start_error,
            cause=self.cause,
            oom_kills=self._oom,
            lost=self._lost,
        )
        ending = endings.decide(facts)
        if self.spec.state_file and self._report and not self._report_lost:
            self._keep_report(bytes(self._report))
        final = replace(
            self.record(),
            state=ending.state,
            exit_code=ending.exit_code,
            signal=ending.signal,
            shell_status=ending.shell_status,
            cause=ending.cause,
            timed_out=ending.timed_out,
            cancelled=ending.cancelled,
            oom_killed=ending.oom_killed,
            reason=ending.reason or self.base.reason,
            leftovers=self._leftovers,
            pids=(),
            waiting_on_stdin=False,
            ended_at=time.time(),
            cpu_seconds=self._cpu if ending.state != "lost" else None,
            max_rss=self._rss if ending.state != "lost" else None,
        )
        await self.publish(final)
        self.launched.set()
        # Later: making the next job's place takes as long as answering everybody who waits for this one.
        self._loop.call_later(
            _ANSWERED_AFTER, self._give_back if self._lost is None else Init.close, self.init
        )

    def _keep_report(self, data: bytes) -> None:
        self.report = data
        try:
            fd = os.open(self.directory / "report", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
        except OSError:
            log.exception("the report of job %s could not be kept", self.base.id)

    def _close_all(self) -> None:
        for fd in list(self._pipes):
            self._close_pipe(fd)
        if self.stdin is not None:
            self.stdin.close()
        self._close_refusals()
        if self._report_fd >= 0:
            self._loop.remove_reader(self._report_fd)
            os.close(self._report_fd)
            self._report_fd = -1

    @override
    async def terminate(self, *, grace: float, cause: Cause) -> JobRecord:
        """SIGTERM, *grace*, kill. Returns the terminal record, or one in `killing` when the kernel does not obey."""
        if self.ended is not None:
            return self.ended
        if self.cause is None:
            self.cause = cause
        if self.state in ("starting", "running", "background"):
            self.move("killing")
        self.spawn(self._climb(grace))  # a caller that goes away must not stop half-way up
        return await self.until_done(grace + 5.0)

    async def _climb(self, grace: float) -> None:
        if grace > 0 and not self.emptied.is_set():
            self.init.send({"op": "term"})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.emptied.wait(), grace)
        if not self.emptied.is_set():
            self.init.send({"op": "kill"})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.emptied.wait(), _OBEYS_WITHIN)
        if not self.emptied.is_set():
            await self._past_a_stopped_init()

    async def _past_a_stopped_init(self) -> None:
        """A command can stop the init above it with a signal: end the tree from here, then let the init say so."""
        if self.init.pid is not None:
            procfs.signal_below(self.init.pid, signal.SIGKILL)
        await self._end_tree(self.base.id)
        self.init.resume()

    def signal(self, number: int) -> None:
        if not self._exited:  # the init of an ended job may have another's leader by now
            self.init.send({"op": "signal", "number": number})

    @override
    def bounds(self) -> list[tuple[float, Cause]]:
        found: list[tuple[float, Cause]] = []
        if self.spec.timeout is not None:
            found.append((self.began + self.spec.timeout, "timeout"))
        if self.spec.idle_timeout is not None:
            found.append((self.last_output + self.spec.idle_timeout, "idle_timeout"))
        return found

    def _tree(self) -> list[int]:
        return procfs.living(procfs.descendants(self.init.pid)) if self.init.pid is not None else []

    @override
    def record(self) -> JobRecord:
        record = super().record()
        if self.ended is not None:
            return record
        pids: tuple[int, ...] = ()
        if self.state == "background" or (self.state == "killing" and self._stuck):
            pids = tuple(self._tree())
        return replace(record, pids=pids, waiting_on_stdin=self._waiting_on_stdin())

    def _waiting_on_stdin(self) -> bool:
        if self.stdin is None or self.stdin.closed or self.spec.stdin != "pipe":
            return False
        return any(procfs.blocked_reading_stdin(pid, self.stdin.link, READ_NUMBER) for pid in self._tree())
