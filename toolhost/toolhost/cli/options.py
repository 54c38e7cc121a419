"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
