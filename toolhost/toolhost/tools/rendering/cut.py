"""Budgets: long lines are clipped in the middle, long output keeps a head third and a tail of two thirds."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass

from toolhost.tools.rendering.lines import Line

LONGEST_LINE = 2000
ESCAPED_LIMIT = (
    48_000  # clients move results over 50,000 characters, counted as JSON, out of the model's sight
)


def escaped_length(text: str) -> int:
    """Characters of *text* inside a JSON string."""
    return len(json.dumps(text, ensure_ascii=False)) - 2


def clip(line: Line, limit: int = LONGEST_LINE) -> str:
    """The line, cut in the middle when it has over *limit* characters; the note says how many are left out."""
    text = line.text
    if not line.missing and len(text) <= limit:
        return text
    kept = max(min(limit, len(text)) - 48, 16)
    head = kept // 2
    hidden = len(text) - kept + line.missing
    return f"{text[:head]}[... {hidden:,} characters omitted ...]{text[len(text) - (kept - head) :]}"


@dataclass(frozen=True, slots=True)
class Cost:
    """What text takes from a budget: characters, and characters as JSON."""

    plain: int = 0
    escaped: int = 0

    @classmethod
    def of(cls, line: str) -> Cost:
        return cls(len(line) + 1, escaped_length(line) + 2)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.plain + other.plain, self.escaped + other.escaped)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.plain - other.plain, self.escaped - other.escaped)

    def fits(self, limit: Cost) -> bool:
        return self.plain <= limit.plain and self.escaped <= limit.escaped


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Lines of the head and the tail; between them, *lines* lines of *size* bytes were left out."""

    head: tuple[str, ...]
    tail: tuple[str, ...] = ()
    lines: int | None = 0
    size: int = 0
    resume: int = 0  # offset in the log behind the head

    @property
    def whole(self) -> bool:
        return not self.size


class HeadTail:
    """Collects lines in bounded memory. While all of them fit, nothing is left out."""

    def __init__(self, limit: int) -> None:
        escaped = min(ESCAPED_LIMIT, 3 * limit)
        self._all = Cost(limit, escaped)
        self._third = Cost(limit // 3, escaped // 3)
        self._head: list[str] = []
        self._head_cost = Cost()
        self._head_open = True
        self._tail: deque[tuple[str, Cost]] = deque()
        self._tail_cost = Cost()
        self._lines: int | None = 0
        self._size = 0
        self._resume = 0
        self.longest_line = max(min(LONGEST_LINE, limit // 3 - 1, escaped // 9), 64)

    def add(self, line: str, offset: int) -> None:
        """Add a line that ends at *offset* of the log."""
        cost = Cost.of(line)
        if self._head_open and (self._head_cost + cost).fits(self._third):
            self._head.append(line)
            self._head_cost += cost
            self._resume = offset
            return
        self._head_open = False
        self._tail.append((line, cost))
        self._tail_cost += cost
        room = self._all - (self._third if self._size else self._head_cost)
        while self._tail and not self._tail_cost.fits(room):
            self._drop()
            room = self._all - self._third

    def skip(self, size: int, lines: int | None) -> None:
        """*size* bytes, and *lines* lines or an unknown number, stand here and are not shown."""
        while self._tail:
            self._drop()
        self._head_open = False
        self._size += size
        self._lines = None if self._lines is None or lines is None else self._lines + lines

    def cut(self) -> Cut:
        tail = tuple(line for line, _ in self._tail)
        return Cut(head=tuple(self._head), tail=tail, lines=self._lines, size=self._size, resume=self._resume)

    def _drop(self) -> None:
        line, cost = self._tail.popleft()
        self._tail_cost -= cost
        self._size += len(line.encode()) + 1
        if self._lines is not None:
            self._lines += 1
