"""Flow control of one direction of one call, in messages and bytes.

The receiver grants credit, the sender spends it. A frame may be sent while both credits are positive; the one that
crosses zero still passes, so a frame larger than the window is slow and never stuck. What is held for a reader
that stalls is bounded by the window and one frame.

Rules of this file: nothing here knows sockets or Ray; both ends count alike, so a sender that overdraws is caught.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from toolhost_sdk.endpoints.codec import ProtocolViolation
from toolhost_sdk.errors import UsageError


class SendWindow:
    """What may still be sent. Starts with the receiver's first grant."""

    __slots__ = ("_closed", "_messages", "_size", "_waiters")

    def __init__(self, messages: int, size: int) -> None:
        self._messages = messages
        self._size = size
        self._closed = False
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def closed(self) -> bool:
        return self._closed

    async def take(self, size: int) -> bool:
        """Spend credit for one frame, waiting for it. Returns False when the call is over: do not send."""
        while not self._closed:
            if self._messages > 0 and self._size > 0:
                self._messages -= 1
                self._size -= size
                return True
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        return False

    def grant(self, messages: int, size: int) -> None:
        self._messages += messages
        self._size += size
        self._wake()

    def close(self) -> None:
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class Inbox:
    """What was received and not yet read, for one reader. Grants credit back as it is read.

    Args:
        grant: called with messages and bytes when enough was read to be worth a frame.
    """

    __slots__ = (
        "_error",
        "_grant",
        "_items",
        "_messages",
        "_read_messages",
        "_read_size",
        "_size",
        "_waiter",
        "_worth_messages",
        "_worth_size",
    )

    def __init__(self, messages: int, size: int, grant: Callable[[int, int], None]) -> None:
        self._items: deque[tuple[Any, int]] = deque()
        self._messages = messages  # what the sender may still send
        self._size = size
        self._worth_messages = max(1, messages // 2)
        self._worth_size = max(1, size // 2)
        self._read_messages = 0  # read and not yet granted again
        self._read_size = 0
        self._grant = grant
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Any, size: int) -> None:
        """Raises `ProtocolViolation` when the sender had no credit left."""
        if self._messages <= 0 or self._size <= 0:
            raise ProtocolViolation("a frame beyond the credit of its call")
        self._messages -= 1
        self._size -= size
        self._append(item, size)

    def put_last(self, item: Any) -> None:
        """Add the terminal item, which needs no credit: there is one per call."""
        self._append(item, -1)

    def _append(self, item: Any, size: int) -> None:
        if self._error is None:  # what was under way when the reader's end came is dropped
            self._items.append((item, size))
            self._wake()

    def close(self, error: BaseException, *, at_once: bool = False) -> None:
        """Readers get *error* once what is here was read, or *at_once*. The first close wins unless at once."""
        if at_once:
            self._items.clear()
            self._error = error
        elif self._error is None:
            self._error = error
        self._wake()

    async def get(self) -> Any:
        """The next item. Raises what `close` was given."""
        while not self._items:
            if self._error is not None:
                raise self._error
            await self._wait()
        item, size = self._items.popleft()
        if size >= 0:
            self._was_read(size)
        return item

    async def _wait(self) -> None:
        if self._waiter is not None:
            raise UsageError("a call is read by one task at a time; another one is waiting")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _was_read(self, size: int) -> None:
        self._read_messages += 1
        self._read_size += size
        if self._read_messages < self._worth_messages and self._read_size < self._worth_size:
            return
        messages, size = self._read_messages, self._read_size
        self._read_messages = self._read_size = 0
        self._messages += messages
        self._size += size
        self._grant(messages, size)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
