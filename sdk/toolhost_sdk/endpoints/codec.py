"""Bytes on the unix channel, and payloads on every channel.

A frame is `length:u32 | type:u8 | call:u64 | body`, big-endian; the length counts what follows it. The body is
msgpack, but for CREDIT (two u32) and CANCEL (empty). Frame types from 16 on are frame kinds of the channel port.

Rules of this file: no input or output; what a peer sent wrong is a `ProtocolViolation`, what a caller handed in
wrong is a `UsageError` or a `LimitExceededError`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final, get_args

import msgpack

from toolhost_sdk.endpoints.channel import FrameKind
from toolhost_sdk.errors import LimitExceededError, UsageError

PROTOCOL_VERSION: Final = 1
_APART: Final = 4096  # pieces of a frame below this are gathered in one buffer
HEAD: Final = struct.Struct(">IBQ")
HEAD_AFTER_LENGTH: Final = HEAD.size - 4
CREDIT_BODY: Final = struct.Struct(">II")

HELLO: Final = 0  # {"version", "max_frame", "messages", "bytes"}; the first frame of both sides
BYE: Final = 1  # an error envelope; the sender closes
CALL: Final = 2  # [call_id, endpoint, method, timeout, meta, payload]
SEND: Final = 3  # an upstream message
CANCEL: Final = 4
CREDIT: Final = 5  # messages, bytes that may be sent on top

KINDS: Final[tuple[FrameKind, ...]] = get_args(FrameKind)
KIND_TYPES: Final[dict[FrameKind, int]] = {kind: 16 + index for index, kind in enumerate(KINDS)}
TYPE_KINDS: Final[dict[int, FrameKind]] = {number: kind for kind, number in KIND_TYPES.items()}
RESULT: Final = KIND_TYPES["result"]
ERROR: Final = KIND_TYPES["error"]


class ProtocolViolation(Exception):
    """The peer sent what it may not. Ends the connection, never leaves this package."""


class UnusablePayload(Exception):
    """The peer sent a dict with a list for a key: a tuple there is Python's, a list here cannot be a key.

    Packing cannot tell, so it shows on arrival; it ends the call and not the connection.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one side of a connection accepts.

    Args:
        max_frame: bytes of one frame, payload and all.
        messages: frames of one call that may be sent and not yet read.
        size: bytes of one call that may be sent and not yet read; the frame that crosses it still passes.
        calls: calls that may run on one connection.
    """

    max_frame: int = 64 << 20
    messages: int = 256
    size: int = 1 << 20
    calls: int = 1024

    def __post_init__(self) -> None:
        for name, least in (("max_frame", 1024), ("messages", 1), ("size", 1), ("calls", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value <= 1 << 30:
                raise UsageError(f"limit {name!r} must be a number from {least} to {1 << 30}, not {value!r}")


class Packer:
    """Packs payloads. One per connection: it keeps a buffer and is not safe across threads."""

    def __init__(self) -> None:
        # Text with lone surrogates is what Python makes of undecodable file names; it passes unharmed.
        self._pack = msgpack.Packer(autoreset=True, use_bin_type=True, unicode_errors="surrogatepass").pack

    def pack(self, payload: Any) -> bytes:
        """Raises `UsageError` for what is no plain data."""
        try:
            packed: bytes = self._pack(payload)
        except (TypeError, ValueError, OverflowError, RecursionError) as exc:
            raise UsageError(
                f"a payload must be None, bool, 64-bit int, float, str, bytes, list or dict, "
                f"at most 1000 levels deep: {exc}"
            ) from exc
        return packed


def unpack(body: bytes | memoryview) -> Any:
    """Decode one msgpack value from an untrusted peer. Raises `ProtocolViolation` or `UnusablePayload`."""
    try:
        return msgpack.unpackb(
            body, raw=False, strict_map_key=False, unicode_errors="surrogatepass", ext_hook=_refuse_extension
        )
    except TypeError as exc:  # an unhashable key
        raise UnusablePayload from exc
    # Everything else that msgpack raises; sizes claimed beyond the frame it refuses itself.
    except (ValueError, OverflowError, MemoryError, RecursionError, msgpack.UnpackException) as exc:
        raise ProtocolViolation(f"a body is not msgpack ({type(exc).__name__})") from exc


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code} of {len(data)} bytes")


def check_size(what: str, size: int, limit: int) -> None:
    """Raises `LimitExceededError` when a body of *size* bytes does not fit into a frame of *limit* bytes."""
    if size + HEAD_AFTER_LENGTH > limit:
        raise LimitExceededError(
            f"{what} takes {size} bytes, over the limit of {limit} bytes per frame; "
            "send it in pieces or through a file",
            size=size,
            limit=limit,
        )


class FrameParser:
    """Cuts a byte stream into frames. Holds at most one incomplete frame and what came with it."""

    __slots__ = ("_held", "_held_size", "_max_frame", "_needed")

    def __init__(self, max_frame: int) -> None:
        self._max_frame = max_frame
        self._held: list[bytes | bytearray | memoryview] = []  # joined once, when a frame is whole
        self._held_size = 0
        self._needed = 0

    def feed(self, data: bytes) -> list[tuple[int, int, memoryview]]:
        """Take bytes and return the frames they complete: type, call number, body.

        Raises:
            ProtocolViolation: a frame is longer than allowed, or too short to be one.
        """
        if self._held:
            self._hold(data)
            if self._held_size < self._needed:
                return []
            data = b"".join(self._held)
            self._held, self._held_size = [], 0
        frames = []
        view = memoryview(data)
        at, end = 0, len(data)
        self._needed = HEAD.size
        while end - at >= HEAD.size:
            length, kind, call = HEAD.unpack_from(data, at)
            if not HEAD_AFTER_LENGTH <= length <= self._max_frame:
                raise ProtocolViolation(f"a frame of {length} bytes (the limit is {self._max_frame})")
            if end - at < 4 + length:
                self._needed = 4 + length
                break
            frames.append((kind, call, view[at + HEAD.size : at + 4 + length]))
            at += 4 + length
        if at < end:
            self._hold(view[at:])
        return frames

    def _hold(self, data: bytes | memoryview) -> None:
        self._held_size += len(data)
        if len(data) >= _APART:
            self._held.append(data)
        elif self._held and isinstance(self._held[-1], bytearray):
            self._held[-1] += data  # a peer that sends byte by byte must not cost an object for each
        else:
            self._held.append(bytearray(data))
