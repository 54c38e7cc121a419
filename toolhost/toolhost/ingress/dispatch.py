"""One call from the door to the tool host and back: held through restarts, kept alive, cancelled for real.

Rules of this file: it knows no MCP; what the client sees is the `Caller`'s business. A call that may have run is made
again only when its function says that this is harmless. Whoever gives a call up ends it at the host, too.
"""

from __future__ import annotations

import asyncio
import logging
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import anyio

from toolhost.wire import Address, Route
from toolhost_sdk.endpoints.channel import CallHeader, CallStream, Channel
from toolhost_sdk.endpoints.unix_client import UnixChannel
from toolhost_sdk.errors import (
    CancelledByCaller,
    ToolhostError,
    ToolServerUnavailableError,
    UnavailableError,
)

logger = logging.getLogger(__name__)
_RETRY_SECONDS: Final = 0.1  # between attempts to reach a host whose death the controller has not noticed yet
_STEP: Final = 1e-6
EndReason = Literal["orphaned", "stopped", "stopping"]


class LiveRoute:
    """A route as it is now. Who waits learns of every change."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self.gone = False
        self._changed = asyncio.Event()

    @property
    def name(self) -> str:
        return self.route.name

    def update(self, route: Route) -> None:
        self.route = route
        self._signal()

    def end(self) -> None:
        self.gone = True
        self._signal()

    async def wait_change(self, seconds: float) -> None:
        """Return after the next change, or when *seconds* passed."""
        changed = self._changed
        with anyio.move_on_after(seconds):
            await changed.wait()

    def _signal(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class ChannelPool:
    """One channel per address, shared by the servers of a host."""

    def __init__(self) -> None:
        self._channels: dict[Address, Channel] = {}

    def get(self, address: Address) -> Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = UnixChannel(address.unix)
        return channel

    async def keep(self, addresses: Collection[Address]) -> None:
        """Close the channels to every other address."""
        for address in [known for known in self._channels if known not in addresses]:
            await self._channels.pop(address).aclose()

    async def aclose(self) -> None:
        await self.keep(())


class RequestLife:
    """Whether the HTTP request that carries a call still has its client."""

    __slots__ = ("_callbacks", "gone")

    def __init__(self) -> None:
        self.gone = False
        self._callbacks: list[Callable[[], None]] = []

    def on_gone(self, callback: Callable[[], None]) -> None:
        if self.gone:
            callback()
        else:
            self._callbacks.append(callback)

    def end(self) -> None:
        self.gone = True
        for callback in self._callbacks:
            callback()
        self._callbacks.clear()


class Caller(ABC):
    """What a running call can do at its client."""

    wants_progress: bool = False
    life: RequestLife | None = None  # None: the end of the request cancels the call by itself

    @abstractmethod
    async def progress(self, progress: float, total: float | None, message: str | None) -> None: ...

    @abstractmethod
    async def log(self, payload: Mapping[str, Any]) -> None: ...

    @abstractmethod
    async def ask(self, questions: Mapping[str, Any], state: Any) -> dict[str, Any]:
        """The answers by key. May raise whatever ends the call instead."""

    async def detach(self) -> None:  # noqa: B027  most callers have no connection to spare
        """The client may drop its connection for now."""

    def is_back(self) -> bool:
        """Whether a client that dropped its connection has taken up the call's stream again."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Args:
    repeatable: making it twice is harmless, so it is made again when the host died under it.
    """

    method: str
    payload: dict[str, Any]
    repeatable: bool = False
    meta: dict[str, Any] = field(default_factory=dict)


class Heartbeat:
    """Progress towards a client that would give up on silence. Values only grow."""

    def __init__(
        self, send: Callable[[float, float | None, str | None], Awaitable[None]], interval: float
    ) -> None:
        self._send = send
        self._interval = interval
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._sending: asyncio.Task[None] | None = None
        self.text = "still running"

    def start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._fire)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._sending is not None:
            self._sending.cancel()

    async def progress(self, value: float, total: float | None, message: str | None) -> None:
        """What the function says."""
        if self._timer is not None:
            self._timer.cancel()
            self.start()
        # Zero is a legitimate first value, though nothing was sent before it.
        self._last = value if value > self._last or (value == self._last == 0.0) else self._above()
        await self._send(self._last, total, message)

    def _above(self) -> float:
        return max(self._last + _STEP, math.nextafter(self._last, math.inf))

    def _fire(self) -> None:
        self.start()
        if self._sending is None or self._sending.done():  # a client that does not read gets no second one
            self._last = self._above()
            self._sending = asyncio.get_running_loop().create_task(self._beat(self._last))

    async def _beat(self, value: float) -> None:
        try:
            await self._send(value, None, self.text)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            logger.debug("a heartbeat found its client gone")


class _Running:
    __slots__ = ("live", "reason", "scope")

    def __init__(self, live: LiveRoute) -> None:
        self.live = live
        self.scope = anyio.CancelScope()
        self.reason: EndReason | None = None

    def end(self, reason: EndReason) -> None:
        self.reason = self.reason or reason
        self.scope.cancel()


class Dispatch:
    """Makes calls.

    Args:
        announce: told what a host says has changed: server, kind, uri.
    """

    def __init__(
        self,
        channels: ChannelPool,
        *,
        heartbeat: float,
        orphan_grace: float,
        announce: Callable[[str, str, str | None], None],
    ) -> None:
        self._channels = channels
        self._heartbeat = heartbeat
        self._orphan_grace = orphan_grace
        self._announce = announce
        self._running: set[_Running] = set()

    def running(self) -> Counter[str]:
        """Calls under way by server."""
        return Counter(call.live.name for call in self._running)

    def stop(self) -> None:
        """End every call; their clients get a result in words."""
        for call in list(self._running):
            call.end("stopping")

    def end_calls(self, live: LiveRoute) -> None:
        """The server was stopped: end its calls; their clients get a result in words."""
        for call in list(self._running):
            if call.live is live:
                call.end("stopped")

    def has_calls(self, live: LiveRoute) -> bool:
        return any(call.live is live for call in self._running)

    async def run(self, live: LiveRoute, call: Call, caller: Caller) -> Any:
        """Make the call and return its result's payload.

        Raises:
            ToolServerUnavailableError: the host is gone, or was and did not come back in time.
            ToolhostError: what the host answered with.
        """
        running = _Running(live)
        beat = Heartbeat(caller.progress, self._heartbeat)
        if caller.wants_progress:
            beat.start()
        if caller.life is not None:
            caller.life.on_gone(lambda: self._orphan(running, caller))
        self._running.add(running)
        try:
            with running.scope:
                return await self._attempt(live, call, caller, beat)
        finally:
            self._running.discard(running)
            beat.stop()
        if running.reason == "orphaned":
            raise CancelledByCaller("the client went away, so the call was cancelled")
        if running.reason == "stopped":
            raise _stopped(live)
        raise ToolServerUnavailableError(
            f"the ingress is stopping, so the call to {live.name!r} was ended; it may have run, try again in a moment"
        )

    async def _attempt(self, live: LiveRoute, call: Call, caller: Caller, beat: Heartbeat) -> Any:
        deadline = asyncio.get_running_loop().time() + live.route.hold
        reissued = False
        while True:
            channel = await self._channel(live, beat, deadline)
            entered = False
            header = CallHeader(meta=call.meta)
            try:
                async with channel.call(live.name, call.method, call.payload, header=header) as stream:
                    entered = True
                    return await self._follow(live, stream, caller, beat)
            except ToolServerUnavailableError:
                raise  # the host's own words, from a call that it refused
            except UnavailableError as error:
                if entered and live.gone:
                    raise _stopped(live) from error
                if entered and (reissued or not call.repeatable):
                    raise ToolServerUnavailableError(
                        f"server {live.name!r} ended while the call ran; it may have run: "
                        "find out before making it again",
                        may_have_run=True,
                    ) from error
                if entered:
                    deadline = asyncio.get_running_loop().time() + live.route.hold
                    reissued = True
                beat.text = f"waiting for server {live.name!r} to come back"
                await live.wait_change(_RETRY_SECONDS)

    async def _channel(self, live: LiveRoute, beat: Heartbeat, deadline: float) -> Channel:
        while True:
            route = live.route
            if live.gone:
                raise ToolServerUnavailableError(f"server {live.name!r} was stopped")
            if route.state == "failed":
                raise ToolServerUnavailableError(
                    f"server {live.name!r} failed and is not started again; its log says why: "
                    f"`toolhost logs {live.name}`"
                )
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                raise ToolServerUnavailableError(
                    f"server {live.name!r} is {route.state} and did not answer within {route.hold:g} s; "
                    "try again in a moment"
                )
            if route.state in ("ready", "draining") and route.address is not None:
                beat.text = "still running"
                return self._channels.get(route.address)
            beat.text = f"waiting for server {live.name!r} to come back"
            await live.wait_change(left)

    async def _follow(self, live: LiveRoute, stream: CallStream, caller: Caller, beat: Heartbeat) -> Any:
        async for frame in stream:
            payload = frame.payload
            match frame.kind:
                case "result":
                    return payload
                case "progress":
                    await beat.progress(
                        float(payload["progress"]), payload.get("total"), payload.get("message")
                    )
                case "log":
                    await caller.log(payload)
                case "ask":
                    answers = await caller.ask(payload["questions"], payload.get("state"))
                    await stream.send({"answers": answers})
                case "changed":
                    self._announce(live.name, payload["what"], payload.get("uri"))
                case "detach":
                    await caller.detach()
                case _:
                    pass  # accepted, handle, item: nothing that an inline call shows
        raise ToolhostError("a call ended without a result")

    def _orphan(self, running: _Running, caller: Caller) -> None:
        if running not in self._running:
            return

        def check() -> None:
            if running not in self._running:
                return
            if caller.is_back():
                self._orphan(running, caller)
            else:
                running.end("orphaned")

        asyncio.get_running_loop().call_later(self._orphan_grace, check)


def _stopped(live: LiveRoute) -> ToolServerUnavailableError:
    return ToolServerUnavailableError(
        f"server {live.name!r} was stopped while the call ran; it may have run", may_have_run=True
    )
