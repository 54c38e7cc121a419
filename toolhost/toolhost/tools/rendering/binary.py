"""Telling binary output from text by its first 8 KiB."""

from __future__ import annotations

from collections.abc import Iterable

from toolhost_sdk.node.port import Stream

SNIFFED = 8192
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG image"),
    (b"\xff\xd8\xff", "JPEG image"),
    (b"GIF8", "GIF image"),
    (b"%PDF-", "PDF document"),
    (b"\x1f\x8b", "gzip data"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ\x00", "xz data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"PK\x03\x04", "zip archive"),
    (b"\x7fELF", "ELF file"),
    (b"SQLite format 3\x00", "SQLite database"),
    (b"\x00asm", "WebAssembly module"),
)


def is_binary(data: bytes) -> bool:
    """True for a NUL, or over 30 % that is no UTF-8, in the first 8 KiB."""
    head = data[:SNIFFED]
    readable = len(head.decode("utf-8", "ignore").encode())
    return b"\x00" in head or len(head) - readable > 0.3 * len(head)


def kind(data: bytes) -> str:
    """Words for what binary *data* looks like."""
    if data[257:262] == b"ustar":
        return "tar archive"
    return next((words for magic, words in _MAGIC if data.startswith(magic)), "unknown type")


def binary_streams(spans: Iterable[tuple[Stream, bytes]]) -> dict[Stream, str]:
    """Which streams of a log are binary, with words for what they look like, judged by each one's beginning."""
    starts: dict[Stream, bytes] = {}
    for stream, data in spans:
        start = starts.get(stream, b"")
        if len(start) < SNIFFED:
            starts[stream] = start + data[: SNIFFED - len(start)]
    return {stream: kind(start) for stream, start in starts.items() if is_binary(start)}
