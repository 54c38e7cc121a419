"""Helpers for tests that run commands through an executor."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass
from typing import Any

import anyio

from toolhost_sdk.node.port import CommandSpec, Executor, JobRecord, OutputChunk, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    record: JobRecord
    stdout: bytes
    stderr: bytes


def sh(script: str, **spec: Any) -> CommandSpec:
    return CommandSpec(argv=["sh", "-c", script], **spec)


async def read_all(
    executor: Executor, job: str, *, offset: int = 0, limit: int = 1 << 20, within: float = 30.0
) -> list[OutputChunk]:
    """Every chunk until the end of the log."""
    chunks: list[OutputChunk] = []
    with anyio.fail_after(within):
        while True:
            chunk = await executor.read(job, offset=offset, limit=limit, wait=5.0)
            chunks.append(chunk)
            offset = chunk.next_offset
            if chunk.eof:
                return chunks


def joined(chunks: list[OutputChunk], stream: Stream) -> bytes:
    return b"".join(data for chunk in chunks for name, data in chunk.spans if name == stream)


async def run(executor: Executor, spec: CommandSpec, *, within: float = 30.0) -> Ran:
    """Run to the end and collect what it printed."""
    started = await executor.start(spec)
    with anyio.fail_after(within):
        record = await executor.wait(started.id)
    chunks = await read_all(executor, record.id, within=within)
    return Ran(record=record, stdout=joined(chunks, "stdout"), stderr=joined(chunks, "stderr"))


def marker() -> str:
    """A number of seconds nobody else sleeps, to know a process by from outside."""
    return f"{3000 + secrets.randbelow(900)}.{secrets.randbelow(10**9):09d}"


def processes_with(text: str) -> list[int]:
    """Living processes of this machine whose command line or environment holds *text*."""
    wanted = text.encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                words = file.read()
            with open(f"/proc/{entry}/environ", "rb") as file:
                words += file.read()
            with open(f"/proc/{entry}/stat", "rb") as file:
                state = file.read().rpartition(b")")[2].split()[0]
        except OSError:
            continue
        if wanted in words and state != b"Z":
            found.append(int(entry))
    return found


async def until(condition: Any, *, within: float = 10.0, what: str = "condition") -> Any:
    """The first true value of the awaited *condition*; fails after *within* seconds."""
    deadline = time.monotonic() + within
    while True:
        value = await condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not hold within {within:g} s"
        await anyio.sleep(0.01)


async def wait_for_output(executor: Executor, job: str, text: bytes, *, within: float = 10.0) -> bytes:
    """Read until the log holds *text*."""
    seen, offset = b"", 0
    with anyio.fail_after(within):
        while text not in seen:
            chunk = await executor.read(job, offset=offset, wait=5.0)
            seen += chunk.data
            offset = chunk.next_offset
            assert text in seen or not chunk.eof, f"the log ended without {text!r}: {seen!r}"
    return seen
