"""The channel port: how a caller reaches an endpoint in another process of this node, or of another one.

A call goes to `(endpoint, method)` with one payload and comes back as a stream of frames, the last of which is
a `result` or an `error`. While it runs, the caller may send messages upstream (answers to questions) and may
cancel. Providers: `unix` (this node) and `channel_ray` (another node). One contract suite holds for both.

Rules of this file: payloads are plain data that msgpack can carry (None, bool, int, float, str, bytes, list,
dict); no frame knows any protocol of the outside; the port raises only errors of `toolhost_sdk.errors`.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Protocol, Self

FrameKind = Literal[
    "accepted",  # arguments checked, no more questions will come
    "progress",  # {"progress": float, "total": float | None, "message": str | None}
    "item",  # one element of a streamed result
    "ask",  # a question for the caller's user: {"key": str, "kind": str, "params": dict}
    "handle",  # {"job": str}: the call turned into a job with this name
    "log",  # {"level": str, "data": Any, "logger": str | None}
    "changed",  # {"what": "tools" | "prompts" | "resources", "uri": str | None}
    "detach",  # the caller may drop its connection and resume later
    "result",  # last frame of a call that returned
    "error",  # last frame of a call that failed; the payload is an error envelope
]
TERMINAL_KINDS: frozenset[str] = frozenset({"result", "error"})


def new_call_id() -> str:
    """128 random bits, hexadecimal."""
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallHeader:
    """What travels beside the payload.

    Args:
        timeout: seconds this call may take, counted by each side on its own clock from the moment the header is
            made or received; None means no deadline. When it passes the handler is cancelled and both ends see
            `DeadlineExceededError`.
        meta: plain data for the handler: principal, trace parent, idempotency key, capabilities of the client.
    """

    call_id: str = field(default_factory=new_call_id)
    timeout: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Frame:
    kind: FrameKind
    payload: Any = None


class CallStream(ABC):
    """One running call, seen by its caller. An async context manager: leaving it before the last frame cancels
    the call, waits at most a second for the handler's end, and never raises because of that."""

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[Frame]:
        """Frames in order. A `result` frame is the last one delivered.

        Raises:
            ToolhostError: what the handler raised, rebuilt from its envelope (an `error` frame is never
                delivered, it is raised).
            DeadlineExceededError: `header.timeout` passed.
            UnavailableError: the peer died or cannot be reached. The call may have run.
        """

    @abstractmethod
    async def send(self, payload: Any) -> None:
        """Send one message upstream; the handler reads it with `IncomingCall.receive`. After the end: no effect."""

    @abstractmethod
    async def cancel(self) -> None:
        """Ask the handler to stop. Idempotent; iterating afterwards raises `CancelledByCaller`."""

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    @abstractmethod
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...


class Channel(ABC):
    """A way to one peer. Safe for any number of concurrent calls from one event loop. Opening is lazy."""

    @abstractmethod
    def call(
        self, endpoint: str, method: str, payload: Any = None, *, header: CallHeader | None = None
    ) -> CallStream:
        """Start a call when the returned stream is entered."""

    async def request(
        self, endpoint: str, method: str, payload: Any = None, *, header: CallHeader | None = None
    ) -> Any:
        """Call, ignore everything but the result, return the result's payload. Raises as `CallStream` does."""
        async with self.call(endpoint, method, payload, header=header) as stream:
            async for frame in stream:
                if frame.kind == "result":
                    return frame.payload
        raise AssertionError("a call stream ended without a last frame")

    @abstractmethod
    async def aclose(self) -> None:
        """Close; running calls end with `UnavailableError`. Idempotent."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a connection, as the kernel says; None where there is no kernel to ask."""

    pid: int | None = None
    uid: int | None = None


class IncomingCall(ABC):
    """One running call, seen by its handler."""

    endpoint: str
    method: str
    payload: Any
    header: CallHeader
    peer: Peer

    @abstractmethod
    async def emit(self, kind: FrameKind, payload: Any = None) -> None:
        """Send a frame that is not the last. Waits while the caller is not reading (back-pressure)."""

    @abstractmethod
    async def receive(self) -> Any:
        """The next upstream message. Waits for one; ends by cancellation when the caller is gone."""

    @abstractmethod
    async def peer_gone(self) -> None:
        """Return once the caller's *connection* is gone. May be awaited after the call ended: leases hang on it."""


class Dispatcher(Protocol):
    """The served side: gets a call, returns the payload of its `result` frame or raises.

    Runs as a task of its own. A cancel from the caller, its death, or the deadline cancels the task. An exception
    that is no `ToolhostError` reaches the caller as `InternalError` with an incident id, and the log in full.
    """

    async def __call__(self, call: IncomingCall) -> Any: ...
