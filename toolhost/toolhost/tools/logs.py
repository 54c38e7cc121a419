"""Logs as text for a model: a whole view of one, a piece of one, lines that match.

Everything is read from the stored log, so nobody re-runs a build to see its middle. Rules of this file: reads only;
memory is bounded by constants; a search is bounded in time and its pattern engine is linear.
"""

from __future__ import annotations

import base64
import re
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

import re2

from toolhost.tools.log_access import LogAccess, Span
from toolhost.tools.rendering import (
    Line,
    LineFilter,
    Masker,
    OutputView,
    Rendered,
    binary_streams,
    clip,
    ending,
    escaped_length,
    show,
    size,
    trailer,
)
from toolhost.tools.rendering.cut import ESCAPED_LIMIT
from toolhost_sdk.errors import UsageError
from toolhost_sdk.node.port import Stream

# Rendering takes about 0.2 s a MiB and runs in the loop of the host's functions, so it works on small pieces.
WHOLE = 256 << 10  # a log up to this size is rendered from end to end
HEAD, TAIL = 96 << 10, 160 << 10  # of a larger one, its two ends
COUNTED = 64 << 20  # of what is between, line feeds are counted up to here
MOST_TAIL = 4 << 20
STEP = 64 << 10
SEARCH_SECONDS = 5.0
LONGEST_PATTERN = 1000
MOST_MATCHES = 1000
_TORN_CHARACTER = re.compile(rb"(?:[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})\Z")


