"""Checks that shell tools share, with errors that teach."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence

from toolhost_sdk.errors import UsageError


def check_command(command: str) -> bytes:
    """The script's bytes. Raises UsageError for what cannot be meant as shell text."""
    if not command.strip():
        raise UsageError("the command is empty; send shell text such as 'ls -la'")
    if "\0" in command:
        raise UsageError(
            "the command holds a NUL, which no shell text can; write it as $'\\\\0' or use a file"
        )
    if command.lstrip()[0] in "[{" and (literal := _literal(command)):
        raise UsageError(
            f"the command looks like a Python {literal}; send plain shell text, such as 'ls -la'"
        )
    try:
        return command.encode()
    except UnicodeEncodeError:
        raise UsageError("the command holds half a surrogate pair, which is no text") from None


def _literal(command: str) -> str | None:
    for read in (ast.literal_eval, json.loads):
        try:
            value = read(command.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, list | dict):
            return type(value).__name__
    return None


def check_seconds(name: str, value: float, *, limit: float | None) -> float:
    """*value* itself. Raises UsageError when it is no positive number of seconds up to *limit*."""
    if isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise UsageError(f"{name}={value!r}: give a positive number of seconds")
    if limit is not None and value > limit:
        raise UsageError(f"{name}={value:g} exceeds the limit of {limit:g} s; start a job for longer work")
    return float(value)


def secret_values(env: Mapping[str, str | None], names: Sequence[str]) -> list[str]:
    """Values of the variables *names*. Raises UsageError for one that is not in *env*."""
    for name in names:
        if not env.get(name):
            raise UsageError(f"secrets names {name!r}, which env does not set")
    return [value for name in names if (value := env[name])]
