"""The one output policy: bytes of a log to the text a model reads.

Order: decode, collapse redraws, strip terminal sequences (`lines`), make what is left visible (`visible`), mask
secrets (`masking`), clip long lines, cut to head and tail (`cut`). Views only: the log keeps every byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toolhost.tools.rendering import facts
from toolhost.tools.rendering.binary import binary_streams
from toolhost.tools.rendering.cut import HeadTail, clip
from toolhost.tools.rendering.lines import Line, LineFilter
from toolhost.tools.rendering.masking import Masker
from toolhost.tools.rendering.visible import show
from toolhost_sdk.node.port import Stream

_NOTE_ROOM = 400  # characters kept free for notes on what is left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """Text for the model. *whole*: nothing was left out; *shown*: bytes of output in it."""

    text: str
    whole: bool
    shown: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """How the model gets at what a view leaves out: the name of the reading function, and the job's handle."""

    function: str = "run_output"
    job: str

    def call(self, arguments: str = "") -> str:
        return f'{self.function}("{self.job}"{", " if arguments else ""}{arguments})'


class OutputView:
    """Takes a log's spans in order and makes one text of them, in bounded memory.

    Lines of the two streams are never mixed: a line stands where it was finished.

    Args:
        limit: characters the text may have.
        binary: streams not to show, with words for what they hold (see `binary_streams`).
        tagged: mark lines of stderr.
        start: offset of the first byte that will be fed.
    """

    def __init__(
        self,
        limit: int,
        *,
        masker: Masker,
        reader: Reader,
        binary: Mapping[Stream, str] | None = None,
        tagged: bool = False,
        start: int = 0,
    ) -> None:
        self._reader = reader
        self._masker = masker
        self._binary = dict(binary or {})
        self._tagged = tagged
        self._lines = HeadTail(max(limit - _NOTE_ROOM, 200))
        self._filters: dict[Stream, LineFilter] = {}
        self._sizes: dict[Stream, int] = {}
        self._offset = start
        self._clipped = 0

    def feed(self, stream: Stream, data: bytes) -> None:
        if not data:
            return
        start, self._offset = self._offset, self._offset + len(data)
        self._sizes[stream] = self._sizes.get(stream, 0) + len(data)
        if stream in self._binary:
            return
        lines = self._filters.setdefault(stream, LineFilter())
        position = 0
        while position < len(data):  # one line end at a time: the head must know the offset where it stopped
            end = data.find(b"\n", position) + 1 or len(data)
            for line in lines.feed(data[position:end]):
                self._add(stream, line, start + end)
            position = end

    def skip(self, size: int, newlines: int | None) -> None:
        """Pass over *size* bytes with *newlines* line feeds (None: nobody counted)."""
        self._offset += size
        if newlines == 0 and len(self._filters) == 1:
            for lines in self._filters.values():
                lines.skip(size)
            return
        unfinished = self._close()  # their line ends are among those passed over
        self._lines.skip(size, None if newlines is None else max(newlines - unfinished, 0))

    def finish(self, sizes: Mapping[Stream, int] | None = None) -> Rendered:
        """The text. *sizes* are the streams' lengths where they are known better than by what was fed."""
        self._close()
        cut = self._lines.cut()
        parts = list(cut.head)
        if not cut.whole:
            parts.append(self._omission(cut.lines, cut.size, cut.resume))
        parts += cut.tail
        shown = sum(len(line.encode()) + 1 for line in (*cut.head, *cut.tail))
        if self._clipped and cut.whole:
            parts.append(f"[long lines are clipped; {self._reader.call('offset=0')} reads them whole]")
        binary = {stream: self._binary[stream] for stream in self._sizes if stream in self._binary}
        for stream, words in binary.items():
            length = (sizes or {}).get(stream, self._sizes[stream])
            parts.append(self._about_binary(stream, words, length))
        whole = cut.whole and not self._clipped and not binary
        return Rendered(text="\n".join(parts), whole=whole, shown=shown)

    def _close(self) -> int:
        """Add what stands unfinished; returns how many lines that were."""
        rest = [(stream, line) for stream, lines in self._filters.items() for line in lines.close()]
        for stream, line in rest:
            self._add(stream, line, self._offset)
        self._filters = {}
        return len(rest)

    def _add(self, stream: Stream, line: Line, offset: int) -> None:
        visible = Line(self._masker.mask(show(line.text)), line.missing)
        if visible.missing or len(visible.text) > self._lines.longest_line:
            self._clipped += 1
        text = clip(visible, self._lines.longest_line)
        self._lines.add(f"stderr: {text}" if self._tagged and stream == "stderr" else text, offset)

    def _omission(self, lines: int | None, size: int, resume: int) -> str:
        count = "" if lines is None else f"{lines:,} {'line' if lines == 1 else 'lines'}, "
        call = self._reader.call(f"offset={resume}")
        return f"[... {count}{facts.size(size)} omitted; {call} reads it (also tail=, lines=, grep=) ...]"

    def _about_binary(self, stream: Stream, words: str, size: int) -> str:
        call = self._reader.call('encoding="base64"')
        return f"[binary output on {stream}: {words}, {facts.size(size)}, not shown; {call} reads the bytes]"


def render(
    spans: Sequence[tuple[Stream, bytes]],
    *,
    limit: int = 30_000,
    reader: Reader,
    masker: Masker | None = None,
    tagged: bool = False,
) -> Rendered:
    """A whole log's text. Cutting the spans differently never changes it."""
    binary = binary_streams(spans)
    view = OutputView(limit, masker=masker or Masker(), reader=reader, binary=binary, tagged=tagged)
    for stream, data in spans:
        view.feed(stream, data)
    return view.finish()
