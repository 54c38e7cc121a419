"""Servers that the hosting tests spawn."""

from __future__ import annotations

import os
import sys
import threading

from toolhost import ToolContext, ToolServer, tool
from toolhost_sdk.node.port import CommandSpec


class Echo(ToolServer):
    def __init__(self, greeting: str = "") -> None:
        self.greeting = greeting

    @tool(read_only=True)
    async def echo(self, text: str) -> str:
        """Return the text."""
        return self.greeting + text

    @tool
    def pid(self) -> int:
        """The process this runs in."""
        return os.getpid()

    @tool
    async def environment(self) -> str:
        """The environment a command sees."""
        return " ".join(sorted(os.environ))


class Other(Echo):
    @tool
    def extra(self) -> str:
        """One more."""
        return "extra"


class Refuses(ToolServer):
    def __init__(self) -> None:
        raise RuntimeError("cannot open the database")

    @tool
    def never(self) -> str:
        """Never."""
        return ""


class Hangs(ToolServer):
    def __init__(self) -> None:
        threading.Event().wait(3)

    @tool
    def never(self) -> str:
        """Never."""
        return ""


class Runs(ToolServer):
    """Runs a command and waits for it."""

    async def start(self, env) -> None:  # type: ignore[no-untyped-def]  # as a user may write it
        self.env = env

    @tool
    async def sleep(self, seconds: int, ctx: ToolContext, detach: bool = False) -> str:
        """Run a sleep that nobody else runs."""
        job = await self.env.executor.start(
            CommandSpec(argv=["sleep", str(seconds)], session=self.env.name, tied=not detach)
        )
        if detach:
            return job.handle
        await ctx.progress(1, message=str(job.pid))
        done = await self.env.executor.wait(job.id)
        return str(done.signal)


class Dies(ToolServer):
    @tool
    def die(self) -> str:
        """End the process at once."""
        os.kill(os.getpid(), 9)
        return ""

    @tool
    def python(self) -> str:
        """Which Python."""
        return sys.version
