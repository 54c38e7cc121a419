"""Whether a command specification can be run at all, before anything is made for it.

Rules of this file: pure; what is wrong is the caller's to change (`UsageError`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from toolhost_sdk.errors import UsageError
from toolhost_sdk.node import clock
from toolhost_sdk.node.port import CommandSpec

LEAST_LOG = 64 << 10
MOST_LOG = 16 << 30


def check_spec(spec: CommandSpec) -> None:
    """Raises UsageError naming the value that cannot be."""
    check_argv(spec.argv)
    _check_env(spec.env)
    if spec.cwd is not None and not (_fits(spec.cwd) and os.path.isabs(spec.cwd)):  # noqa: PTH117 - a value, no path yet
        raise UsageError(f"cwd={spec.cwd!r} must be an absolute path")
    check_session(spec.session)
    for what in ("user", "lease"):
        if (value := getattr(spec, what)) is not None and not _fits(value):
            raise UsageError(f"{what}={value!r} is no name")
    if not (spec.stdin is None or spec.stdin == "pipe" or isinstance(spec.stdin, bytes)):
        raise UsageError(f"stdin={spec.stdin!r} must be bytes, 'pipe' or None")
    _word("leftovers", spec.leftovers, ("kill", "keep"))
    _word("on_log_limit", spec.on_log_limit, ("drop", "kill"))
    for what in ("timeout", "idle_timeout"):
        clock.seconds(getattr(spec, what), what)
    clock.seconds(spec.grace, "grace", zero=True)
    _whole("log_limit", spec.log_limit, LEAST_LOG, MOST_LOG)
    for what in ("pids_limit", "memory_limit"):
        if getattr(spec, what) is not None:
            _whole(what, getattr(spec, what), 1, 1 << 60)


def check_argv(argv: Any) -> None:
    if isinstance(argv, str | bytes):
        shown = argv if isinstance(argv, str) else os.fsdecode(argv)
        raise UsageError(f"{shown!r} is one argument; pass {shown.split()!r} or run a shell")
    if not isinstance(argv, Sequence) or not argv:
        raise UsageError("argv must be a list of at least one argument")
    for index, argument in enumerate(argv):
        if not isinstance(argument, str | bytes):
            raise UsageError(f"argument {index} is {argument!r}; arguments are str or bytes")
        if isinstance(argument, str) and not _encodes(argument):
            raise UsageError(f"argument {index} holds half a surrogate pair, which is no text")
        if b"\0" in os.fsencode(argument):
            raise UsageError(f"argument {index} holds a NUL, which no argument can")


def check_session(session: Any) -> None:
    if not _fits(session) or not 0 < len(session) <= 256:
        raise UsageError("session must be a name of 1 to 256 characters")


def _check_env(env: Any) -> None:
    if not isinstance(env, Mapping):
        raise UsageError("env must map names to values")
    for name, value in env.items():
        if not (_fits(name) and name and "=" not in name and (value is None or _fits(value))):
            raise UsageError(f"environment variable {name!r} has a name or value no process can have")


def _fits(value: Any) -> bool:
    """Whether the kernel takes it as a string."""
    return isinstance(value, str) and "\0" not in value and _encodes(value)


def _encodes(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _word(what: str, value: Any, words: tuple[str, ...]) -> None:
    if value not in words:
        raise UsageError(f"{what}={value!r} must be one of {', '.join(words)}")


def check_range(what: str, value: Any, least: int, most: int) -> int:
    """Raises UsageError unless *value* is a whole number in the range."""
    return _whole(what, value, least, most)


def _whole(what: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UsageError(f"{what}={value!r} must be a whole number from {least} to {most}")
    return value
