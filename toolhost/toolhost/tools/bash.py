"""The shell tool: `run_command`, and the functions that follow a command that went on without its caller.

One session per server: commands of it run one at a time in a fresh bash that carries on the last one's directory,
variables, functions and options (`bash_session`). A command that outlasts `wait_seconds` becomes a job; it keeps
running and writes no state back.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
from pydantic import Field
from typing_extensions import override

from toolhost.tools.bash_session import Report, Snapshot, command_line, parse_report
from toolhost.tools.context import ServerEnvironment, ToolContext
from toolhost.tools.job_book import LONGEST_WAIT, JobBook, check_idle
from toolhost.tools.jobs import HasJobs, follow_ups
from toolhost.tools.logs import whole_view
from toolhost.tools.rendering import Masker, Rendered, ending, one_line, seconds, size, trailer
from toolhost.tools.server import tool
from toolhost.tools.shell_text import check_command, check_seconds, secret_values
from toolhost_sdk.errors import UsageError
from toolhost_sdk.node import environment
from toolhost_sdk.node.port import CommandSpec, JobRecord

SMALLEST_OUTPUT = 1000
SHORTEST_WAIT = 0.25
_END_SECONDS = 10.0  # the longest a cancelled call waits for its tree's end
_NOTES_ROOM = 1200  # characters of trailer, notes and footer, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finished:
    """One call's outcome: the record, and what the shell said of its state."""

    record: JobRecord
    report: Report | None
    cwd: str
    waited: float


