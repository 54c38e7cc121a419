"""Legacy sessions: opened within caps, bound to who opened them, kept while the actor behind them comes and goes.

Rules of this file: it is the one place that reaches into the SDK where it has no seam: the admission of sessions
(a cap per principal, an event store per session, because the SDK keys events by request ids that every client counts
from zero) and the connection behind a request's context. Pinned by tests.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
from mcp.server.auth.middleware.bearer_auth import AuthorizationContext
from mcp.server.connection import Connection
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.session import ServerSession
from mcp.server.streamable_http import (
    EventCallback,
    EventId,
    EventMessage,
    EventStore,
    StreamableHTTPServerTransport,
    StreamId,
)
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.subscriptions import PromptsListChanged, ResourceUpdated, ServerEvent, ToolsListChanged
from mcp_types import JSONRPCMessage, LoggingLevel
from typing_extensions import override

from toolhost.ingress.config import Limits
from toolhost.wire import ServerDefinition

logger = logging.getLogger(__name__)
_EVENTS: Final = 512  # kept for one session's resumption
_SEND_SECONDS: Final = 5.0
_STATE_KEY: Final = "toolhost/session"


@dataclass(slots=True, eq=False)
class LegacySession:
    """What we keep of one session beside the SDK's own."""

    session: ServerSession | None = None
    level: LoggingLevel | None = None
    subscriptions: set[str] = field(default_factory=set)


class BoundedEventStore(EventStore):
    """The last events of one session, under ids that nobody can guess."""

    def __init__(self, limit: int = _EVENTS) -> None:
        self._events: deque[tuple[EventId, StreamId, JSONRPCMessage | None]] = deque(maxlen=limit)

    @override
    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        event_id = secrets.token_hex(16)
        self._events.append((event_id, stream_id, message))
        return event_id

    @override
    async def replay_events_after(
        self, last_event_id: EventId, send_callback: EventCallback
    ) -> StreamId | None:
        events = list(self._events)
        start = next((i for i, (event_id, _, _) in enumerate(events) if event_id == last_event_id), None)
        if start is None:
            return None
        stream = events[start][1]
        for event_id, stream_id, message in events[start + 1 :]:
            if stream_id == stream and message is not None:
                await send_callback(EventMessage(message, event_id))
        return stream


class SessionManager(StreamableHTTPSessionManager):
    """The SDK's manager with our admission.

    Args:
        definition: of the server as it is now; says whether sessions are resumable.
    """

    def __init__(self, app: Any, *, limits: Limits, definition: Callable[[], ServerDefinition]) -> None:
        super().__init__(
            app,
            session_idle_timeout=limits.session_idle,
            max_request_body_size=limits.body,
            max_sessions=limits.all_sessions,
        )
        self._limits = limits
        self._definition = definition

    @override
    def _admit_session(self, requestor: AuthorizationContext | None) -> StreamableHTTPServerTransport | None:
        if len(self._server_instances) >= self._limits.all_sessions:
            return None
        if requestor is not None:
            own = sum(1 for owner in self._session_owners.values() if owner == requestor)
            if own >= self._limits.sessions:
                return None
        definition = self._definition()
        transport = StreamableHTTPServerTransport(
            mcp_session_id=secrets.token_hex(16),
            event_store=BoundedEventStore() if definition.resumable else None,
            retry_interval=definition.retry_interval_ms,
            idle_timeout=self.session_idle_timeout,
        )
        session_id = transport.mcp_session_id
        assert session_id is not None
        if requestor is not None:
            self._session_owners[session_id] = requestor
        self._server_instances[session_id] = transport
        return transport

    @property
    def open_sessions(self) -> int:
        return len(self._server_instances)


class SessionBook:
    """The live legacy sessions of one server, for what is announced to them. Also the middleware that keeps it."""

    def __init__(self) -> None:
        self._live: set[LegacySession] = set()
        self._sending: set[asyncio.Task[None]] = set()

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        if ctx.request_id is None and ctx.method == "notifications/initialized":
            session = legacy_session(ctx)
            if session.session is None:
                session.session = ctx.session
                self._live.add(session)
                _connection(ctx).exit_stack.callback(self._live.discard, session)
        return await call_next(ctx)

    @property
    def live(self) -> int:
        return len(self._live)

    def publish(self, event: ServerEvent) -> None:
        """Tell every session on its GET stream; one that is not read holds up nobody."""
        for session in self._live:
            if isinstance(event, ResourceUpdated) and event.uri not in session.subscriptions:
                continue
            task = asyncio.get_running_loop().create_task(_send(session, event))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)


def legacy_session(ctx: ServerRequestContext[Any, Any]) -> LegacySession:
    """Our side of the session that this request belongs to."""
    session: LegacySession = _connection(ctx).state.setdefault(_STATE_KEY, LegacySession())
    return session


def _connection(ctx: ServerRequestContext[Any, Any]) -> Connection:
    return ctx.session._connection  # the context has no public way to what outlives it


async def _send(session: LegacySession, event: ServerEvent) -> None:
    target = session.session
    assert target is not None
    with anyio.move_on_after(_SEND_SECONDS):
        try:
            if isinstance(event, ToolsListChanged):
                await target.send_tool_list_changed()
            elif isinstance(event, PromptsListChanged):
                await target.send_prompt_list_changed()
            elif isinstance(event, ResourceUpdated):
                await target.send_resource_updated(event.uri)
            else:
                await target.send_resource_list_changed()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            logger.debug("a legacy session ended before it could be told %r", event)
