"""What an ending means: the table of section 4 of the execution contract, as one pure function, and the states.

Rules of this file: pure; an exit code or a signal comes from a wait status or is None; an illegal move raises and
changes nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from toolhost_sdk.errors import InternalError
from toolhost_sdk.node.port import Cause, JobState, StartError

MOVES: dict[JobState, frozenset[JobState]] = {
    "queued": frozenset({"starting", "killing", "lost"}),
    "starting": frozenset({"running", "killing", "start_failed", "lost"}),
    "running": frozenset({"background", "killing", "exited", "killed", "lost"}),
    "background": frozenset({"killing", "exited", "killed", "lost"}),
    "killing": frozenset({"exited", "killed", "start_failed", "lost"}),
    "exited": frozenset(),
    "killed": frozenset(),
    "start_failed": frozenset(),
    "lost": frozenset(),
}


def move(current: JobState, new: JobState) -> JobState:
    """Return *new* when a job in state *current* may get there.

    Raises:
        InternalError: it may not.
    """
    if new not in MOVES[current]:
        raise InternalError(f"a job cannot move from {current!r} to {new!r}")
    return new


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known when a tree is empty.

    Args:
        status: the leader's wait status, or None when nobody waited for it.
        start_error: what the launcher said, or None.
        cause: why we ended it, the first reason only.
        oom_kills: the rise of the cgroup's counter.
        lost: why nobody can know, or None.
    """

    status: int | None = None
    start_error: StartError | None = None
    cause: Cause | None = None
    oom_kills: int = 0
    lost: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    state: JobState
    exit_code: int | None = None
    signal: int | None = None
    shell_status: int | None = None
    cause: Cause | None = None
    timed_out: bool = False
    cancelled: bool = False
    oom_killed: bool = False
    reason: str | None = None


def decide(facts: Facts) -> Ending:
    """The record's fields for *facts*. A status nobody waited for stays unknown."""
    timed_out = facts.cause in ("timeout", "idle_timeout")
    cancelled = facts.cause == "cancelled"
    if facts.lost is not None:
        return Ending(
            state="lost", reason=facts.lost, cause=facts.cause, timed_out=timed_out, cancelled=cancelled
        )
    if facts.status is None:
        if facts.start_error is None:
            return Ending(state="lost", reason="not_waited", cause=facts.cause)
        return Ending(state="start_failed", cause=facts.cause)
    code = os.waitstatus_to_exitcode(facts.status)
    if code < 0:
        oom = facts.oom_kills > 0 and code == -9
        return Ending(
            state="killed",
            signal=-code,
            shell_status=128 - code,
            cause=facts.cause or ("oom" if oom else None),
            timed_out=timed_out,
            cancelled=cancelled,
            oom_killed=oom,
        )
    return Ending(
        state="exited" if facts.start_error is None else "start_failed",
        exit_code=code,
        shell_status=code,
        cause=facts.cause,
        timed_out=timed_out,
        cancelled=cancelled,
    )