class BashTool(HasJobs):
    """A shell for an agent.

    Args:
        work_dir: where the first command starts, and where one starts whose directory is gone.
        timeout: seconds a command may run when the caller says nothing; `max_timeout` is the most it may ask for.
        env: the commands' environment beside the non-interactive defaults; nothing is inherited. None removes one.
        user: whom they run as.
        max_output: the most characters of text a result may have.
        persistent: carry state from call to call; False makes calls independent, and lets them overlap.
        read_only: run with the file system read-only; refused where the node cannot do it.
        yield_after: seconds a call waits before its command goes on as a job, when the caller says nothing.
        secrets: names in *env* whose values are masked wherever output is shown.
    """

    title = "Shell"
    version = "1"
    instructions = (
        "Runs bash commands. run_command answers with the output and one last line of facts in brackets. A command "
        "that takes longer than wait_seconds goes on as a job: wait for it with run_status, read it with run_output."
    )

    def __init__(
        self,
        work_dir: str = "/",
        timeout: float = 120.0,
        max_timeout: float = 600.0,
        *,
        env: Mapping[str, str | None] | None = None,
        user: str | None = None,
        max_output: int = 30_000,
        persistent: bool = True,
        read_only: bool = False,
        yield_after: float = 10.0,
        secrets: Sequence[str] = (),
    ) -> None:
        if not work_dir.startswith("/"):
            raise UsageError(f"work_dir={work_dir!r} is not absolute")
        if max_output < SMALLEST_OUTPUT:
            raise UsageError(f"max_output={max_output}: a result needs at least {SMALLEST_OUTPUT} characters")
        self._work_dir = work_dir
        self._max_timeout = check_seconds("max_timeout", max_timeout, limit=None)
        self._timeout = check_seconds("timeout", timeout, limit=self._max_timeout)
        self._yield_after = check_seconds("yield_after", yield_after, limit=LONGEST_WAIT)
        self._command_env = dict(env or {})
        # What every shell starts with; names whose values depend on the user stand with an empty one.
        self._given = environment.build(self._command_env, label="", user="", home="", shell="")
        self._user = user
        self._max_output = max_output
        self._persistent = persistent
        self._read_only = read_only
        self._masker = Masker(secret_values(self._command_env, secrets))
        self._snapshot = Snapshot()
        self._state_dir = Path()
        self._turn = asyncio.Lock()

    @override
    async def start(self, env: ServerEnvironment) -> None:
        self.book = JobBook(env.executor, env.name, masker=self._masker)
        self._state_dir = env.state_dir
        await self.book.adopt()
        if self._persistent:
            self._snapshot = await env.work(Snapshot.stored, env.state_dir)

    @override
    async def aclose(self) -> None:
        if self.book is not None:
            await self.book.end_all()

    @tool(
        read_only=False, destructive=True, idempotent=False, open_world=True, always_load=True, structured=False,
        task="never",
    )  # fmt: skip
    async def run_command(
        self,
        command: str,
        *,
        timeout: float | None = None,
        cwd: str | None = None,
        max_output: Annotated[int, Field(ge=SMALLEST_OUTPUT)] | None = None,
        wait_seconds: Annotated[float, Field(ge=SHORTEST_WAIT)] | None = None,
        detail: Literal["concise", "detailed"] = "detailed",
        reset: bool = False,
        context: ToolContext,
    ) -> str:
        """Run a bash command and return its output, ending in one line of facts: [exit 0 | 1.2 s | cwd /app | job-3].

        Directory, variables, functions and options carry over to the next call. There is no input: commands that
        ask fail at once. Background processes end with the command. A command still running after wait_seconds
        goes on as a job; the answer names it and says how to follow it. Long output shows its head and tail;
        run_output reads the rest without running anything again.

        Args:
            command: shell text for bash, of any length; heredocs work.
            timeout: seconds after which the command is ended; output so far is kept.
            cwd: directory for this call alone.
            max_output: characters of text to return at most.
            wait_seconds: seconds to wait for the end, 0.25 to 45, before it goes on as a job.
            detail: concise leaves duration and directory out of the last line.
            reset: start from a clean shell state.
        """
        script = check_command(command)
        bound = (
            self._timeout if timeout is None else check_seconds("timeout", timeout, limit=self._max_timeout)
        )
        if max_output is not None and max_output > self._max_output:
            raise UsageError(
                f"max_output={max_output} exceeds this server's cap of {self._max_output} characters"
            )
        wait = min(self._yield_after if wait_seconds is None else wait_seconds, LONGEST_WAIT)
        async with self._turn if self._persistent else nullcontext():
            if reset:
                self._carry(Snapshot(), keep_directory=False)
            spec = self._spec(command, script, bound, cwd)
            finished = await self._run(spec, wait, key=f"{context.server_name}/{context.call_id}")
            if finished.report is not None and finished.report.snapshot is not None:
                self._carry(finished.report.snapshot, keep_directory=cwd is not None)
        return await self._text(finished, max_output or self._max_output, detailed=detail == "detailed")

    def _carry(self, snapshot: Snapshot, *, keep_directory: bool) -> None:
        if keep_directory:
            snapshot = replace(snapshot, cwd=self._snapshot.cwd)
        if snapshot != self._snapshot:
            self._snapshot = snapshot
            snapshot.write(self._state_dir)

    def _spec(self, command: str, script: bytes, timeout: float, cwd: str | None) -> CommandSpec:
        snapshot = self._snapshot if self._persistent else Snapshot()
        here = snapshot.cwd or self._work_dir
        argv, stdin = command_line(
            snapshot.bytes_of(),
            snapshot.script(script),
            None if cwd is not None else snapshot.cwd,
            persistent=self._persistent,
        )
        return CommandSpec(
            argv=argv,
            stdin=stdin,
            env=self._command_env,
            cwd=self._work_dir if cwd is None else os.path.normpath(Path(here) / cwd),
            user=self._user,
            session=check_idle(self.book).session,
            label=command.strip()[:200],
            timeout=timeout,
            read_only=self._read_only,
            state_file=self._persistent,
            tied=True,  # until its handle is out it ends with whoever waits for it
        )

    async def _run(self, spec: CommandSpec, wait: float, *, key: str) -> _Finished:
        """Run and wait. A call that is cancelled before it named a job ends its command (SURV-R1)."""
        book = check_idle(self.book)
        starting = asyncio.ensure_future(book.start_command(spec, key=key))
        try:
            info = await asyncio.shield(starting)
            record = await book.executor.wait(info.id, timeout=wait)
            report = None
            if not record.done:
                await book.executor.untie(info.id)
                book.name(record)
            elif self._persistent:
                report = parse_report(await book.executor.read_report(info.id), self._given)
        except asyncio.CancelledError:
            await _end(book, starting)
            raise
        here = report.snapshot.cwd if report and report.snapshot and report.snapshot.cwd else None
        start = self._snapshot.cwd if self._persistent and spec.cwd == self._work_dir else None
        return _Finished(record=record, report=report, cwd=here or start or spec.cwd or "/", waited=wait)

    async def _text(self, finished: _Finished, limit: int, *, detailed: bool) -> str:
        book, record = check_idle(self.book), finished.record
        footer = await book.footer(but=record.id)
        notes = [*_notes(finished, persistent=self._persistent), *([footer] if footer else [])]
        room = limit - _NOTES_ROOM if limit > 2 * _NOTES_ROOM else limit // 3
        log = book.log(record)
        end = await log.shown_end() if record.size else 0
        view = await whole_view(log, limit=room, end=end) if end else None
        book.mark_seen(record, end)
        facts = _facts(finished, view, detailed=detailed)
        parts = [view.text] if view is not None and view.text else []
        left = min(_NOTES_ROOM, limit - sum(map(len, parts)) - 1) - len(facts)
        for note in map(self._masker.mask, map(one_line, notes)):
            parts += [_clipped(note, left - 1)] if left > 40 else []
            left -= len(note) + 1
        return "\n".join([*parts, facts])


