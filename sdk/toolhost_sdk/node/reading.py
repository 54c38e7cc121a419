"""One read of a log: a piece of it from an offset, or the gap the offset lies in.

Rules of this file: files are opened, read and closed; nothing waits and nothing is remembered between reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolhost_sdk.errors import UsageError
from toolhost_sdk.node.logstore import Segment, read_spans
from toolhost_sdk.node.port import Gap, JobState, OutputChunk, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """What there is to read, at one moment."""

    segments: list[Segment]
    gaps: tuple[Gap, ...]
    size: int
    state: JobState
    done: bool


def chunk(directory: Path, extent: Extent, *, offset: int, limit: int, stream: Stream | None) -> OutputChunk:
    """The chunk at *offset*. Raises UsageError when it lies beyond the log."""
    if offset > extent.size:
        raise UsageError(f"offset {offset} lies beyond the log, whose size is {extent.size}")
    spans, after, gap = _spans(directory, extent, offset, min(offset + limit, extent.size))
    if stream is not None:
        spans = [span for span in spans if span[0] == stream]
    return OutputChunk(
        offset=offset,
        spans=tuple(spans),
        next_offset=after,
        size=extent.size,
        state=extent.state,
        eof=extent.done and after == extent.size,
        gap=gap,
    )


def _spans(
    directory: Path, extent: Extent, offset: int, end: int
) -> tuple[list[tuple[Stream, bytes]], int, Gap | None]:
    """Spans up to *end* or a gap, the offset after them, and the gap when *offset* lies in one."""
    for gap in extent.gaps:
        if gap.start <= offset < gap.end:
            return [], gap.end, gap
    spans: list[tuple[Stream, bytes]] = []
    while offset < end:
        part = read_spans(directory, extent.segments, offset, end - offset)
        if not part:
            break
        spans += part
        offset += sum(len(data) for _, data in part)
    return spans, offset, None
