"""The served end of a connection: its calls, each a task of its own.

Rules of this file: every call gets exactly one last frame while its connection stands; a call is cancelled when
its caller asks, its time is over or its connection is gone; how bytes reach the peer is the provider's.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection
from typing import Any, Final, Literal, assert_never

import anyio
from typing_extensions import override

from toolhost_sdk.endpoints.channel import (
    TERMINAL_KINDS,
    CallHeader,
    Dispatcher,
    FrameKind,
    IncomingCall,
    Peer,
)
from toolhost_sdk.endpoints.codec import (
    BYE,
    CALL,
    CANCEL,
    CREDIT,
    ERROR,
    KIND_TYPES,
    RESULT,
    SEND,
    Limits,
    ProtocolViolation,
    check_size,
    unpack,
)
from toolhost_sdk.endpoints.envelope import to_envelope
from toolhost_sdk.endpoints.flow import Inbox, SendWindow
from toolhost_sdk.endpoints.link import Link, credit_of
from toolhost_sdk.errors import (
    CancelledByCaller,
    CapacityError,
    DeadlineExceededError,
    ToolhostError,
    UnavailableError,
    UsageError,
)

logger = logging.getLogger(__name__)

_CLOSE_WAIT: Final = 2.0
_Stop = Literal["caller", "deadline", "lost", "closing", "unusable"]


class ServedLink(Link):
    """A connection seen by the side that serves.

    Args:
        links: the server's open connections; this one enters and leaves it by itself.
    """

    def __init__(self, dispatch: Dispatcher, limits: Limits, links: set[ServedLink]) -> None:
        super().__init__(limits)
        self.dispatch = dispatch
        self.peer = Peer()
        self._links = links
        self._calls: dict[int, ServedCall] = {}
        self._last = 0

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._links.add(self)
        self.welcome(transport)

    def welcome(self, transport: asyncio.BaseTransport) -> None:
        """Greet; or close, where a provider knows that this peer may not connect."""
        self.greet()

    @override
    def greeted(self) -> None:
        pass

    @override
    def pause_writing(self) -> None:
        # A caller that asks and does not read stops being read. Only this end does so: two would lock each other.
        super().pause_writing()
        self.hold_reading(True)

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        self.hold_reading(False)

    @override
    def handle(self, kind: int, call: int, body: memoryview) -> None:
        if kind == CALL:
            self._start(call, body)
            return
        if kind == BYE:
            self.close()
            return
        if not 0 < call <= self._last:
            raise ProtocolViolation("a frame for a call that was never made")
        running = self._calls.get(call)
        if running is not None:  # else it ended while this frame was under way
            running.take(kind, body)

    def _start(self, number: int, body: memoryview) -> None:
        if number <= self._last:
            raise ProtocolViolation("a call number that was used before")
        self._last = number
        call = ServedCall(self, number, unpack(body))
        if len(self._calls) >= self.limits.calls:
            call.fail(
                CapacityError(
                    f"{self.limits.calls} calls run on this connection, which is its limit; wait for one to end",
                    limit=self.limits.calls,
                )
            )
            return
        self._calls[number] = call
        call.start()

    @override
    def unusable(self, kind: int, call: int) -> None:
        running = self._calls.get(call)
        if running is not None:
            running.stop("unusable")
        elif kind == CALL:
            self.write(ERROR, call, self.pack(to_envelope(_unusable())))

    def forget(self, number: int) -> None:
        self._calls.pop(number, None)

    def stop_all(self, why: _Stop) -> None:
        for call in list(self._calls.values()):
            call.stop(why)

    async def finished(self) -> None:
        """Wait until no call runs."""
        tasks = [call.task for call in self._calls.values() if call.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    @override
    def lost(self, error: ToolhostError) -> None:
        self._links.discard(self)
        self.stop_all("lost")

    @override
    def describe(self) -> str:
        return "a caller" if self.peer.uid is None else f"pid {self.peer.pid}, uid {self.peer.uid}"


class ServedCall(IncomingCall):
    """One call of a connection, and the task that answers it."""

    __slots__ = (
        "_deadline",
        "_inbox",
        "_link",
        "_max_frame",
        "_number",
        "_started",
        "_stop",
        "_window",
        "endpoint",
        "header",
        "method",
        "payload",
        "peer",
        "task",
    )

    def __init__(self, link: ServedLink, number: int, fields: Any) -> None:
        limits, own = link.peer_limits, link.limits
        assert limits is not None
        self.header, self.endpoint, self.method, self.payload = _parse_call(fields)
        self.peer = link.peer
        self.task: asyncio.Task[None] | None = None
        self._link = link
        self._number = number
        self._max_frame = limits.max_frame
        self._window = SendWindow(limits.messages, limits.size)
        self._inbox = Inbox(own.messages, own.size, self._grant)
        self._started = False
        self._stop: _Stop | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        if self.header.timeout is not None:
            self._deadline = loop.call_later(max(0.0, self.header.timeout), self.stop, "deadline")
        self.task = loop.create_task(self._run())

    def stop(self, why: _Stop) -> None:
        if self._stop is not None:
            return
        self._stop = why
        self._window.close()
        # A task cancelled before its first step would never run, and its caller never get a last frame.
        if self._started and self.task is not None:
            self.task.cancel()

    def take(self, kind: int, body: memoryview) -> None:
        if kind == CREDIT:
            self._window.grant(*credit_of(body))
        elif kind == SEND:
            self._inbox.put(unpack(body), len(body))
        elif kind == CANCEL:
            self.stop("caller")
        else:
            raise ProtocolViolation(f"a frame of type {kind}, which a caller does not send")

    async def _run(self) -> None:
        self._started = True
        failure: BaseException | None = None
        body = b""
        try:
            if self._stop is None:
                body = self._packed(await self._link.dispatch(self))
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # noqa: BLE001  # the boundary; SystemExit of a handler must not end its server
            failure = exc
        if self._stop is not None:
            if failure is not None and not isinstance(failure, asyncio.CancelledError):
                logger.warning("call of %s failed while it was being stopped", self._name, exc_info=failure)
            failure = self._stop_error(self._stop)
        if failure is None:
            self._end(RESULT, body)
        else:
            self.fail(failure)

    def fail(self, error: BaseException) -> None:
        """Send the last frame of a call that failed."""
        self._end(ERROR, self._link.pack(to_envelope(error)))

    def _end(self, kind: int, body: bytes) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._window.close()
        self._inbox.close(UnavailableError(f"call of {self._name} is over"))
        self._link.forget(self._number)
        self._link.write(kind, self._number, body)

    def _packed(self, result: Any) -> bytes:
        try:
            body = self._link.pack(result)
        except UsageError as exc:
            # The handler's mistake, not its caller's: it reaches the caller as an incident.
            raise TypeError(f"{self._name} returned what a channel cannot carry") from exc
        check_size(f"the result of {self._name}", len(body), self._max_frame)
        return body

    def _stop_error(self, why: _Stop) -> ToolhostError:
        match why:
            case "caller":
                return CancelledByCaller(f"call of {self._name} was cancelled by its caller")
            case "deadline":
                return DeadlineExceededError(
                    f"call of {self._name} exceeded its timeout of {self.header.timeout:g} s",
                    timeout=self.header.timeout,
                )
            case "lost" | "closing":
                return UnavailableError(f"the server closed while {self._name} ran")
            case "unusable":
                return _unusable()
            case _:
                assert_never(why)

    @property
    def _name(self) -> str:
        return f"'{self.endpoint}.{self.method}'"

    def _grant(self, messages: int, size: int) -> None:
        if not self._window.closed:
            self._link.write_credit(self._number, messages, size)

    @override
    async def emit(self, kind: FrameKind, payload: Any = None) -> None:
        if kind in TERMINAL_KINDS or kind not in KIND_TYPES:
            raise UsageError(
                f"a handler cannot emit a frame of kind {kind!r}; it returns or raises to end the call"
            )
        body = self._link.pack(payload)
        check_size(f"a frame of {self._name}", len(body), self._max_frame)
        if await self._window.take(len(body)):
            self._link.write(KIND_TYPES[kind], self._number, body)
            if self._link.congested:
                await self._link.drained()

    @override
    async def receive(self) -> Any:
        return await self._inbox.get()

    @override
    async def peer_gone(self) -> None:
        await self._link.gone.wait()


def _unusable() -> UsageError:
    return UsageError(
        "a payload holds a dict with a list or tuple for a key; keys are text, bytes or numbers"
    )


def _parse_call(fields: Any) -> tuple[CallHeader, str, str, Any]:
    if not isinstance(fields, list) or len(fields) != 6:
        raise ProtocolViolation("a call that is no list of six")
    call_id, endpoint, method, timeout, meta, payload = fields
    if not (isinstance(call_id, str) and isinstance(endpoint, str) and isinstance(method, str)):
        raise ProtocolViolation("a call whose id, endpoint or method is no text")
    if not isinstance(meta, dict) or not _is_timeout(timeout):
        raise ProtocolViolation("a call whose meta or timeout has the wrong type")
    return CallHeader(call_id=call_id, timeout=timeout, meta=meta), endpoint, method, payload


def _is_timeout(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


async def close_all(connections: Collection[ServedLink]) -> None:
    """Cancel what runs, let the last frames out, close. Takes at most two seconds."""
    links = list(connections)
    for link in links:
        link.stop_all("closing")
    with anyio.move_on_after(_CLOSE_WAIT):
        for link in links:
            await link.finished()
        for link in links:
            link.close()
        for link in links:
            await link.gone.wait()
    for link in links:
        link.abort()