class Pattern(Protocol):
    def search(self, text: str, /) -> object: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What to read of a log: exactly one way of choosing, see `read_piece`."""

    offset: int = 0
    max_bytes: int = 30_000
    tail: int | None = None
    lines: str | None = None
    grep: str | None = None
    context: int = 0
    encoding: Literal["text", "base64"] = "text"

    def __post_init__(self) -> None:
        chosen = [name for name in ("tail", "lines", "grep") if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise UsageError(f"{chosen[0]!r} and {chosen[1]!r} both choose what to read: give one of them")
        if chosen and chosen[0] != "grep" and self.offset:
            raise UsageError(f"{chosen[0]!r} and 'offset' both choose what to read: give one of them")
        if self.encoding == "base64" and chosen:
            raise UsageError(f"{chosen[0]!r} chooses lines, base64 shows bytes: use offset and max_bytes")


async def whole_view(
    log: LogAccess, *, limit: int, start: int = 0, end: int | None = None, tagged: bool = False
) -> Rendered:
    """The output from *start* on within *limit* characters; see `rendering.view`."""
    end = log.record.size if end is None else end
    first_end = end if end - start <= WHOLE else start + HEAD
    tail_start = first_end if first_end == end else end - TAIL
    head = await log.spans(start, first_end)
    newlines = await _count_newlines(log, first_end, tail_start)
    tail = await log.spans(tail_start, end)
    if tail and newlines != 0:
        tail_start, tail, more = _at_line_border(tail_start, tail)
        newlines = None if newlines is None else newlines + more
    view = OutputView(
        limit, masker=log.masker, reader=log.reader, binary=binary_streams([*head, *tail]), tagged=tagged,
        start=start,
    )  # fmt: skip
    for stream, data in head:
        view.feed(stream, data)
    if tail_start > first_end:
        view.skip(tail_start - first_end, newlines)
    for stream, data in tail:
        view.feed(stream, data)
    sizes: dict[Stream, int] = {"stdout": log.record.stdout_bytes, "stderr": log.record.stderr_bytes}
    return view.finish(sizes if start == 0 else None)


async def _count_newlines(log: LogAccess, start: int, end: int) -> int | None:
    if end - start > COUNTED:
        return None
    return sum([chunk.data.count(b"\n") async for chunk in log.chunks(start, end)])


def _at_line_border(start: int, spans: list[Span]) -> tuple[int, list[Span], int]:
    """Drop the torn first line, when there is a line border at all."""
    for index, (stream, data) in enumerate(spans):
        if (found := data.find(b"\n")) >= 0:
            dropped = sum(len(other) for _, other in spans[:index]) + found + 1
            return start + dropped, [(stream, data[found + 1 :]), *spans[index + 1 :]], 1
    return start, spans, 0


async def read_piece(log: LogAccess, piece: Piece, *, limit: int) -> tuple[str, int]:
    """A piece of a log as text with a trailer, and the offset up to which the caller has now seen it.

    Raises:
        UsageError: an offset beyond the log, a bad range, or a pattern that cannot be searched for.
    """
    if piece.offset > log.record.size:
        raise UsageError(
            f"offset {piece.offset} lies beyond the output of {log.reader.job!r}, which has {log.record.size} bytes"
        )
    if gap := next((gap for gap in log.record.gaps if gap.start <= piece.offset < gap.end), None):
        lost = f"bytes {gap.start}-{gap.end} were not kept ({gap.reason})"
        return trailer(log.reader.job, lost, f"next: offset={gap.end}"), gap.end
    if piece.tail is not None:
        return await _tail(log, piece.tail, limit)
    if piece.lines is not None:
        return await _line_range(log, piece.lines, limit)
    if piece.grep is not None:
        return await _search(log, piece, limit)
    if piece.encoding == "base64":
        return await _raw_slice(log, piece, limit)
    return await _slice(log, piece, limit)


async def _slice(log: LogAccess, piece: Piece, limit: int) -> tuple[str, int]:
    """Text from an offset on. Ends behind a line where the log goes on, never inside a character."""
    wanted = min(piece.max_bytes, limit)
    last = await _end_of_slices(log, piece.offset)
    while True:
        spans = await log.spans(piece.offset, min(last, piece.offset + wanted))
        data = b"".join(part for _, part in spans)
        length = len(data)
        if piece.offset + length < log.record.size:
            length = data.rfind(b"\n") + 1 or length
        if not log.record.done or piece.offset + length < log.record.size:
            torn = _TORN_CHARACTER.search(data[:length])
            length = torn.start() if torn and torn.start() else length
        text = transcript(_upto(spans, length), log.masker)
        if wanted <= 64 or (len(text) <= limit and escaped_length(text) <= ESCAPED_LIMIT):
            break
        wanted = max(min(wanted, length) // 2, 64)
    end = piece.offset + length
    return f"{text}{chr(10) if text else ''}{_position(log, piece.offset, end)}", end


async def _raw_slice(log: LogAccess, piece: Piece, limit: int) -> tuple[str, int]:
    wanted = min(piece.max_bytes, limit * 3 // 4 - 3)
    last = await _end_of_slices(log, piece.offset)
    spans = await log.spans(piece.offset, min(last, piece.offset + wanted), blot_all=True)
    data = b"".join(part for _, part in spans)
    end = piece.offset + len(data)
    return (
        f"{base64.b64encode(data).decode()}{chr(10) if data else ''}{_position(log, piece.offset, end)}",
        end,
    )


async def _end_of_slices(log: LogAccess, offset: int) -> int:
    """Where slices from *offset* on must stop: at the next gap, or before half a secret."""
    shown = await log.shown_end()
    return max(offset, min([shown, *(gap.start for gap in log.record.gaps if gap.start > offset)]))


def _upto(spans: list[Span], count: int) -> list[Span]:
    kept: list[Span] = []
    for stream, data in spans:
        if count <= 0:
            break
        kept.append((stream, data[:count]))
        count -= len(data)
    return kept


def transcript(spans: list[Span], masker: Masker) -> str:
    """All lines of *spans*, unclipped; those of stderr are marked."""
    filters: dict[Stream, LineFilter] = {}
    lines: list[str] = []
    for stream, data in spans:
        lines += [
            _shown(stream, line, masker) for line in filters.setdefault(stream, LineFilter()).feed(data)
        ]
    for stream, rest in filters.items():
        lines += [_shown(stream, line, masker) for line in rest.close()]
    return "\n".join(lines)


def _shown(stream: Stream, line: Line, masker: Masker) -> str:
    text = masker.mask(show(line.text))
    return f"stderr: {text}" if stream == "stderr" else text


def _position(log: LogAccess, start: int, end: int) -> str:
    record = log.record
    more = (
        f"next: offset={end}"
        if end < record.size
        else ("end" if record.done else f"so far; next: offset={end}")
    )
    return trailer(f"{log.reader.job} {ending(record)}", f"bytes {start}-{end} of {record.size}", more)


async def _tail(log: LogAccess, count: int, limit: int) -> tuple[str, int]:
    end = await log.shown_end()
    start, back = end, 64 << 10
    while start > 0 and back <= MOST_TAIL:
        start = max(0, end - back)
        spans = await log.spans(start, end)
        if sum(data.count(b"\n") for _, data in spans) > count:
            break
        back *= 2
    else:
        spans = await log.spans(start, end)
    collected = transcript(spans, log.masker).split("\n") if spans else []
    return _fitted(log, collected[-count:], limit, from_end=True), end


async def _line_range(log: LogAccess, wanted: str, limit: int) -> tuple[str, int]:
    match = re.fullmatch(r"\s*(\d+)\s*[:-]\s*(\d+)\s*", wanted)
    if match is None or not 0 < int(match[1]) <= int(match[2]):
        raise UsageError(f"{wanted!r} is no range of lines: write it as '400:480', counted from 1")
    first, last = int(match[1]), int(match[2])
    found: list[str] = []
    end = 0
    async for number, text, reached in numbered(log, 0, skip=first - 1):
        if number > last:
            break
        end = reached
        found.append(text)
        if sum(map(len, found)) > limit:
            break
    if not found:
        return trailer(f"{log.reader.job} {ending(log.record)}", f"there is no line {first}"), 0
    return _fitted(log, [f"{first + i}: {line}" for i, line in enumerate(found)], limit), end


async def numbered(log: LogAccess, start: int, *, skip: int = 0) -> AsyncIterator[tuple[int, str, int]]:
    """Lines with their number (counted from *start*) and the offset where each chunk of them ends.

    Args:
        skip: so many lines are counted by their line feeds alone.
    """
    filters: dict[Stream, LineFilter] = {}
    number = 0
    async for chunk in log.chunks(start, await log.shown_end(), STEP):
        for stream, data in chunk.spans:
            passed, number = _pass_lines(data, number, skip)
            for line in filters.setdefault(stream, LineFilter()).feed(data[passed:]):
                number += 1
                yield number, clip(Line(_shown(stream, line, log.masker), line.missing)), chunk.next_offset
    for stream, unfinished in filters.items():
        for line in unfinished.close():
            number += 1
            yield number, clip(Line(_shown(stream, line, log.masker), line.missing)), log.record.size


def _pass_lines(data: bytes, number: int, skip: int) -> tuple[int, int]:
    """How many bytes of *data* belong to the first *skip* lines when *number* were passed before it."""
    count = data.count(b"\n")
    if number + count < skip:
        return len(data), number + count
    position = 0
    while number < skip:
        position = data.index(b"\n", position) + 1
        number += 1
    return position, number


async def _search(log: LogAccess, piece: Piece, limit: int) -> tuple[str, int]:
    """Matching lines as `number: text`, with lines around them as `number- text`."""
    pattern = compiled(piece.grep or "")
    before: deque[tuple[int, str]] = deque(maxlen=max(piece.context, 0) or None)
    found: list[str] = []
    matches = after = room = last = seen = 0
    stopped = ""
    deadline = time.monotonic() + SEARCH_SECONDS
    async for number, text, end in numbered(log, piece.offset):
        seen = end
        if pattern.search(text):
            context = [entry for entry in before if entry[0] > last] if piece.context else []
            fresh = [f"{n}- {t}" for n, t in context] + [f"{number}: {text}"]
            matches, after, last = matches + 1, piece.context, number
        elif after > 0:
            fresh, after, last = [f"{number}- {text}"], after - 1, number
        else:
            fresh = []
        before.append((number, text))
        room += sum(escaped_length(line) + 2 for line in fresh)
        if room > limit or matches > MOST_MATCHES:
            stopped = "too many matches to show; narrow the pattern"
            break
        found += fresh
        if time.monotonic() > deadline:
            stopped = f"stopped after {SEARCH_SECONDS:g} s; go on with offset={end}"
            break
    facts = [f"{log.reader.job} {ending(log.record)}", f"{matches} {'match' if matches == 1 else 'matches'}"]
    counted = "" if piece.offset == 0 else f"lines counted from offset {piece.offset}"
    return "\n".join([*found, trailer(*facts, counted, stopped)]), 0 if stopped else seen


def compiled(pattern: str) -> Pattern:
    """A pattern of the linear-time engine. Raises UsageError with its words when it is none."""
    if not 0 < len(pattern) <= LONGEST_PATTERN:
        raise UsageError(f"a pattern has 1 to {LONGEST_PATTERN} characters, this one {len(pattern)}")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 8 << 20
    try:
        found: Pattern = re2.compile(pattern, options)
    except re2.error as error:
        words = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        raise UsageError(
            f"{pattern!r} cannot be searched for: {words} (RE2 syntax: no backreferences, no lookaround)"
        ) from None
    return found


def _fitted(log: LogAccess, lines: list[str], limit: int, *, from_end: bool = False) -> str:
    """Lines within *limit*; what does not fit is left out at the far end, and that is said."""
    kept: deque[str] = deque()
    room = min(limit, ESCAPED_LIMIT) - 200
    for line in reversed(lines) if from_end else lines:
        text = clip(Line(line))
        room -= escaped_length(text) + 2
        if room < 0:
            break
        kept.appendleft(text) if from_end else kept.append(text)
    left = len(lines) - len(kept)
    facts = [f"{log.reader.job} {ending(log.record)}", f"{len(kept)} {'line' if len(kept) == 1 else 'lines'}"]
    if left:
        facts.append(
            f"{left} more did not fit: {size(log.record.size)} in all, read on with lines= or offset="
        )
    return "\n".join([*kept, trailer(*facts)])
