"""The write end of a command's standard input.

Rules of this file: memory is bounded by what one caller hands over; a retried write never doubles input; a command that
does not read is no error, writing after the end is one.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from typing import Self

from toolhost_sdk.errors import ConflictError, UsageError

_PIECE = 65536
_ALWAYS_FITS = 4096  # what a pipe holds even when the user's quota for pipes is used up


class StdinPipe:
    """Made by `open`."""

    def __init__(self, fd: int, handle: str) -> None:
        self._fd = fd
        self._handle = handle
        self._loop = asyncio.get_running_loop()
        self._taken = 0
        self._lock = asyncio.Lock()
        self._room: asyncio.Future[None] | None = None
        self.link = f"pipe:[{os.fstat(fd).st_ino}]"

    @classmethod
    def open(cls, handle: str) -> tuple[int, Self]:
        """A descriptor to read from, and the pipe. Raises OSError when descriptors run out."""
        read, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(write, False)
        return read, cls(write, handle)

    @property
    def closed(self) -> bool:
        return self._fd < 0

    async def write(self, data: bytes, *, offset: int | None = None) -> int:
        """Write all of *data*, waiting while the command does not read. Returns the offset after it.

        Raises:
            UsageError: *offset* lies beyond what was written.
            ConflictError: stdin is closed, or was closed while waiting.
        """
        async with self._lock:
            if offset is not None:
                if offset < 0 or offset > self._taken:
                    raise UsageError(
                        f"stdin offset {offset} lies beyond the {self._taken} bytes written so far"
                    )
                data = data[self._taken - offset :]
            view = memoryview(data)
            while view or self.closed:
                if self.closed:
                    raise ConflictError(f"stdin of {self._handle!r} is closed after {self._taken} bytes")
                try:
                    written = os.write(self._fd, view[:_PIECE])
                except BlockingIOError:
                    await self._wait_for_room()
                except BrokenPipeError:
                    self.close()
                else:
                    self._taken += written
                    view = view[written:]
            return self._taken

    async def _wait_for_room(self) -> None:
        room = self._room = self._loop.create_future()
        self._loop.add_writer(self._fd, self._has_room)
        try:
            await room
        finally:
            self._room = None
            if not self.closed:
                self._loop.remove_writer(self._fd)

    def _has_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def close(self) -> None:
        """EOF. Idempotent."""
        if self._fd >= 0:
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._has_room()


def given_stdin(data: bytes) -> int:
    """A descriptor that yields *data*, then EOF, and needs nobody to feed it. Raises OSError when room runs out."""
    if len(data) <= _ALWAYS_FITS:
        read, write = os.pipe2(os.O_CLOEXEC)
        os.write(write, data)
        os.close(write)
        return read
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        file.seek(0)
        return os.dup(file.fileno())
