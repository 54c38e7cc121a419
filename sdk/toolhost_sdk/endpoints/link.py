"""What both ends of a unix channel share: frames in, frames out, the greeting, and how a connection ends.

Rules of this file: a peer that breaks the protocol ends its own connection and is logged once; nothing here waits,
but for `drained`.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import Any, Final, cast

from typing_extensions import override

from toolhost_sdk.endpoints.codec import (
    BYE,
    CREDIT,
    CREDIT_BODY,
    HEAD,
    HEAD_AFTER_LENGTH,
    HELLO,
    PROTOCOL_VERSION,
    FrameParser,
    Limits,
    Packer,
    ProtocolViolation,
    UnusablePayload,
    unpack,
)
from toolhost_sdk.endpoints.envelope import to_envelope
from toolhost_sdk.errors import ToolhostError, UnavailableError

logger = logging.getLogger(__name__)

_WRITE_APART: Final = 64 << 10  # larger bodies are handed to the transport without a copy behind their head
_HIGH_WATER: Final = 4 << 20


class Link(asyncio.Protocol, ABC):
    """One end of one connection. Subclasses handle the frames."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.peer_limits: Limits | None = None  # known once the peer greeted
        self.gone = asyncio.Event()
        self.pack = Packer().pack
        self._parser = FrameParser(limits.max_frame)
        self._transport: asyncio.Transport | None = None
        self._closing = False
        self._resumed: asyncio.Event | None = None  # set while the transport's buffer is full

    @abstractmethod
    def greeted(self) -> None:
        """The peer's limits are known; calls may start."""

    @abstractmethod
    def handle(self, kind: int, call: int, body: memoryview) -> None:
        """Take one frame after the greeting. Raises `ProtocolViolation`."""

    @abstractmethod
    def unusable(self, kind: int, call: int) -> None:
        """The payload of this frame is well formed and cannot be held here. Concerns its call alone."""

    @abstractmethod
    def lost(self, error: ToolhostError) -> None:
        """The connection is gone. Called once."""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport is no asyncio.Transport, but has all of it.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)

    def greet(self) -> None:
        limits = self.limits
        hello = {
            "version": PROTOCOL_VERSION,
            "max_frame": limits.max_frame,
            "messages": limits.messages,
            "bytes": limits.size,
        }
        self.write(HELLO, 0, self.pack(hello))

    @override
    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        try:
            for kind, call, body in self._parser.feed(data):
                if self.peer_limits is not None:
                    try:
                        self.handle(kind, call, body)
                    except UnusablePayload:
                        self.unusable(kind, call)
                elif kind == HELLO:
                    self.peer_limits = _peer_limits(unpack(body))
                    self.greeted()
                elif kind == BYE:
                    self.handle(kind, call, body)
                else:
                    raise ProtocolViolation("a frame before the greeting")
                if self._closing:
                    return
        except (ProtocolViolation, UnusablePayload) as violation:
            self._refuse(violation)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self.gone.set()
        if self._resumed is not None:
            self._resumed.set()
        self.lost(self.loss_reason(exc))

    def loss_reason(self, exc: Exception | None) -> ToolhostError:
        return UnavailableError("the peer closed the connection; the call may have run")

    @override
    def pause_writing(self) -> None:
        self._resumed = asyncio.Event()

    @override
    def resume_writing(self) -> None:
        if self._resumed is not None:
            self._resumed.set()
        self._resumed = None

    async def drained(self) -> None:
        """Wait until the transport takes more, or is gone."""
        while self._resumed is not None and not self._closing:
            await self._resumed.wait()

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def congested(self) -> bool:
        return self._resumed is not None

    def write(self, kind: int, call: int, body: bytes = b"") -> None:
        transport = self._transport
        if self._closing or transport is None:
            return
        head = HEAD.pack(HEAD_AFTER_LENGTH + len(body), kind, call)
        if len(body) > _WRITE_APART:
            transport.write(head)
            transport.write(body)
        else:
            transport.write(head + body)

    def write_credit(self, call: int, messages: int, size: int) -> None:
        self.write(CREDIT, call, CREDIT_BODY.pack(messages, size))

    def hold_reading(self, hold: bool) -> None:
        if self._transport is None or self._closing:
            return
        if hold:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def close(self, reason: ToolhostError | None = None) -> None:
        """Close after what was written went out; tell the peer *reason*."""
        if self._closing or self._transport is None:
            return
        if reason is not None:
            self.write(BYE, 0, self.pack(to_envelope(reason)))
        self._closing = True
        self._transport.close()

    def abort(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def describe(self) -> str:
        return "a peer"

    def _refuse(self, violation: Exception) -> None:
        logger.warning("closed the connection of %s: it broke the protocol: %s", self.describe(), violation)
        self.close(UnavailableError(f"the connection was closed: the peer broke the protocol: {violation}"))


def credit_of(body: memoryview) -> tuple[int, int]:
    """Messages and bytes of a CREDIT frame. Raises `ProtocolViolation`."""
    if len(body) != CREDIT_BODY.size:
        raise ProtocolViolation("a credit frame of a wrong size")
    messages, size = CREDIT_BODY.unpack(body)
    return messages, size


def _peer_limits(hello: Any) -> Limits:
    if not isinstance(hello, dict) or hello.get("version") != PROTOCOL_VERSION:
        raise ProtocolViolation(
            f"a greeting of another protocol version; this side speaks {PROTOCOL_VERSION}"
        )
    try:
        return Limits(max_frame=hello["max_frame"], messages=hello["messages"], size=hello["bytes"])
    except (KeyError, ToolhostError) as exc:
        raise ProtocolViolation(f"a greeting without proper limits: {exc}") from exc