for _name, _function in follow_ups("run").items():
    setattr(BashTool, _name, _function)


async def _end(book: JobBook, starting: asyncio.Future[Any]) -> None:
    """End what a cancelled call started, whatever state the start is in."""

    async def end() -> None:
        info = await starting
        await book.executor.terminate(info.id)

    ending_task = asyncio.ensure_future(end())
    with anyio.CancelScope(shield=True):
        await asyncio.wait({ending_task}, timeout=_END_SECONDS)


def _facts(finished: _Finished, view: Rendered | None, *, detailed: bool) -> str:
    record = finished.record
    status = ending(record) if record.done else f"still running after {seconds(finished.waited)}"
    status += ", no output" if not record.size else ""
    shown = "" if view is None or view.whole else f"{size(record.size)} out, {size(view.shown)} shown"
    took = seconds(record.duration or 0.0) if record.done and detailed else ""
    return trailer(
        status, took, f"cwd {_clipped(one_line(finished.cwd), 200)}" if detailed else "", shown, record.handle
    )


def _notes(finished: _Finished, *, persistent: bool) -> list[str]:
    """Sentences for what the facts do not hold, each with the way on."""
    record, report = finished.record, finished.report
    name = record.handle
    notes: list[str] = []
    if not record.done:
        left = f" It is ended after {record.timeout:g} s." if record.timeout else ""
        stateless = " It will not change this shell's state." if persistent else ""
        notes.append(
            f'{name} goes on by itself.{left}{stateless} run_status("{name}") waits for it, '
            f'run_output("{name}", offset={record.size}) reads on, run_cancel("{name}") ends it.'
        )
    if record.timed_out:
        notes.append(
            f"timed out after {record.timeout or 0:g} s; {size(record.size)} captured; to let it run longer, raise "
            "timeout=, or start it as a job where there is no limit"
        )
    if record.leftovers:
        notes.append(
            f"ended with the command: {', '.join(record.leftovers)}; to keep a process, run it in the foreground "
            f"with wait_seconds={SHORTEST_WAIT}: it becomes a job"
        )
    notes += [f"{size(gap.end - gap.start)} of output were not kept ({gap.reason})" for gap in record.gaps]
    if record.message and record.state != "start_failed":  # a failed start says so on its stderr
        notes.append(record.message)
    if report is not None and report.cwd_lost:
        notes.append("the directory of this session is gone: the command ran in the default one")
    if report is not None and report.snapshot is None and record.state != "start_failed":
        notes.append(
            "state not saved: the shell ended without writing it; the next command has the state before"
        )
    return notes


def _clipped(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
