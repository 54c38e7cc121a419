"""The calling end of a connection: any number of calls on it, opened when first needed.

Rules of this file: a call in flight when its connection ends fails with `UnavailableError`, for it may have run;
the next call opens a new connection; nothing is retried here; how bytes reach the peer is the provider's.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Final, Self

import anyio
from typing_extensions import override

from toolhost_sdk.endpoints.channel import CallHeader, CallStream, Channel, Frame
from toolhost_sdk.endpoints.codec import (
    BYE,
    CALL,
    CANCEL,
    CREDIT,
    ERROR,
    RESULT,
    SEND,
    TYPE_KINDS,
    Limits,
    ProtocolViolation,
    check_size,
    unpack,
)
from toolhost_sdk.endpoints.envelope import from_envelope, to_envelope
from toolhost_sdk.endpoints.flow import Inbox, SendWindow
from toolhost_sdk.endpoints.link import Link, credit_of
from toolhost_sdk.errors import (
    CancelledByCaller,
    DeadlineExceededError,
    InternalError,
    ToolhostError,
    UnavailableError,
    UsageError,
)

_EXIT_WAIT: Final = 1.0  # the port's promise to wait for a cancelled handler's end


class LinkChannel(Channel):
    """A channel over one connection. Providers say how one is made.

    Args:
        target: the peer, in words for messages: "the server at '/run/x.sock'".
        connect_timeout: seconds until a connection must stand, greeting included.
        limits: what this side accepts.
    """

    def __init__(self, target: str, *, connect_timeout: float, limits: Limits | None) -> None:
        self.target = target
        self._connect_timeout = connect_timeout
        self._limits = limits or Limits()
        self._link: CallerLink | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    @abstractmethod
    async def connect(self, link: CallerLink) -> None:
        """Give *link* its transport. Raises errors of the tree only; may be cancelled."""

    @override
    def call(
        self, endpoint: str, method: str, payload: Any = None, *, header: CallHeader | None = None
    ) -> LinkCall:
        return LinkCall(self, endpoint, method, payload, header or CallHeader())

    @override
    async def aclose(self) -> None:
        self._closed = True
        link, self._link = self._link, None
        if link is not None:
            link.fail_all(UnavailableError(f"the channel to {self.target} was closed"))
            link.close()
            with anyio.move_on_after(_EXIT_WAIT, shield=True):
                await link.gone.wait()
            link.abort()

    def standing(self) -> CallerLink | None:
        """The connection, if it stands."""
        link = self._link
        return link if link is not None and not link.closing else None

    async def open(self) -> CallerLink:
        """The connection, made anew where needed. Raises `UnavailableError` or `PermissionDeniedError`."""
        # Bounded from the call on: callers that wait in turn must not add up their times.
        with anyio.move_on_after(self._connect_timeout):
            async with self._opening:
                link = self.standing() or await self._greeted()
                if self._closed:
                    link.abort()
                    raise UnavailableError(f"the channel to {self.target} is closed")
                self._link = link
                return link
        raise UnavailableError(f"no answer from {self.target} within {self._connect_timeout:g} s")

    async def _greeted(self) -> CallerLink:
        link = CallerLink(self.target, self._limits)
        done = False
        try:
            if not self._closed:
                await self.connect(link)
                await link.ready
            done = True
        finally:
            if not done:
                link.abort()
        return link


class CallerLink(Link):
    """A connection seen by the side that calls."""

    def __init__(self, target: str, limits: Limits) -> None:
        super().__init__(limits)
        self._target = target
        self._streams: dict[int, LinkCall] = {}
        self._next = 1
        self._farewell: ToolhostError | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.greet()

    @override
    def greeted(self) -> None:
        if not self.ready.done():
            self.ready.set_result(None)

    def start(self, stream: LinkCall, body: bytes) -> int:
        """Send a call and return its number. Raises `UnavailableError`."""
        if self.closing:
            raise UnavailableError(f"the connection to {self._target} ended before the call was made")
        number = self._next
        self._next += 1
        self._streams[number] = stream
        self.write(CALL, number, body)
        return number

    def forget(self, number: int) -> None:
        self._streams.pop(number, None)

    @override
    def handle(self, kind: int, call: int, body: memoryview) -> None:
        stream = self._streams.get(call)
        if stream is not None:
            stream.take(kind, body)
        elif kind == BYE:
            envelope = unpack(body)
            if isinstance(envelope, dict):
                self._farewell = from_envelope(envelope)
            self.close()
        elif not 0 < call < self._next:
            raise ProtocolViolation("a frame for a call that was never made")
        # Frames of a call that was given up may still be under way.

    @override
    def unusable(self, kind: int, call: int) -> None:
        stream = self._streams.get(call)
        if stream is not None:
            stream.unusable(last=kind in (RESULT, ERROR))

    @override
    def loss_reason(self, exc: Exception | None) -> ToolhostError:
        if self._farewell is not None:
            return self._farewell
        if isinstance(exc, ToolhostError):
            return exc
        return UnavailableError(f"the connection to {self._target} ended; a running call may have run")

    @override
    def lost(self, error: ToolhostError) -> None:
        if not self.ready.done():
            self.ready.set_exception(error)
            self.ready.exception()  # nobody may be waiting any more
        self.fail_all(error)

    def fail_all(self, error: ToolhostError) -> None:
        streams, self._streams = self._streams, {}
        envelope = to_envelope(error)
        for stream in streams.values():
            stream.end(from_envelope(envelope))  # one each: an exception raised twice mixes its tracebacks

    @override
    def describe(self) -> str:
        return self._target


class LinkCall(CallStream):
    """One call over a connection."""

    def __init__(
        self, channel: LinkChannel, endpoint: str, method: str, payload: Any, header: CallHeader
    ) -> None:
        self._channel = channel
        self._endpoint = endpoint
        self._method = method
        self._payload = payload
        self._header = header
        self._link: CallerLink | None = None
        self._number = 0
        self._inbox: Inbox
        self._window: SendWindow
        self._timer: asyncio.TimerHandle | None = None
        self._over = False  # the last frame came, or none will
        self._delivered = False  # the result was read
        self._cancelled = False
        self._handler_ended: asyncio.Event | None = None

    @override
    async def __aenter__(self) -> Self:
        if self._link is not None:
            raise UsageError("a call stream is entered once; make another call")
        header = self._header
        self._check_header()
        loop = asyncio.get_running_loop()
        deadline = None if header.timeout is None else loop.time() + header.timeout
        link = await self._ready_link()
        limits = link.peer_limits
        assert limits is not None
        body = link.pack(
            [header.call_id, self._endpoint, self._method, header.timeout, header.meta, self._payload]
        )
        self._payload = None
        check_size(f"the payload for {self._name}", len(body), limits.max_frame)
        self._inbox = Inbox(link.limits.messages, link.limits.size, self._grant)
        self._window = SendWindow(limits.messages, limits.size)
        self._number = link.start(self, body)
        self._link = link
        if deadline is not None:
            self._timer = loop.call_at(deadline, self._expire)
        return self

    def _check_header(self) -> None:
        # A peer ends the connection, and every call on it, over a header of wrong types.
        header, timeout = self._header, self._header.timeout
        texts = (header.call_id, self._endpoint, self._method)
        if not all(isinstance(text, str) for text in texts) or not isinstance(header.meta, dict):
            raise UsageError("call id, endpoint and method of a call are text, and its meta is a dict")
        if timeout is not None:
            if isinstance(timeout, bool) or not isinstance(timeout, int | float):
                raise UsageError(f"timeout must be seconds or None, not {timeout!r}")
            if not timeout > 0:
                raise self._too_late()

    async def _ready_link(self) -> CallerLink:
        """A connection that takes more, within this call's time."""
        link = self._channel.standing()
        if link is not None and not link.congested:
            return link
        try:
            with anyio.fail_after(self._header.timeout):
                link = link or await self._channel.open()
                if link.congested:
                    await link.drained()
        except TimeoutError as exc:
            if isinstance(exc, ToolhostError):
                raise
            raise self._too_late() from None
        return link

    @property
    def _name(self) -> str:
        return f"'{self._endpoint}.{self._method}'"

    def _too_late(self) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"call of {self._name} exceeded its timeout of {self._header.timeout:g} s",
            timeout=self._header.timeout,
        )

    def take(self, kind: int, body: memoryview) -> None:
        """One frame of this call from the server. Raises `ProtocolViolation`."""
        if kind == RESULT:
            self._inbox.put_last(Frame("result", unpack(body)))
            self._finish()
        elif kind == ERROR:
            envelope = unpack(body)
            if not isinstance(envelope, dict):
                raise ProtocolViolation("an error frame without an envelope")
            self._inbox.close(from_envelope(envelope))
            self._finish()
        elif kind == CREDIT:
            self._window.grant(*credit_of(body))
        elif kind in TYPE_KINDS:
            self._inbox.put(Frame(TYPE_KINDS[kind], unpack(body)), len(body))
        else:
            raise ProtocolViolation(f"a frame of type {kind}, which a server does not send")

    def unusable(self, *, last: bool) -> None:
        """A frame came whose payload cannot be decoded here; *last*: no other will come."""
        self._inbox.close(InternalError(f"{self._name} sent a dict with a list for a key"))
        if last:
            self._finish()
        else:
            self._ask_to_stop()

    def end(self, error: ToolhostError) -> None:
        """No frame will come any more."""
        self._inbox.close(error)
        self._finish()

    def _finish(self) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._link is not None:
            self._link.forget(self._number)
        self._window.close()
        if self._handler_ended is not None:
            self._handler_ended.set()

    def _expire(self) -> None:
        self._inbox.close(self._too_late())
        self._ask_to_stop()

    def _ask_to_stop(self) -> None:
        if not self._cancelled and not self._over and self._link is not None:
            self._cancelled = True
            self._window.close()
            self._link.write(CANCEL, self._number)

    def _grant(self, messages: int, size: int) -> None:
        if self._link is not None and not self._over:
            self._link.write_credit(self._number, messages, size)

    @override
    def __aiter__(self) -> AsyncIterator[Frame]:
        return self

    async def __anext__(self) -> Frame:
        if self._link is None:
            raise UsageError("enter the call with 'async with' before reading it")
        if self._delivered:
            raise StopAsyncIteration
        frame: Frame = await self._inbox.get()
        self._delivered = frame.kind == "result"
        return frame

    @override
    async def send(self, payload: Any) -> None:
        link = self._link
        if link is None:
            raise UsageError("enter the call with 'async with' before sending to it")
        assert link.peer_limits is not None
        body = link.pack(payload)
        check_size(f"a message to {self._name}", len(body), link.peer_limits.max_frame)
        if await self._window.take(len(body)):
            link.write(SEND, self._number, body)
            if link.congested:
                await link.drained()

    @override
    async def cancel(self) -> None:
        if self._link is None or self._delivered:
            return
        self._ask_to_stop()
        self._inbox.close(
            CancelledByCaller(f"call of {self._name} was cancelled by its caller"), at_once=True
        )

    @override
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        link = self._link
        if self._over or link is None:
            return
        self._ask_to_stop()
        self._handler_ended = asyncio.Event()
        # Shielded: an anyio scope that was cancelled would end this wait at once, and the handler unawaited.
        try:
            with anyio.move_on_after(_EXIT_WAIT, shield=True):
                await self._handler_ended.wait()
        finally:
            if not self._over:
                self._finish()
