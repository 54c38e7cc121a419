"""The log of one job: raw bytes in files, an index of fixed records beside them, gaps said aloud.

    log, index                    the head: the first bytes, kept for good
    log.<base>, index.<base>      segments of the tail; the oldest are closed, then unlinked, as new ones come

`base` is the offset of a file's first byte in the combined log, so a byte's place never shifts: what lies in no file
is a gap. Index records: offset, length, stream, monotonic time; the newest may still grow. Bytes past the last record
were appended by a supervisor that died before it could say whose they were: they read as `unknown`.

Rules of this file: an append never raises for want of space, it counts; nothing is held open for readers; files are
0600 and data is written before its index record.
"""

from __future__ import annotations

import os
import struct
import time
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from toolhost_sdk.node.port import Gap, Stream

RECORD = struct.Struct("<QIB3xQ")
HEAD = 16 << 20
CODES: dict[Stream, int] = {"unknown": 0, "stdout": 1, "stderr": 2, "tty": 3}
STREAMS: dict[int, Stream] = {code: stream for stream, code in CODES.items()}
MERGE_WITHIN = 20_000_000  # ns: pieces of one stream that arrive closer share a record
MERGE_UP_TO = 1 << 20
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(slots=True)
class Segment:
    base: int
    length: int
    head: bool

    @property
    def end(self) -> int:
        return self.base + self.length

    def names(self) -> tuple[str, str]:
        return ("log", "index") if self.head else (f"log.{self.base:016x}", f"index.{self.base:016x}")


