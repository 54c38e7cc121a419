"""The executor port: commands and their trees, logs, endings, clocks and leases on one node.

Source: the execution contract (`docs/requirements.md` maps its ids to tests). Rules of this file: values only,
no process is touched here; exit codes and signals come from one wait by the supervisor or are None; an exit code
of None is never replaced by a number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

JobState = Literal[
    "queued", "starting", "running", "background", "killing", "exited", "killed", "start_failed", "lost"
]
TERMINAL: frozenset[str] = frozenset({"exited", "killed", "start_failed", "lost"})
Stream = Literal["stdout", "stderr", "tty", "unknown"]
StartError = Literal[
    "not_found", "interpreter_not_found", "not_executable", "bad_format", "bad_cwd", "unknown_user",
    "argument_too_long", "isolation", "other",
]  # fmt: skip
Cause = Literal["timeout", "idle_timeout", "cancelled", "lease_ended", "log_limit", "oom", "server_stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSpec:
    """One command to run on this node.

    Args:
        argv: program and arguments; no shell is added.
        env: the whole environment besides the non-interactive defaults; nothing is inherited from the host.
            A value of None removes a default.
        cwd: absolute; None means the executor's default directory.
        user: name or `uid[:gid]` to run as; None means the executor's own user.
        stdin: `None` is `/dev/null`, `"pipe"` stays open for `write_stdin`, bytes are given and then EOF.
        session: the group the job is named and listed in (a tool server's name); handles like `job-3` count
            within it and are never reused.
        label: words for people, shown in lists.
        timeout: seconds from start to kill; None means no bound but the lease.
        idle_timeout: seconds without output before the kill.
        grace: seconds between SIGTERM and the kill.
        leftovers: what happens to processes that outlive the leader.
        read_only: run with the whole file system read-only but for `/tmp`-like private mounts; refused where
            the node cannot do it.
        state_file: a private descriptor 3 opened for writing in the leader; its bytes (at most 1 MiB) are kept
            beside the job and read back with `read_report`.
        log_limit: bytes kept of the log (16 MiB of head stay, the rest is the newest).
        lease: id of the lease that holds the job; None means it lives until it ends.
        tied: the job ends (cause "cancelled", reason "owner_gone") when the connection that started it closes,
            until `untie`: what nobody can name yet dies with whoever waits for it (SURV-R1).
    """

    argv: Sequence[str | bytes]
    env: Mapping[str, str | None] = field(default_factory=dict)
    cwd: str | None = None
    user: str | None = None
    stdin: bytes | Literal["pipe"] | None = None
    session: str = "default"
    label: str = ""
    timeout: float | None = None
    idle_timeout: float | None = None
    grace: float = 2.0
    leftovers: Literal["kill", "keep"] = "kill"
    read_only: bool = False
    state_file: bool = False
    log_limit: int = 256 << 20
    on_log_limit: Literal["drop", "kill"] = "drop"
    pids_limit: int | None = None
    memory_limit: int | None = None
    lease: str | None = None
    tied: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Bytes `start` to `end` of the log are not kept, and why."""

    start: int
    end: int
    reason: Literal["log_limit", "no_space"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """What is known of one job. `exit_code`, `signal` and the sizes are facts or None, never guesses."""

    id: str
    session: str
    handle: str
    label: str
    kind: Literal["command", "hosted"]
    state: JobState
    exit_code: int | None = None
    signal: int | None = None
    shell_status: int | None = None
    cause: Cause | None = None
    timed_out: bool = False
    cancelled: bool = False
    oom_killed: bool = False
    start_error: StartError | None = None
    message: str | None = None
    reason: str | None = None  # of `lost`
    leftovers: tuple[str, ...] = ()  # "pid name" of what outlived the leader and was ended
    pids: tuple[int, ...] = ()  # live processes of a background job, or those the kernel will not end
    pid: int | None = None
    started_at: float | None = None  # wall clock, for display
    ended_at: float | None = None
    duration: float | None = None  # seconds, boot clock
    cpu_seconds: float | None = None
    max_rss: int | None = None  # bytes
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    size: int = 0  # of the combined log
    gaps: tuple[Gap, ...] = ()
    user: str | None = None
    cwd: str | None = None
    timeout: float | None = None
    waiting_on_stdin: bool = False
    containment: str = ""  # "cgroup", "pid_namespace", "subreaper", joined by "+"
    result: Any = None  # of a hosted job
    error: Mapping[str, Any] | None = None  # of a hosted job: an error envelope
    progress: Mapping[str, Any] | None = None  # of a hosted job

    @property
    def done(self) -> bool:
        return self.state in TERMINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputChunk:
    """Bytes `offset` to `next_offset` of a log. `eof`: the job ended and `next_offset == size`."""

    offset: int
    spans: tuple[tuple[Stream, bytes], ...]
    next_offset: int
    size: int
    state: JobState
    eof: bool
    gap: Gap | None = None

    @property
    def data(self) -> bytes:
        return b"".join(span for _, span in self.spans)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    id: str
    owner: str
    ttl: float
    expires_in: float
    max_life: float | None = None


class Executor(ABC):
    """Runs commands on one node and tells the truth about them. Every method may raise `UnavailableError` when
    the supervisor cannot be reached; a failing command is a record, never an exception."""

    @abstractmethod
    async def start(self, spec: CommandSpec, *, key: str | None = None) -> JobRecord:
        """Start a command and return its record (state `running`, `start_failed`, or already terminal).

        Args:
            key: chosen by the caller; a second start with it returns the first one's job and starts nothing.

        Raises:
            UsageError: a value out of range (zero, negative, NaN or bool seconds; argv as one string).
            NotFoundError: the lease is unknown or has ended.
            NoSpaceError: no room for the job's files. Nothing was started.
        """

    @abstractmethod
    async def read(
        self,
        job: str,
        *,
        offset: int = 0,
        limit: int = 65536,
        stream: Stream | None = None,
        wait: float = 0.0,
    ) -> OutputChunk:
        """Read the log from a byte offset; wait up to *wait* seconds for a byte past it or a change of state.

        Raises:
            UsageError: the offset lies beyond the log; the message states its size.
            NotFoundError: no such job. GoneError: it existed; its log's retention is over.
        """

    @abstractmethod
    async def record(self, job: str) -> JobRecord:
        """The record now. *job* is an id. Raises NotFoundError or GoneError."""

    @abstractmethod
    async def wait(self, job: str, *, timeout: float | None = None) -> JobRecord:
        """Wait until the job is terminal or *timeout* seconds passed, and return the record then."""

    @abstractmethod
    async def signal(self, job: str, signal: int) -> None:
        """Send a signal to the leader's process group. An ended job: no effect."""

    @abstractmethod
    async def terminate(
        self, job: str, *, grace: float | None = None, cause: Cause = "cancelled"
    ) -> JobRecord:
        """SIGTERM to the tree, *grace*, kill, proof of emptiness; returns the terminal record. Idempotent."""

    @abstractmethod
    async def untie(self, job: str) -> None:
        """The job's handle is out: from now on only cancel, timeout or lease end it. Idempotent."""

    @abstractmethod
    async def write_stdin(self, job: str, data: bytes, *, offset: int | None = None) -> int:
        """Write to an open stdin and return the offset after it. *offset* makes a retry harmless: bytes already
        accepted are skipped. Raises ConflictError when stdin is closed or was not opened."""

    @abstractmethod
    async def close_stdin(self, job: str) -> None:
        """EOF on stdin. Idempotent."""

    @abstractmethod
    async def read_report(self, job: str) -> bytes | None:
        """What the leader wrote to its private descriptor, or None when it wrote nothing or too much."""

    @abstractmethod
    async def find(self, session: str, handle: str) -> JobRecord:
        """The job of *session* with this handle. Raises NotFoundError naming the live handles of the session."""

    @abstractmethod
    async def jobs(
        self, *, session: str | None = None, live: bool = False, limit: int | None = None
    ) -> list[JobRecord]:
        """Records, oldest first; only those not ended when *live*, only the newest when there are more than *limit*.

        Raises:
            UsageError: *limit* is not a whole number from 1.
        """

    @abstractmethod
    async def open_hosted(self, session: str, *, label: str = "", timeout: float | None = None) -> JobRecord:
        """Record a job whose work runs in the caller's own process. It is lost (`host_lost`) when the caller's
        connection ends before `finish_hosted`."""

    @abstractmethod
    async def append_hosted(self, job: str, data: bytes, *, stream: Stream = "stdout") -> None: ...

    @abstractmethod
    async def progress_hosted(self, job: str, progress: Mapping[str, Any]) -> None: ...

    @abstractmethod
    async def finish_hosted(
        self,
        job: str,
        *,
        result: Any = None,
        error: Mapping[str, Any] | None = None,
        cause: Cause | None = None,
    ) -> JobRecord:
        """End a hosted job: `exited` with code 0 and a result, or `killed` with a cause, or `exited` 1 with an error
        envelope."""

    @abstractmethod
    async def open_lease(self, owner: str, *, ttl: float = 60.0, max_life: float | None = None) -> Lease: ...

    @abstractmethod
    async def renew(self, lease: str) -> Lease:
        """Raises NotFoundError when it ended."""

    @abstractmethod
    async def release(self, lease: str, *, cause: Cause = "lease_ended") -> None:
        """End the lease now, with everything it holds. Idempotent."""

    @abstractmethod
    async def manifest(self) -> dict[str, Any]:
        """What this node holds, from probes: containment ranks, limits, detection of waits on stdin, versions."""

    @abstractmethod
    async def aclose(self) -> None:
        """Leave; jobs stay."""
