"""One job's log as spans that hold no secret across their borders.

Rules of this file: reads only. A secret is masked in the text of a whole line elsewhere; here only what a border of a
read would tear out of such a line is blotted, so that reading piece by piece shows no more than reading all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from toolhost.tools.rendering import Masker, Reader
from toolhost_sdk.node.port import Executor, JobRecord, OutputChunk, Stream

READ = 1 << 20
Span = tuple[Stream, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogAccess:
    """One job's log, as it was when the record was taken, with what is needed to show it."""

    executor: Executor
    record: JobRecord
    masker: Masker
    reader: Reader

    async def chunks(self, start: int, end: int, step: int = READ) -> AsyncIterator[OutputChunk]:
        """The log from *start* to *end*, gaps included as chunks without spans."""
        offset = start
        while offset < end:
            chunk = await self.executor.read(self.record.id, offset=offset, limit=min(step, end - offset))
            if chunk.next_offset == offset:
                return
            yield chunk
            offset = chunk.next_offset

    async def spans(self, start: int, end: int, *, blot_all: bool = False) -> list[Span]:
        """The spans between two offsets.

        Args:
            blot_all: blot secrets out also where no border tears them: for bytes that no text mask will see.
        """
        margin = self.masker.margin
        low, high = max(0, start - margin), min(self.record.size, end + margin)
        pieces: list[tuple[int, Stream, bytes]] = []
        async for chunk in self.chunks(low, high):
            position = chunk.offset
            for stream, data in chunk.spans:
                pieces.append((position, stream, data))
                position += len(data)
        if margin:
            pieces = self._blotted(pieces, start, end, blot_all=blot_all)
        cut = [
            (stream, data[max(0, start - position) : max(0, end - position)])
            for position, stream, data in pieces
        ]
        return [(stream, data) for stream, data in cut if data]

    def _blotted(
        self, pieces: list[tuple[int, Stream, bytes]], start: int, end: int, *, blot_all: bool
    ) -> list[tuple[int, Stream, bytes]]:
        clean: dict[Stream, bytes] = {}
        for stream in {stream for _, stream, _ in pieces}:
            own = [(position, data) for position, other, data in pieces if other == stream]
            borders = [
                sum(min(max(border - position, 0), len(data)) for position, data in own)
                for border in (start, end)
            ]
            clean[stream] = self.masker.blot(b"".join(data for _, data in own), None if blot_all else borders)
        result: list[tuple[int, Stream, bytes]] = []
        for position, stream, data in pieces:
            result.append((position, stream, clean[stream][: len(data)]))
            clean[stream] = clean[stream][len(data) :]
        return result

    async def shown_end(self) -> int:
        """Where showing may stop for now: while the job runs, before a secret that is only half written."""
        size, margin = self.record.size, self.masker.margin
        if self.record.done or not margin:
            return size
        start = max(0, size - 4 * margin)
        position, held = start, size
        endings: dict[Stream, tuple[bytes, int]] = {}
        async for chunk in self.chunks(start, size):
            position = chunk.offset
            for stream, data in chunk.spans:
                before, _ = endings.get(stream, (b"", 0))
                position += len(data)
                endings[stream] = (before + data, position)
        for data, end in endings.values():
            held = min(held, end - self.masker.unfinished(data))
        return held
