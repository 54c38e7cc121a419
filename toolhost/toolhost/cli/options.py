"""Options that several commands share."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated

import typer

_LONGEST = 86400.0


def seconds(value: float) -> float:
    """Refuse what is no time to wait: what sockets and timers make of it teaches nothing."""
    if not (math.isfinite(value) and 0 <= value <= _LONGEST):
        raise typer.BadParameter(f"{value:g} is not from 0 to {_LONGEST:g} seconds")
    return value


def waiting_seconds(value: float) -> float:
    """`seconds` above zero."""
    if value == 0:
        raise typer.BadParameter("0 seconds is no time to wait")
    return seconds(value)


def variable(value: str | None) -> str | None:
    """Refuse what no shell takes for the name of a variable."""
    if value is not None and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) is None:
        raise typer.BadParameter(f"{value!r} is no name of an environment variable")
    return value


Home = Annotated[
    Path | None,
    typer.Option(
        "--home", help="Directory of the host's state [default: $TOOLHOST_HOME].", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Write one JSON document for scripts.")]
Arguments = Annotated[
    list[str] | None,
    typer.Option(
        "--arg", metavar="NAME=TEXT|NAME:=JSON", help="An argument; repeat for more.", show_default=False
    ),
]
ServerName = Annotated[str, typer.Argument(metavar="NAME", help="The server's name.", show_default=False)]
