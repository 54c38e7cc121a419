"""Reading `--arg name=value` and `--arg name:=json`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from toolhost_sdk.errors import UsageError


class CommandLineError(UsageError):
    """The command line itself cannot be read: exit code 2."""


_ARGUMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)(:?=)(.*)", re.DOTALL)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_arguments(given: Iterable[str]) -> dict[str, Any]:
    """Arguments of a call.

    Args:
        given: `name=text` (the text as it stands) or `name:=json` (a number, a list, null, ...).

    Raises:
        CommandLineError: neither of the two forms, a name given twice, or no valid JSON after `:=`.
    """
    arguments: dict[str, Any] = {}
    for item in given:
        match = _ARGUMENT.fullmatch(item)
        if match is None:
            raise CommandLineError(f"argument {item!r} is neither name=text nor name:=json")
        name, operator, value = match.groups()
        if name in arguments:
            raise CommandLineError(f"argument {name!r} is given twice")
        arguments[name] = value if operator == "=" else _json(name, value)
    return arguments


def _json(name: str, value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        raise CommandLineError(
            f"argument {name!r} is no valid JSON: {error}; for text, use {name}=... without the colon"
        ) from error


def parse_duration(given: str) -> float:
    """Seconds of `90`, `90s`, `15m`, `12h` or `30d`.

    Raises:
        CommandLineError: another form, or not above zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", given)
    if match is None or float(match[1]) <= 0:
        raise CommandLineError(f"duration {given!r} is none of 90, 90s, 15m, 12h and 30d")
    return float(match[1]) * _UNITS[match[2] or "s"]
