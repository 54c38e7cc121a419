"""Secret values never reach a view. They are masked in whole lines, so no border of a chunk or cut splits one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from toolhost.tools.rendering.visible import show
from toolhost_sdk.errors import UsageError

MASK = "[masked]"
SHORTEST = 4


class Masker:
    """Replaces each of *values* by `[masked]`. Of a value with several lines, every line is masked.

    Raises:
        UsageError: a value is shorter than 4 characters; masking it would garble everything. No value is told.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        fragments = {line.strip() for value in values for line in _checked(value).splitlines()}
        fragments = {text for text in fragments if len(text) >= SHORTEST}
        shown = fragments | {show(text) for text in fragments}
        longest_first = sorted(shown, key=len, reverse=True)
        self._text = re.compile("|".join(map(re.escape, longest_first))) if shown else None
        encoded = sorted((text.encode() for text in fragments), key=len, reverse=True)
        self._encoded = encoded
        self._bytes = re.compile(b"|".join(map(re.escape, encoded))) if encoded else None
        self.margin = max(map(len, encoded), default=0)

    def mask(self, text: str) -> str:
        return text if self._text is None else self._text.sub(MASK, text)

    def blot(self, data: bytes, borders: Sequence[int] | None = None) -> bytes:
        """*data* with secrets starred out byte for byte; with *borders*, only those that one of them tears."""
        if self._bytes is None:
            return data

        def star(match: re.Match[bytes]) -> bytes:
            torn = borders is None or any(match.start() < border < match.end() for border in borders)
            return b"*" * len(match[0]) if torn else match[0]

        return self._bytes.sub(star, data)

    def unfinished(self, data: bytes) -> int:
        """How many bytes at the end of *data* may be the beginning of a secret."""
        longest = min(self.margin - 1, len(data))
        return next(
            (
                length
                for length in range(longest, 0, -1)
                if any(secret.startswith(data[-length:]) for secret in self._encoded)
            ),
            0,
        )


def _checked(value: str) -> str:
    if len(value) < SHORTEST:
        raise UsageError(
            f"a secret of {len(value)} characters cannot be masked: the shortest that can has {SHORTEST}"
        )
    return value
