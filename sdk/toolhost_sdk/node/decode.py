"""Text as a view of a log: incremental UTF-8, one decoder per stream.

Rules of this file: pure; nothing is added, removed or translated; a replacement character stands for bytes that are
truly invalid, never for a character that a read or the other stream's bytes cut in two.
"""

from __future__ import annotations

import codecs

from toolhost_sdk.node.port import OutputChunk, Stream

_Decoder = codecs.getincrementaldecoder("utf-8")


class StreamDecoder:
    """Turns consecutive chunks of one log into text. Feed each chunk once, in order."""

    def __init__(self) -> None:
        self._decoders: dict[Stream, codecs.IncrementalDecoder] = {}

    def feed(self, chunk: OutputChunk) -> list[tuple[Stream, str]]:
        """The text of *chunk*. The beginning of a character is held back until its rest comes, a gap or the end."""
        texts = self._flush() if chunk.gap is not None else []
        for stream, data in chunk.spans:
            if stream not in self._decoders:
                self._decoders[stream] = _Decoder(errors="replace")
            texts.append((stream, self._decoders[stream].decode(data)))
        if chunk.eof:
            texts += self._flush()
        return [(stream, text) for stream, text in texts if text]

    def _flush(self) -> list[tuple[Stream, str]]:
        return [(stream, decoder.decode(b"", final=True)) for stream, decoder in self._decoders.items()]
