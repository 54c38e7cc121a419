"""The Ray provider: the same connection as on a socket, carried by an actor's methods.

Down come the bytes of one streaming method per connection, up go numbered batches, because calls of an async actor
may start in any order. Flow control, limits and the life of a call are those of `calling` and `serving`.

Rules of this file: `ray.get` is never called; errors of Ray pass `errors_ray` once; a caller that falls silent for
three heartbeats is gone, since Ray tells an actor nothing of a caller's death.
"""

from __future__ import annotations

import asyncio
import secrets
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import ray
from ray.actor import ActorHandle
from typing_extensions import override

from toolhost_sdk.endpoints.calling import CallerLink, LinkChannel
from toolhost_sdk.endpoints.channel import Dispatcher
from toolhost_sdk.endpoints.codec import Limits
from toolhost_sdk.endpoints.errors_ray import from_ray
from toolhost_sdk.endpoints.link import Link
from toolhost_sdk.endpoints.serving import ServedLink
from toolhost_sdk.errors import ToolhostError, UnavailableError

_HIGH_WATER: Final = 4 << 20
_BATCHES_UNDER_WAY: Final = 8
_MISSED_HEARTBEATS: Final = 3


class RayChannel(LinkChannel):
    """A channel to an actor that has `ChannelActorMixin`.

    Args:
        actor: its handle. The channel works again after the actor was restarted under it.
        connect_timeout: seconds until a connection must stand; an actor that still starts counts.
        heartbeat: seconds between signs of life; the actor's side takes this caller for gone after three.
        limits: what this side accepts.
    """

    def __init__(
        self,
        actor: ActorHandle[Any],
        *,
        connect_timeout: float = 10.0,
        heartbeat: float = 2.0,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(f"actor {actor._actor_id.hex()!r}", connect_timeout=connect_timeout, limits=limits)
        self._actor = actor
        self._heartbeat = heartbeat

    @override
    async def connect(self, link: CallerLink) -> None:
        _CallerTransport(self._actor, link, self.target, self._heartbeat).start()


class ChannelActorMixin:
    """Lets an async actor be called through a `RayChannel`. The class says what answers with `channel_dispatcher`.

    Every connected channel takes one slot of the actor's `max_concurrency`.
    """

    channel_limits: Limits = Limits()
    __served: _Served | None = None

    @abstractmethod
    def channel_dispatcher(self) -> Dispatcher:
        """What answers the calls. Asked once."""

    def _channel_served(self) -> _Served:
        if self.__served is None:
            self.__served = _Served(self.channel_dispatcher(), self.channel_limits)
        return self.__served

    @ray.method(num_returns="streaming")
    async def channel_connect(self, peer: str, lease: float) -> AsyncIterator[bytes]:
        """Everything this side sends to *peer*, until it leaves or is silent for *lease* seconds."""
        transport = self._channel_served().accept(peer, lease)
        try:
            while data := await transport.next_batch():
                yield data
        finally:
            transport.lose()

    async def channel_up(self, peer: str, number: int, data: bytes | None) -> None:
        """Take batch *number* of *peer*; None means it leaves. Returns when there is room for more.

        Raises:
            UnavailableError: the peer is not connected.
        """
        await self._channel_served().take(peer, number, data)


class _Buffered(asyncio.Transport):
    """The writing half of a transport whose bytes are fetched by somebody."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self.link = link
        self._out: list[bytes] = []
        self._size = 0
        self._paused = False
        self._is_closing = False
        self._lost = False
        self._high_water = _HIGH_WATER

    @abstractmethod
    def wake(self) -> None:
        """There is something to fetch, or the end."""

    @override
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high_water = _HIGH_WATER if high is None else high

    @override
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    @override
    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_closing:
            return
        self._out.append(bytes(data))
        self._size += len(data)
        if self._size > self._high_water and not self._paused:
            self._paused = True
            self.link.pause_writing()
        self.wake()

    def fetch(self) -> bytes:
        """Everything that was written and not fetched."""
        out, self._out, self._size = self._out, [], 0
        if self._paused:
            self._paused = False
            self.link.resume_writing()
        return out[0] if len(out) == 1 else b"".join(out)

    @property
    def has_output(self) -> bool:
        return bool(self._out)

    @override
    def is_closing(self) -> bool:
        return self._is_closing

    @override
    def close(self) -> None:
        self._is_closing = True
        self.wake()

    @override
    def abort(self) -> None:
        self._is_closing = True
        self._out.clear()
        self.wake()

    def lose(self, error: ToolhostError | None = None) -> None:
        """Tell the link that the connection is gone. Once."""
        if not self._lost:
            self._lost = self._is_closing = True
            self.link.connection_lost(error)


class _CallerTransport(_Buffered):
    def __init__(self, actor: ActorHandle[Any], link: CallerLink, target: str, heartbeat: float) -> None:
        super().__init__(link)
        self._actor = actor
        self._target = target
        self._heartbeat = heartbeat
        self._peer = secrets.token_hex(16)
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._flushing = False
        self._left = False
        self._beat: asyncio.TimerHandle | None = None
        self._reader: asyncio.Task[None] | None = None
        self._batches: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        # The link writes its greeting at once; it goes up after the peer's came down.
        self.link.connection_made(self)
        self._reader = self._loop.create_task(self._read())

    async def _read(self) -> None:
        error: ToolhostError | None = None
        try:
            # Without Ray's own back-pressure, which costs 0.4 ms per batch: the credit of each call bounds what
            # waits here for a busy loop.
            lease = self._heartbeat * _MISSED_HEARTBEATS
            async for ref in self._actor.channel_connect.remote(self._peer, lease):
                data: bytes = await ref
                if self._beat is None:
                    self._schedule_beat()
                    self.wake()
                self.link.data_received(data)
        except Exception as exc:  # noqa: BLE001  # the boundary to Ray
            error = from_ray(exc, self._target)
        finally:
            self._end(error)

    def _schedule_beat(self) -> None:
        self._beat = self._loop.call_later(self._heartbeat, self._send_beat)

    def _send_beat(self) -> None:
        if not self._batches:
            self._send(b"")
        self._schedule_beat()

    @override
    def wake(self) -> None:
        # Not before the actor knows this peer; and in the next round, so that one batch holds a round's frames.
        if not self._flushing and not self._lost and (self._beat is not None or self._is_closing):
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self.has_output and self._beat is not None and len(self._batches) < _BATCHES_UNDER_WAY:
            self._send(self.fetch())
        if self._is_closing and not self.has_output and not self._left:
            self._leave()

    def _leave(self) -> None:
        self._left = True
        if self._beat is not None:
            self._send(None)
        self._end(None)

    def _send(self, data: bytes | None) -> None:
        number, self._number = self._number, self._number + 1
        try:
            ref: Awaitable[None] = self._actor.channel_up.remote(self._peer, number, data)
        except Exception as exc:  # noqa: BLE001  # the boundary to Ray
            self._end(from_ray(exc, self._target))
            return
        batch = self._loop.create_task(self._acknowledged(ref))
        self._batches.add(batch)
        batch.add_done_callback(self._batches.discard)

    async def _acknowledged(self, ref: Awaitable[None]) -> None:
        try:
            await ref
        except Exception as exc:  # noqa: BLE001  # the boundary to Ray
            self._end(from_ray(exc, self._target))
        else:
            self.wake()

    def _end(self, error: ToolhostError | None) -> None:
        if self._beat is not None:
            self._beat.cancel()
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()
        self.lose(error)


class _Served:
    """The connections of one actor."""

    def __init__(self, dispatch: Dispatcher, limits: Limits) -> None:
        self._dispatch = dispatch
        self._limits = limits
        self._links: set[ServedLink] = set()
        self._peers: dict[str, _ActorTransport] = {}

    def accept(self, peer: str, lease: float) -> _ActorTransport:
        link = ServedLink(self._dispatch, self._limits, self._links)
        transport = self._peers[peer] = _ActorTransport(link, lease, lambda: self._peers.pop(peer, None))
        link.connection_made(transport)
        return transport

    async def take(self, peer: str, number: int, data: bytes | None) -> None:
        transport = self._peers.get(peer)
        if transport is None:
            raise UnavailableError("this connection is gone; a running call may have run")
        await transport.take(number, data)


class _ActorTransport(_Buffered):
    def __init__(self, link: ServedLink, lease: float, forget: Callable[[], object]) -> None:
        super().__init__(link)
        self._lease = lease
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._readable = asyncio.Event()
        self._readable.set()
        self._expected = 0
        self._early: dict[int, bytes | None] = {}
        self._expiry = self._loop.call_later(lease, self.lose)

    @override
    def wake(self) -> None:
        self._woken.set()

    async def next_batch(self) -> bytes:
        """What to send next; empty at the end."""
        while not self.has_output and not self._is_closing:
            self._woken.clear()
            await self._woken.wait()
        return self.fetch()

    async def take(self, number: int, data: bytes | None) -> None:
        self._expiry.cancel()
        self._expiry = self._loop.call_later(self._lease, self.lose)
        self._early[number] = data
        while self._expected in self._early and not self._lost:
            batch = self._early.pop(self._expected)
            self._expected += 1
            if batch is None:
                self.lose()
            elif batch:
                self.link.data_received(batch)
        await self._readable.wait()

    @override
    def pause_reading(self) -> None:
        self._readable.clear()

    @override
    def resume_reading(self) -> None:
        self._readable.set()

    @override
    def lose(self, error: ToolhostError | None = None) -> None:
        self._expiry.cancel()
        self._readable.set()
        self._forget()
        super().lose(error)
        self.wake()
