"""What commands write: results to stdout, everything else to stderr. JSON is one line per document."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from toolhost_sdk.errors import ToolhostError

_QUIET_SECONDS = 1.0


def write(text: str) -> None:
    """One result on stdout, with a line end after it."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def write_json(value: Any) -> None:
    write(json.dumps(value, ensure_ascii=False))


def note(text: str) -> None:
    """One line for a person, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def error_line(error: ToolhostError) -> str:
    """`error: <message> [<code>]`, on one line whatever the message holds."""
    message = " ".join(str(error).split()) or "no message"
    code = error.details.get("code") or error.code
    return f"error: {message} [{code}]"


@contextmanager
def patience(what: str) -> Iterator[None]:
    """Show that *what* goes on, once it takes longer than a second and where a person looks at stderr."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console  # a tenth of a second to import, and rarely needed
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    progress.add_task(what, total=None)
    timer = threading.Timer(_QUIET_SECONDS, progress.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        progress.stop()


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows in aligned columns on stdout; nothing is cut or wrapped, so that a pipe gets whole values."""
    lines = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        write("  ".join(cells).rstrip())


def server_rows(servers: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Rows for NAME, STATE, CALLS, RESTARTS, TOOLS, URL."""
    return [
        [
            str(server["name"]),
            str(server["state"]) + (f" ({server['error']})" if server.get("error") else ""),
            str(server.get("running_calls", 0)),
            str(server.get("restarts", 0)),
            str(len(server.get("tools", ()))),
            str(server["url"]),
        ]
        for server in servers
    ]


SERVER_COLUMNS = ("NAME", "STATE", "CALLS", "RESTARTS", "TOOLS", "URL")


def outcome_text(outcome: Mapping[str, Any]) -> str:
    """A tool's outcome for a terminal: its text; what is no text is named with its type and size."""
    return "\n".join(_block_text(block) for block in outcome.get("content", ())) or "(no output)"


def _block_text(block: Mapping[str, Any]) -> str:
    match block.get("type"):
        case "text":
            return str(block.get("text", ""))
        case "image" | "audio" as kind:
            size = len(str(block.get("data", ""))) * 3 // 4
            return f"[{kind} {block.get('mime_type')}, {size} bytes; --json has it]"
        case "resource" if block.get("text") is not None:
            return str(block["text"])
        case kind:
            return f"[{kind} {block.get('uri', '')}; --json has it]"


def ago(wall_time: float) -> str:
    """How long ago, in words."""
    return in_words(max(0.0, time.time() - wall_time))


def in_words(seconds: float) -> str:
    """A duration in one unit: `45 s`, `12 min`, `3 h`, `5 d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"
