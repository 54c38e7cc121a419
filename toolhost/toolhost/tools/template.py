"""A small server to copy: change the names, keep the shape.

    spec = ToolServerTemplate.bind("/srv/notes")
    handle = spawn(spec, name="notes")          # or, in a test: `async with LocalServer(spec, name="notes", ...)`

Nothing runs when a server is defined or bound. The tool host constructs it, calls `start` once, then the functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field
from typing_extensions import override

from toolhost.tools.context import ServerEnvironment, ToolContext
from toolhost.tools.server import ToolServer, tool
from toolhost_sdk.errors import NotFoundError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A structured result: its fields become the output schema that clients see."""

    name: str
    text: str
    characters: int


class ToolServerTemplate(ToolServer):
    """Keeps short notes in a directory.

    Args:
        directory: where notes live. What is bound here says *where and how*; no model ever sees or changes it.
    """

    title = "Notes"
    version = "1"
    # Reaches the model when a client connects. Say what the server is for, not how it works.
    instructions = "Keeps short notes by name."

    # At most so many calls at once; 1 serialises a server whose functions must not overlap.
    max_concurrent = 4

    def __init__(self, directory: str) -> None:
        # Remember arguments, do nothing else: this also runs where only the definition is wanted.
        self._directory = Path(directory)

    @override
    async def start(self, env: ServerEnvironment) -> None:
        """Runs once in the tool host before the first call. Open what needs opening here."""
        await env.work(lambda: self._directory.mkdir(parents=True, exist_ok=True))

    # The docstring is the description, its `Args:` the parameters' descriptions, the annotations the schema: all
    # that a model knows. Hints are honest: this one changes nothing, so clients may run it in parallel.
    @tool(read_only=True, destructive=False, idempotent=True, open_world=False)
    def read_note(self, name: str) -> Note:
        """Return the note with this name.

        Args:
            name: as given to write_note.
        """
        path = self._path(name)
        # A plain `def` runs in a worker thread, so it may block.
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:
            # The project's errors reach the model in words; anything else becomes an incident id.
            known = sorted(entry.stem for entry in self._directory.glob("*.txt"))[:10]
            raise NotFoundError(
                f"there is no note {name!r}; there are {', '.join(known) or 'none'}"
            ) from None
        return Note(name=name, text=text, characters=len(text))

    # Text alone where the payload is text. `ToolContext` is supplied by the platform and in no schema.
    @tool(read_only=False, destructive=True, idempotent=True, open_world=False)
    async def write_note(
        self, name: str, text: Annotated[str, Field(max_length=10_000)], context: ToolContext
    ) -> str:
        """Keep a note under a name, replacing an older one.

        Args:
            name: letters, digits, '-' and '_'.
            text: what to keep.
        """
        self._path(name).write_text(text, "utf-8")
        await context.log("info", f"wrote {name}")
        return f"kept {len(text)} characters as {name!r}"

    def _path(self, name: str) -> Path:
        # Arguments come from a model: check them, never trust them.
        if not name.replace("-", "").replace("_", "").isalnum() or len(name) > 64:
            raise UsageError(f"{name!r} is no name of a note: up to 64 letters, digits, '-' and '_'")
        return self._directory / f"{name}.txt"