class LogWriter:
    """Appends to a log. One writer per log.

    Args:
        directory: exists, is ours and empty.
        limit: bytes kept; what is above goes between head and tail.
    """

    def __init__(self, directory: Path, *, limit: int) -> None:
        self._directory = directory
        self._head = min(HEAD, limit // 2)
        self._tail = limit - self._head
        self._piece = max(4096, self._tail // 16)
        self.segments: list[Segment] = []
        self.size = 0
        self.limited = False  # more was written than the limit keeps
        self.no_space = False  # some of it could not be stored
        self._trimmed_to = 0
        self._data = self._index = -1
        self._position = 0  # in the index file
        self._last: tuple[int, int, int, int] | None = None  # offset, length, stream code, time
        self._open_segment(head=True)

    def append(self, stream: Stream, data: bytes | memoryview) -> None:
        """Add *data* to the end. What cannot be stored becomes a gap; the size grows all the same."""
        view = memoryview(data)
        while view:
            try:
                room = self._room()
            except OSError:
                return self._drop(len(view))
            part = view[:room]
            try:
                written = os.write(self._data, part)
            except OSError:
                return self._drop(len(view))
            if not self._record(CODES[stream], written):
                return self._drop(len(view))
            self.segments[-1].length += written
            self.size += written
            view = view[written:]
        return None

    def gaps(self) -> tuple[Gap, ...]:
        return find_gaps(self.segments, self.size, self._trimmed_to)

    def close(self) -> None:
        for fd in (self._data, self._index):
            if fd >= 0:
                os.close(fd)
        self._data = self._index = -1

    def _room(self) -> int:
        """Bytes that fit in the current file, after moving on to a new one where needed."""
        capacity = self._head if self.segments and self.segments[-1].head else self._piece
        if self._data >= 0 and self.segments[-1].length < capacity:
            return capacity - self.segments[-1].length
        self.close()
        self._trim()
        self._open_segment(head=False)
        return self._piece

    def _trim(self) -> None:
        """Make room for one more segment within the limit."""
        while (tail := [part for part in self.segments if not part.head]) and (
            sum(part.length for part in tail) + self._piece > self._tail
        ):
            oldest = tail[0]
            self.segments.remove(oldest)
            self._trimmed_to = oldest.end
            self.limited = True
            self._unlink(oldest)

    def _open_segment(self, *, head: bool) -> None:
        segment = Segment(self.size, 0, head)
        data, index = segment.names()
        self._data = os.open(self._directory / data, _FLAGS | os.O_APPEND, 0o600)
        try:
            self._index = os.open(self._directory / index, _FLAGS, 0o600)
        except OSError:
            self.close()
            (self._directory / data).unlink(missing_ok=True)
            raise
        self._position, self._last = 0, None
        self.segments.append(segment)

    def _record(self, code: int, length: int) -> bool:
        """Index the bytes just written; on failure take them back, so that no byte is without a stream."""
        at = time.monotonic_ns()
        last = self._last
        if (
            last is not None
            and last[2] == code
            and at - last[3] < MERGE_WITHIN
            and last[1] + length <= MERGE_UP_TO
            and last[0] + last[1] == self.size
        ):
            entry, position = (last[0], last[1] + length, code, last[3]), self._position - RECORD.size
        else:
            entry, position = (self.size, length, code, at), self._position
        try:
            if os.pwrite(self._index, RECORD.pack(*entry), position) != RECORD.size:
                raise OSError("short index record")
        except OSError:
            os.ftruncate(self._data, self.segments[-1].length)
            return False
        self._last, self._position = entry, position + RECORD.size
        return True

    def _drop(self, length: int) -> None:
        self.no_space = True
        self.size += length
        self.close()
        if self.segments and self.segments[-1].length == 0 and not self.segments[-1].head:
            self._unlink(self.segments.pop())

    def _unlink(self, segment: Segment) -> None:
        for name in segment.names():
            (self._directory / name).unlink(missing_ok=True)


def find_gaps(segments: list[Segment], size: int, trimmed_to: int) -> tuple[Gap, ...]:
    """What lies between the files; holes that begin below *trimmed_to* were dropped for the limit."""
    gaps: list[Gap] = []
    at = 0
    for base, end in [*((part.base, part.end) for part in segments), (size, size)]:
        if base > at:
            gaps.append(Gap(start=at, end=base, reason="log_limit" if at < trimmed_to else "no_space"))
        at = max(at, end)
    return tuple(gaps)


def stored_segments(directory: Path) -> list[Segment]:
    """The files of a log nobody writes any more."""
    found = []
    for entry in os.scandir(directory):
        if entry.name == "log":
            found.append(Segment(0, entry.stat().st_size, True))
        elif entry.name.startswith("log."):
            found.append(Segment(int(entry.name[4:], 16), entry.stat().st_size, False))
    return sorted(found, key=lambda part: (part.base, not part.head))


def stored_counts(directory: Path, segments: list[Segment]) -> dict[Stream, int]:
    """Bytes per stream by the index, `unknown` being those past it."""
    counts: dict[Stream, int] = dict.fromkeys(CODES, 0)
    for segment in segments:
        known = 0
        raw = (directory / segment.names()[1]).read_bytes()
        for at in range(0, len(raw) - len(raw) % RECORD.size, RECORD.size):
            _, length, code, _ = RECORD.unpack_from(raw, at)
            counts[STREAMS[code]] += length
            known += length
        counts["unknown"] += max(0, segment.length - known)
    return counts


def read_spans(
    directory: Path, segments: list[Segment], offset: int, limit: int
) -> list[tuple[Stream, bytes]] | None:
    """Up to *limit* bytes from *offset*, each with its stream, out of one file; None when no file holds the offset."""
    place = bisect_right([part.base for part in segments], offset) - 1
    while place >= 0 and segments[place].length == 0:
        place -= 1
    if place < 0 or offset >= segments[place].end:
        return None
    segment = segments[place]
    data_name, index_name = segment.names()
    data = _pread(directory / data_name, min(limit, segment.end - offset), offset - segment.base)
    return _tag(directory / index_name, offset, data)


def _pread(path: Path, length: int, offset: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def _tag(index: Path, offset: int, data: bytes) -> list[tuple[Stream, bytes]]:
    marks: list[tuple[Stream, int]] = []  # stream and the place in *data* where its piece ends
    at, end = offset, offset + len(data)
    fd = os.open(index, os.O_RDONLY | os.O_CLOEXEC)
    try:
        count = os.fstat(fd).st_size // RECORD.size
        low = _first_record(fd, count, offset)
        while at < end and low < count:
            for start, length, code, _ in RECORD.iter_unpack(
                _whole(os.pread(fd, 256 * RECORD.size, low * RECORD.size))
            ):
                if at < end and start + length > at:
                    at = min(end, start + length)
                    _mark(marks, STREAMS.get(code, "unknown"), at - offset)
            low += 256
    finally:
        os.close(fd)
    if at < end:
        _mark(marks, "unknown", len(data))
    begins = [0, *(place for _, place in marks)]
    return [(stream, data[begin:place]) for (stream, place), begin in zip(marks, begins, strict=False)]


def _mark(marks: list[tuple[Stream, int]], stream: Stream, place: int) -> None:
    if marks and marks[-1][0] == stream:
        marks[-1] = (stream, place)
    else:
        marks.append((stream, place))


def _whole(raw: bytes) -> bytes:
    return raw[: len(raw) - len(raw) % RECORD.size]


def _first_record(fd: int, count: int, offset: int) -> int:
    """The last record that begins at or before *offset*."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        if RECORD.unpack(os.pread(fd, RECORD.size, middle * RECORD.size))[0] <= offset:
            low = middle
        else:
            high = middle
    return low
