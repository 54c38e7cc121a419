"""What a reader cannot see, or what reorders what they see, is shown as an escape."""

from __future__ import annotations

import re

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls but tab and line feed
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f"  # zero width, separators, bidirectional
    "\u3164\ufe00-\ufe0e\ufeff\uffa0\ufff9-\ufffb"  # \ufe0f stays: it only colours an emoji
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"  # tags and variation selectors: text smuggled past the eye
)


def show(text: str) -> str:
    """*text* with controls as `\\x07`, invisible and bidirectional characters as `\\u202e`."""
    return _HIDDEN.sub(_escape, text)


def one_line(text: str) -> str:
    """*text* for a line of facts: no line end in it, and no half of a surrogate pair (paths hold any bytes)."""
    readable = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return show(readable).replace("\n", "\\n").replace("\t", "\\t")


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
