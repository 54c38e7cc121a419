"""Bytes of one stream to the lines a terminal would have left standing.

Rules of this file: pure and incremental; how the bytes were cut into chunks never changes the result. A line feed
resets everything, so a view may start behind any of them. Nothing is hidden without an end: a control string that
a terminal would wait for past the end of the line is shown as what it is.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

_CSI = r"(?:\x1b\[|\x9b)(?P<params>[0-?]{0,64})[ -/]{0,8}(?P<final>[@-~])"
_STRING = r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]{0,65536}(?:\x07|\x1b\\|\x9c)"
_SHORT = r"\x1b(?![\[\]PX^_])[ -/]{0,8}[0-~]"
_SEQUENCE = re.compile(f"{_CSI}|{_STRING}|{_SHORT}")
_UNFINISHED = re.compile(
    r"(?:(?:\x1b\[|\x9b)[0-?]{0,64}[ -/]{0,8}"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]{0,65536}\x1b?"
    r"|\x1b[ -/]{0,8})\Z"
)
_PLAIN = re.compile(r"[^\r\n\b\x1b\x90\x98\x9b\x9d-\x9f]+")
_WHOLE_LINE = -1
LONGEST = 1 << 16  # characters of a line held; of a longer one, its two ends
END_KEPT = 1 << 13


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its end. *missing* characters between its two ends were not kept."""

    text: str
    missing: int = 0


class LineFilter:
    """Decodes UTF-8, collapses redraws (`\\r`, backspaces, erasures), drops terminal sequences, cuts into lines."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # an unfinished sequence
        self._parts: list[str] = []
        self._length = 0
        self._missing = 0
        self._rewind = 0  # characters the cursor went back; takes effect with the next character

    def feed(self, data: bytes) -> list[Line]:
        """The lines that *data* finishes."""
        return self._take(self._decoder.decode(data))

    def close(self) -> list[Line]:
        """What stands unfinished at the end, as a last line."""
        lines = self._take(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        for character in held:
            self._write(character)
        if self._length or self._missing:
            lines.append(self._end_line())
        return lines

    def skip(self, count: int) -> None:
        """Go on behind *count* bytes of the same line that will not be fed."""
        self._decoder.reset()
        self._held = ""
        self._missing += count

    def _take(self, text: str) -> list[Line]:
        text = self._held + text
        self._held = ""
        lines: list[Line] = []
        position = 0
        while position < len(text):
            if plain := _PLAIN.match(text, position):
                self._write(plain[0])
                position = plain.end()
                continue
            match text[position]:
                case "\n":
                    lines.append(self._end_line())
                case "\r":
                    self._rewind = _WHOLE_LINE
                case "\b":
                    self._rewind += self._rewind != _WHOLE_LINE
                case introducer:
                    if sequence := _SEQUENCE.match(text, position):
                        self._obey(sequence)
                        position = sequence.end()
                        continue
                    if _UNFINISHED.match(text, position):
                        self._held = text[position:]
                        return lines
                    self._write(introducer)
            position += 1
        return lines

    def _obey(self, sequence: re.Match[str]) -> None:
        """The few sequences that redraw a line; all others only vanish."""
        params = sequence["params"]
        match sequence["final"]:
            case "K" if params == "2":
                self._clear()
            case "K" if params in ("", "0"):
                self._apply_rewind()
            case "G" if params in ("", "1"):
                self._rewind = _WHOLE_LINE
            case "D" if self._rewind != _WHOLE_LINE and len(params) < 6 and (not params or params.isdigit()):
                self._rewind += int(params or 1)

    def _write(self, text: str) -> None:
        if self._rewind:
            self._apply_rewind()
        self._parts.append(text)
        self._length += len(text)
        if self._length > 2 * LONGEST:
            self._shorten()

    def _apply_rewind(self) -> None:
        back, self._rewind = self._rewind, 0
        if back == _WHOLE_LINE or back >= self._length:
            self._clear()
        elif back:
            kept = "".join(self._parts)[:-back]
            self._parts, self._length = [kept], len(kept)

    def _clear(self) -> None:
        self._parts, self._length, self._missing, self._rewind = [], 0, 0, 0

    def _shorten(self) -> None:
        text = "".join(self._parts)
        ends = [text[:END_KEPT], text[-LONGEST + END_KEPT :]]
        self._missing += len(text) - LONGEST
        self._parts, self._length = ends, LONGEST

    def _end_line(self) -> Line:
        if self._length > LONGEST:
            self._shorten()
        line = Line("".join(self._parts), self._missing)
        self._clear()
        return line
