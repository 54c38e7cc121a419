"""The error tree, cut along one axis: who must act.

    ToolhostError
    |- UsageError             the caller, by changing the request
    |- NotFoundError          the caller, by naming something that exists (or is theirs: both are one answer)
    |- ConflictError          the caller, by choosing another name or waiting for the other party
    |- LimitExceededError     the caller, by asking for less; or the operator, by raising the limit
    |  `- CapacityError       nobody: try again later
    |- DeadlineExceededError  the caller, by allowing more time (also a builtin `TimeoutError`)
    |  `- StartupTimeoutError
    |- CancelledByCaller      nobody: it was asked for
    |- UnavailableError       nobody: the platform restarts what died; try again
    |  `- ToolServerUnavailableError
    |- PlacementError         the operator: no node offers what was asked for
    |- ExecutionError         the author of the code that ran
    `- InternalError          us

Rules of this file: every class has a stable `code`, unique in the tree; `retryable` says whether the same
request may succeed later without a change; `details` holds plain data only, so that an error survives a pickle
and a wire. Messages are lower case, name the thing with `!r`, state the limit and the way out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from typing_extensions import override


class ToolhostError(Exception):
    """Root of everything toolhost raises on purpose.

    Args:
        message: one sentence for a person.
        details: plain data (str, int, float, bool, None, and lists or dicts of them) for a program.
    """

    code: ClassVar[str] = "toolhost"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str = "", /, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = details

    @override
    def __str__(self) -> str:
        return self.message

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.details, getattr(self, "__notes__", None))


def _rebuild(
    cls: type[ToolhostError], message: str, details: Mapping[str, Any], notes: list[str] | None
) -> ToolhostError:
    error = cls.__new__(cls)
    ToolhostError.__init__(error, message, **details)
    for note in notes or ():
        error.add_note(note)
    return error


class UsageError(ToolhostError, ValueError):
    code = "usage"


class NotFoundError(ToolhostError, LookupError):
    code = "not_found"


class GoneError(NotFoundError):
    """It existed, and its retention is over."""

    code = "gone"


class ConflictError(ToolhostError):
    code = "conflict"


class LimitExceededError(ToolhostError):
    code = "limit_exceeded"


class CapacityError(LimitExceededError):
    code = "capacity"
    retryable = True


class NoSpaceError(LimitExceededError):
    code = "no_space"


class DeadlineExceededError(ToolhostError, TimeoutError):
    code = "deadline_exceeded"


class StartupTimeoutError(DeadlineExceededError):
    code = "startup_timeout"
    retryable = True


class CancelledByCaller(ToolhostError):
    code = "cancelled"


class UnavailableError(ToolhostError):
    code = "unavailable"
    retryable = True


class ToolServerUnavailableError(UnavailableError):
    code = "tool_server_unavailable"


class PlacementError(ToolhostError):
    code = "placement"


class UnauthenticatedError(ToolhostError):
    code = "unauthenticated"


class PermissionDeniedError(ToolhostError, PermissionError):
    code = "permission_denied"


class ExecutionError(ToolhostError):
    code = "execution"


class InternalError(ToolhostError):
    """Our fault. The message holds an incident id; the log holds the rest."""

    code = "internal"


def error_classes(root: type[ToolhostError] = ToolhostError) -> Iterator[type[ToolhostError]]:
    """Every class of the tree below and including *root*, parents first."""
    yield root
    for child in root.__subclasses__():
        yield from error_classes(child)


def error_class(code: str) -> type[ToolhostError]:
    """The class that owns *code*, or the root class for a code this release does not know."""
    return next((cls for cls in error_classes() if cls.__dict__.get("code") == code), ToolhostError)
