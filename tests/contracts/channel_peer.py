"""The served side of the channel contract: a dispatcher with one method per behaviour, for a process or an actor.

Run as a program it serves the socket named by its first argument, on the loop named by its second, and prints "ready".
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections import Counter
from typing import Any

import uvloop

from toolhost_sdk.endpoints.channel import IncomingCall
from toolhost_sdk.endpoints.codec import Limits
from toolhost_sdk.endpoints.unix_server import serve_unix
from toolhost_sdk.errors import CapacityError, NotFoundError

SMALL = Limits(max_frame=16 << 20, messages=16, size=64 << 10, calls=300)


class Probe:
    """Answers calls and remembers what happened to them as marks, which `wait_for` waits for."""

    def __init__(self) -> None:
        self.marks: Counter[str] = Counter()
        self._marked = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()

    async def __call__(self, call: IncomingCall) -> Any:
        return await getattr(self, f"on_{call.method}")(call)

    def mark(self, name: str) -> None:
        self.marks[name] += 1
        self._marked.set()
        self._marked = asyncio.Event()

    async def on_echo(self, call: IncomingCall) -> Any:
        return call.payload

    async def on_describe(self, call: IncomingCall) -> Any:
        header = call.header
        return {
            "endpoint": call.endpoint,
            "call_id": header.call_id,
            "timeout": header.timeout,
            "meta": header.meta,
            "peer": [call.peer.pid, call.peer.uid],
        }

    async def on_count(self, call: IncomingCall) -> Any:
        for number in range(call.payload):
            await call.emit("item", number)
        return call.payload

    async def on_kinds(self, call: IncomingCall) -> Any:
        for kind in call.payload:
            await call.emit(kind, {"kind": kind})

    async def on_big_item(self, call: IncomingCall) -> Any:
        await call.emit("item", bytes(call.payload))
        await call.emit("item", b"after")

    async def on_fail(self, call: IncomingCall) -> Any:
        error = CapacityError("no room for 'it'; the limit is 3", limit=3, names=["a", "b"])
        error.add_note("try again later")
        raise error

    async def on_fail_in_group(self, call: IncomingCall) -> Any:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._missing())

    async def _missing(self) -> None:
        raise NotFoundError("no 'thing' here")

    async def on_leak(self, call: IncomingCall) -> Any:
        raise ValueError(call.payload)

    async def on_exit(self, call: IncomingCall) -> Any:
        sys.exit(3)

    async def on_bad_result(self, call: IncomingCall) -> Any:
        return {"value": object()}

    async def on_bad_key(self, call: IncomingCall) -> Any:
        if call.payload == "emit":
            await call.emit("item", {(1, 2): 3})
            await asyncio.Event().wait()
        return {(1, 2): 3}

    async def on_bad_emit(self, call: IncomingCall) -> Any:
        await call.emit("result", 1)

    async def on_big_result(self, call: IncomingCall) -> Any:
        return bytes(call.payload)

    async def on_hang(self, call: IncomingCall) -> Any:
        self.mark(f"started {call.payload}")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)  # the end of a handler takes time; its caller waits for it
            self.mark(f"ended {call.payload}")

    async def on_deaf(self, call: IncomingCall) -> Any:
        """Takes no notice of a cancel until it is told by a mark."""
        self.mark(f"started {call.payload}")
        while not self.marks[f"release {call.payload}"]:
            try:
                await self._marked.wait()
            except asyncio.CancelledError:
                self.mark(f"cancelled {call.payload}")
        return "late"

    async def on_flood(self, call: IncomingCall) -> Any:
        name, size = call.payload
        try:
            while True:
                await call.emit("item", bytes(size))
                self.mark(f"sent {name}")
        finally:
            self.mark(f"ended {name}")

    async def on_upstream(self, call: IncomingCall) -> Any:
        received = []
        while (message := await call.receive()) is not None:
            received.append(message)
            await call.emit("item", message)
        return received

    async def on_never_reads(self, call: IncomingCall) -> Any:
        self.mark(f"started {call.payload}")
        await self._until(f"release {call.payload}", 1)
        return "done"

    async def on_watch_peer(self, call: IncomingCall) -> Any:
        task = asyncio.create_task(self._watch(call, call.payload))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _watch(self, call: IncomingCall, name: str) -> None:
        await call.peer_gone()
        self.mark(f"gone {name}")

    async def on_mark(self, call: IncomingCall) -> Any:
        self.mark(call.payload)

    async def on_wait_for(self, call: IncomingCall) -> Any:
        name, count = call.payload
        await self._until(name, count)
        return self.marks[name]

    async def _until(self, name: str, count: int) -> None:
        while self.marks[name] < count:
            await self._marked.wait()

    async def on_marks(self, call: IncomingCall) -> Any:
        return self.marks[call.payload]

    async def on_pid(self, call: IncomingCall) -> Any:
        return os.getpid()

    async def on_max_rss(self, call: IncomingCall) -> Any:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


async def _main(path: str) -> None:
    async with serve_unix(Probe(), path, limits=SMALL):
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    (uvloop.run if sys.argv[2] == "uvloop" else asyncio.run)(_main(sys.argv[1]))
