"""Servers whose functions start jobs: `AsyncJobTool` for authors, `AsyncBashTool` ready to run.

`@job_tool` on one method gives five functions: the method itself (submit, wait a bounded slice, return the status),
and `{name}_status`, `{name}_output`, `{name}_cancel`, `{name}_jobs`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from toolhost.tools.bash_session import command_line
from toolhost.tools.context import ServerEnvironment, ToolContext
from toolhost.tools.hosted import JobContext, Jobs, Work
from toolhost.tools.job_book import JobBook, JobInfo, JobLine, JobStatus, check_idle
from toolhost.tools.logs import Piece
from toolhost.tools.rendering import Masker
from toolhost.tools.server import ToolServer, tool
from toolhost.tools.shell_text import check_command, check_seconds, secret_values
from toolhost_sdk.errors import ExecutionError, UsageError
from toolhost_sdk.node.port import CommandSpec

READ_LIMIT = 30_000
_POLLERS = 256  # calls that only wait; a wait holds no thread

WaitSeconds = Annotated[float, Field(ge=0, description="seconds to wait for the end, at most 45.")]


class HasJobs(ToolServer):
    """A server with a job book. Its calls mostly wait, so many may run at once."""

    max_concurrent = _POLLERS
    book: JobBook | None = None


def follow_ups(name: str) -> dict[str, Callable[..., Any]]:
    """The four functions that follow a job started by function *name*, marked as tools."""

    async def status(self: HasJobs, job_id: str | None = None, wait_seconds: WaitSeconds = 5.0) -> JobStatus:
        book = check_idle(self.book)
        return await book.status(await book.wait(await book.find(job_id), wait_seconds))

    async def output(
        self: HasJobs,
        job_id: str,
        *,
        offset: Annotated[int, Field(ge=0)] = 0,
        max_bytes: Annotated[int, Field(ge=1, le=READ_LIMIT)] = READ_LIMIT,
        tail: Annotated[int, Field(ge=1, le=10_000)] | None = None,
        lines: str | None = None,
        grep: str | None = None,
        context: Annotated[int, Field(ge=0, le=20)] = 0,
        encoding: Literal["text", "base64"] = "text",
    ) -> str:
        book = check_idle(self.book)
        piece = Piece(
            offset=offset, max_bytes=max_bytes, tail=tail, lines=lines, grep=grep, context=context, encoding=encoding
        )  # fmt: skip
        return await book.read(await book.find(job_id), piece, limit=READ_LIMIT)

    async def cancel(self: HasJobs, job_id: str) -> JobStatus:
        book = check_idle(self.book)
        return await book.status(await book.cancel(await book.find(job_id)))

    async def jobs(self: HasJobs) -> list[JobLine]:
        return await check_idle(self.book).listed()

    status.__doc__ = f"""Wait for a job started by {name} and tell how it is doing.

    Returns as soon as the job is done, else after wait_seconds. `output` holds what is new since you last looked;
    `done` and `state` say whether it ended and how; `running` lists your other live jobs.

    Args:
        job_id: a job's name such as "job-3"; the latest job when left out.
    """
    output.__doc__ = f"""Read the stored output of a job of {name}, while it runs or after it.

    Choose one way: from a byte offset on (each answer names the next offset), the last lines, a range of lines, or
    the lines that match a pattern. Nothing is run again. Lines of stderr are marked.

    Args:
        job_id: a job's name such as "job-3".
        offset: byte position to read from; with grep, to search from.
        max_bytes: bytes to read from there.
        tail: the last so many lines.
        lines: a range of lines such as "400:480", counted from 1.
        grep: a regular expression in RE2 syntax; matching lines come with their numbers.
        context: lines to show around each match.
        encoding: "base64" gives exact bytes, for output that is no text.
    """
    cancel.__doc__ = f"""End a job of {name} and all its processes. Its output stays readable. Harmless to repeat.

    Args:
        job_id: a job's name such as "job-3".
    """
    jobs.__doc__ = f"""List all jobs of {name} with state, label and age, oldest first."""
    marks: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "status": (status, {"read_only": True, "always_load": True}),
        "output": (output, {"read_only": True}),
        "cancel": (cancel, {"read_only": False, "destructive": True}),
        "jobs": (jobs, {"read_only": True}),
    }
    made: dict[str, Callable[..., Any]] = {}
    for suffix, (function, hints) in marks.items():
        function.__name__ = function.__qualname__ = f"{name}_{suffix}"
        marked = tool(idempotent=True, open_world=False, task="never", **{"destructive": False, **hints})
        made[function.__name__] = marked(function)
    return made


def job_tool(method: Callable[..., Any] | None = None, /, **hints: bool) -> Any:
    """Mark a method that submits a job and returns its `JobInfo`; clients see five functions.

    The method may be sync or async, and may return what `self.jobs.submit` returns without awaiting it. Its
    parameters are the tool's; `wait_seconds` is added.

    Args:
        hints: `destructive`, `idempotent`, `open_world` as in `@tool`; the worst is assumed of what is not given.
    """
    return _JobTool(method, hints) if method is not None else lambda target: _JobTool(target, hints)


class _JobTool:
    """Puts the five functions into the class that declares the method."""

    def __init__(self, method: Callable[..., Any], hints: Mapping[str, bool]) -> None:
        self._method = method
        self._hints: dict[str, Any] = {
            "read_only": False,
            "destructive": True,
            "idempotent": False,
            "open_world": True,
            **hints,
        }

    def __set_name__(self, owner: type, name: str) -> None:
        if not issubclass(owner, AsyncJobTool):
            raise UsageError(f"{owner.__name__!r} is no AsyncJobTool, so {name!r} cannot start jobs")
        method = self._method

        @wraps(method)
        async def submit(
            self: AsyncJobTool,
            *args: Any,
            tool_context: ToolContext,
            wait_seconds: float = 10.0,
            **kwargs: Any,
        ) -> JobStatus:
            book = check_idle(self.book)
            if inspect.iscoroutinefunction(method):
                submitted = await method(self, *args, **kwargs)
            else:
                submitted = await self.work(method, self, *args, **kwargs)
            if not isinstance(submitted, JobInfo):
                raise ExecutionError(
                    f"{name!r} returned no job: it must return what self.jobs.submit returns"
                )
            # From here on the job has a name, so only its bounds or a cancel by that name end it.
            await tool_context.handle(submitted.handle)
            record = await book.find(submitted.handle)
            return await book.status(await book.wait(record, wait_seconds))

        signature = inspect.signature(method)
        waiting = inspect.Parameter("wait_seconds", inspect.Parameter.KEYWORD_ONLY, default=10.0)
        injected = inspect.Parameter("tool_context", inspect.Parameter.KEYWORD_ONLY)
        parameters: Sequence[inspect.Parameter] = [*signature.parameters.values(), waiting, injected]
        submit.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # read by inspect
        submit.__annotations__ = {
            **method.__annotations__, "wait_seconds": WaitSeconds, "tool_context": ToolContext, "return": JobStatus,
        }  # fmt: skip
        setattr(owner, name, tool(**self._hints, always_load=True, task="never")(submit))
        for attribute, function in follow_ups(name).items():
            setattr(owner, attribute, function)
        owner.job_function = name


class AsyncJobTool(HasJobs):
    """Base of servers that start jobs from their own code.

        class Trainer(AsyncJobTool):
            @job_tool
            def train(self, epochs: int) -> JobInfo:
                \"\"\"Train the model.\"\"\"
                return self.jobs.submit(lambda job: self._train(job, epochs), label=f"train {epochs}")

    Args:
        max_running: jobs at once; further ones wait. 1 runs them one after another.
    """

    job_function: ClassVar[str] = "run"

    def __init__(self, *, max_running: int = 4) -> None:
        if isinstance(max_running, bool) or max_running < 1:
            raise UsageError(f"max_running={max_running!r}: at least 1 job must be able to run")
        self.max_running = max_running
        self._jobs: Jobs | None = None
        self._env: ServerEnvironment | None = None

    def masker(self) -> Masker:
        """What no output may show. Subclasses with secrets override it."""
        return Masker()

    @override
    async def start(self, env: ServerEnvironment) -> None:
        self._env = env
        self.book = JobBook(
            env.executor, env.name, masker=self.masker(), max_running=self.max_running, function=self.job_function
        )  # fmt: skip
        self._jobs = Jobs(self.book, max_running=self.max_running)
        await self.book.adopt()

    @override
    async def aclose(self) -> None:
        if self.book is not None:
            await self.book.end_all()
        if self._jobs is not None:
            self._jobs.close()

    @property
    def jobs(self) -> Jobs:
        """Where work is submitted. Raises ConflictError before the server has started."""
        check_idle(self.book)
        assert self._jobs is not None
        return self._jobs

    async def work(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a sync method in a worker thread; await what it returns."""
        check_idle(self.book)
        assert self._env is not None
        value = await self._env.work(lambda: method(*args, **kwargs))
        return await value if inspect.isawaitable(value) else value


