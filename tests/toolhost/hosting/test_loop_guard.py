"""Blocking code on a tool host's loop is named."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.support.waiting import eventually

from toolhost.hosting.loop_guard import BLOCKED, LoopGuard


def test_a_planted_blocking_call_is_named_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    """EXEC-R1"""

    async def planted() -> None:
        guard = LoopGuard(asyncio.get_running_loop(), after=0.05)
        guard.start()
        try:
            time.sleep(0.3)  # noqa: ASYNC251 - the planted fault
            await asyncio.sleep(0)
            await asyncio.to_thread(lambda: eventually(lambda: BLOCKED in caplog.text))
        finally:
            guard.stop()

    asyncio.run(planted())

    assert "in planted" in caplog.text


def test_a_loop_that_turns_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """EXEC-R1"""

    async def busy() -> None:
        guard = LoopGuard(asyncio.get_running_loop(), after=2.0)
        guard.start()
        for _ in range(50):
            await asyncio.sleep(0.002)
        guard.stop()

    asyncio.run(busy())

    assert BLOCKED not in caplog.text
