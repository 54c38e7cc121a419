"""Synchronous callers of async code: one bridge, two spellings."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading

import pytest

from toolhost_sdk.bridge import Bridge, blocking, blocking_method
from toolhost_sdk.errors import UsageError

INTERRUPTED = """
import asyncio, os, signal
from toolhost_sdk.bridge import Bridge

bridge = Bridge()

async def work():
    os.kill(os.getpid(), signal.SIGINT)
    try:
        await asyncio.sleep(30)
    finally:
        await asyncio.sleep(0.2)
        print("cleaned up", flush=True)

try:
    bridge.run(work())
except KeyboardInterrupt:
    bridge.close()
    print("interrupted", flush=True)
"""


@blocking
async def double(n: int) -> int:
    """Twice as much."""
    await asyncio.sleep(0)
    return 2 * n


class Counter:
    def __init__(self) -> None:
        self.bridge = Bridge("counter")
        self.threads: list[str] = []

    @blocking_method
    async def add(self, n: int, *, more: int = 0) -> int:
        """Add."""
        self.threads.append(threading.current_thread().name)
        return n + more


def test_both_spellings_are_one_function() -> None:
    counter = Counter()

    async def both() -> tuple[int, int]:
        return await double.aio(2), await counter.add.aio(1, more=2)

    assert (double(2), counter.add(1, more=2), asyncio.run(both())) == (4, 3, (4, 3))
    assert counter.threads == ["counter", "counter"]
    assert (double.__doc__, counter.add.__doc__) == ("Twice as much.", "Add.")
    counter.bridge.close()


def test_the_callers_loop_turns_while_it_awaits() -> None:
    release = threading.Event()

    @blocking
    async def waits() -> str:
        return await asyncio.to_thread(lambda: str(release.wait(5)))

    async def caller() -> str:
        waiting = asyncio.ensure_future(waits.aio())
        await asyncio.sleep(0.01)
        release.set()
        return await waiting

    assert asyncio.run(caller()) == "True"


def test_a_cancelled_await_cancels_the_work() -> None:
    ended = threading.Event()

    @blocking
    async def forever() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    async def caller() -> None:
        waiting = asyncio.ensure_future(forever.aio())
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()

    asyncio.run(caller())
    assert ended.wait(5)


def test_an_interrupt_waits_until_the_work_has_cleaned_up() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=20, check=False
    )

    assert (done.stdout.split("\n"), done.stderr) == (["cleaned up", "interrupted", ""], "")


def test_a_timeout_cancels_the_work_and_says_so() -> None:
    bridge = Bridge()
    with pytest.raises(TimeoutError):
        bridge.run(asyncio.sleep(30), timeout=0.05)
    bridge.close()


def test_blocking_inside_the_core_is_refused_by_name() -> None:
    @blocking
    async def nested() -> int:
        return double(1)

    with pytest.raises(UsageError, match=r"\.aio"):
        nested()


def test_a_fork_has_a_bridge_of_its_own() -> None:
    assert double(1) == 2
    pid = os.fork()
    if pid == 0:
        os._exit(0 if double(3) == 6 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