class AsyncBashTool(AsyncJobTool):
    """Shell commands as jobs: they outlive the call, the client's connection and this server's process.

    Args:
        work_dir: where commands start.
        env: their environment beside the non-interactive defaults; nothing is inherited.
        user: whom they run as.
        max_running: commands at once; further ones wait.
        max_timeout: the longest timeout a caller may ask for; None sets no limit.
        secrets: names in *env* whose values are masked wherever output is shown.
    """

    title = "Shell jobs"
    version = "1"
    instructions = (
        "Runs shell commands as jobs. run starts one and waits a little; run_status waits for the rest; run_output "
        "reads any part of the output without running it again."
    )

    def __init__(
        self,
        work_dir: str = "/",
        *,
        env: Mapping[str, str | None] | None = None,
        user: str | None = None,
        max_running: int = 4,
        max_timeout: float | None = None,
        secrets: Sequence[str] = (),
        read_only: bool = False,
    ) -> None:
        super().__init__(max_running=max_running)
        self._work_dir = work_dir
        self._command_env = dict(env or {})
        self._user = user
        self._max_timeout = max_timeout
        self._secrets = tuple(secrets)
        self._read_only = read_only

    @override
    def masker(self) -> Masker:
        return Masker(secret_values(self._command_env, self._secrets))

    @job_tool
    async def run(self, command: str, timeout: float | None = None) -> JobInfo:
        """Start a shell command as a job and wait a little for it.

        For builds, tests, downloads and servers: the job goes on when the call returns. Every command runs in a
        fresh bash in the same directory, without input. Processes it leaves behind are ended with it.

        Args:
            command: shell text for bash, of any length.
            timeout: seconds after which the job is ended; its output is kept. No limit when left out.
        """
        text = check_command(command)
        seconds = None if timeout is None else check_seconds("timeout", timeout, limit=self._max_timeout)
        argv, stdin = command_line(b"", text, None, persistent=False)
        spec = CommandSpec(
            argv=argv,
            stdin=stdin,
            env=self._command_env,
            cwd=self._work_dir,
            user=self._user,
            session=check_idle(self.book).session,
            label=command.strip()[:200],
            timeout=seconds if seconds is not None else self._max_timeout,
            read_only=self._read_only,
        )
        return await check_idle(self.book).start_command(spec)


__all__ = ["AsyncBashTool", "AsyncJobTool", "JobContext", "JobInfo", "Work", "job_tool"]
