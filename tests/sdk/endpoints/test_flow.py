"""Credit of one direction of one call."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolhost_sdk.endpoints.codec import ProtocolViolation
from toolhost_sdk.endpoints.flow import Inbox, SendWindow
from toolhost_sdk.errors import UnavailableError, UsageError

pytestmark = pytest.mark.anyio


@given(st.integers(1, 8), st.integers(1, 100), st.lists(st.integers(1, 300), max_size=60), st.integers(1, 10))
def test_a_window_is_never_overdrawn_and_never_stuck(
    messages: int, size: int, frames: list[int], pause: int
) -> None:
    """The reader reads in bursts of *pause*; everything arrives in order and what waits stays in the window."""

    async def run() -> None:
        window = SendWindow(messages, size)
        inbox = Inbox(messages, size, window.grant)
        waiting: list[int] = []

        async def produce() -> None:
            for index, frame in enumerate(frames):
                assert await window.take(frame)
                inbox.put(index, frame)
                waiting.append(frame)
                assert len(waiting) <= messages
                assert sum(waiting[:-1]) < size

        producer = asyncio.create_task(produce())
        for index in range(len(frames)):
            if index % pause == 0:
                await asyncio.sleep(0)
            assert await inbox.get() == index
            waiting.pop(0)
        await producer

    asyncio.run(asyncio.wait_for(run(), 10))


async def test_a_sender_without_credit_is_a_violation() -> None:
    inbox = Inbox(1, 100, lambda messages, size: None)
    inbox.put("a", 1)

    with pytest.raises(ProtocolViolation):
        inbox.put("b", 1)


async def test_closing_a_window_lets_its_waiters_go_without_sending() -> None:
    window = SendWindow(1, 1)
    assert await window.take(5)
    waiting = asyncio.create_task(window.take(1))
    await asyncio.sleep(0)

    window.close()

    assert await waiting is False
    assert await window.take(1) is False


async def test_a_reader_gets_what_came_before_the_end_and_then_the_error() -> None:
    inbox = Inbox(4, 100, lambda messages, size: None)
    inbox.put("a", 1)
    inbox.close(UnavailableError("gone"))
    inbox.close(UnavailableError("later"))

    assert await inbox.get() == "a"
    for _ in range(2):
        with pytest.raises(UnavailableError, match="gone"):
            await inbox.get()


async def test_two_readers_at_once_are_a_mistake() -> None:
    inbox = Inbox(4, 100, lambda messages, size: None)
    first = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)

    with pytest.raises(UsageError):
        await inbox.get()

    inbox.put("a", 1)
    assert await first == "a"
