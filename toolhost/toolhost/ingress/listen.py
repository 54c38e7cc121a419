"""Change events of one server, and the listen streams (2026-07-28) that carry them.

Rules of this file: a stream subscribes before it acknowledges; every event is a level trigger, so a backlog holds
each once; a client that stops reading costs one bounded backlog, and its stream is ended there; `close` ends streams
on purpose, with their final result.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from mcp.server.context import ServerRequestContext
from mcp.shared.subscriptions import (
    SUBSCRIPTION_ID_META_KEY,
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
    event_matches,
    event_to_notification,
)
from mcp_types import (
    SubscriptionFilter,
    SubscriptionsAcknowledgedNotification,
    SubscriptionsAcknowledgedNotificationParams,
    SubscriptionsListenRequestParams,
    SubscriptionsListenResult,
)

logger = logging.getLogger(__name__)
_BACKLOG: Final = 256

LIST_EVENTS: Final[dict[str, ServerEvent]] = {
    "tools": ToolsListChanged(),
    "prompts": PromptsListChanged(),
    "resources": ResourcesListChanged(),
}


def event_of(what: str, uri: str | None) -> ServerEvent | None:
    """The event that a `changed` frame announces; None for one that this release does not know."""
    return ResourceUpdated(uri=uri) if uri is not None else LIST_EVENTS.get(what)


class ListenStream:
    """One open listen stream: its filter and what waits to be sent."""

    def __init__(self, wanted: SubscriptionFilter) -> None:
        self.honored = SubscriptionFilter(
            tools_list_changed=wanted.tools_list_changed or None,
            prompts_list_changed=wanted.prompts_list_changed or None,
            resources_list_changed=wanted.resources_list_changed or None,
            resource_subscriptions=list(wanted.resource_subscriptions or ()) or None,
        )
        self._uris = frozenset(self.honored.resource_subscriptions or ())
        self._pending: dict[ServerEvent, None] = {}
        self._wake = asyncio.Event()
        self._closed = False

    def offer(self, event: ServerEvent) -> None:
        if self._closed or not event_matches(self.honored, self._uris, event):
            return
        if len(self._pending) >= _BACKLOG and event not in self._pending:
            logger.warning("a listen stream is %d events behind; it is ended", _BACKLOG)
            self.close()
            return
        self._pending[event] = None
        self._wake.set()

    def close(self) -> None:
        self._closed = True
        self._wake.set()

    async def next(self) -> ServerEvent | None:
        """The next event, or None when the stream was closed and everything before that is sent."""
        while not self._pending:
            if self._closed:
                return None
            self._wake.clear()
            await self._wake.wait()
        event = next(iter(self._pending))
        del self._pending[event]
        return event


class ListenHub:
    """The listen streams of one server."""

    def __init__(self) -> None:
        self._streams: set[ListenStream] = set()
        self._closed = False

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    def publish(self, event: ServerEvent) -> None:
        for stream in list(self._streams):
            stream.offer(event)

    def close(self) -> None:
        """End every stream with its final result, after what was published before. New ones end at once."""
        self._closed = True
        for stream in list(self._streams):
            stream.close()

    async def serve(
        self, ctx: ServerRequestContext[Any, Any], params: SubscriptionsListenRequestParams
    ) -> SubscriptionsListenResult:
        """The handler of `subscriptions/listen`."""
        stream = ListenStream(params.notifications)
        meta: dict[str, Any] = {SUBSCRIPTION_ID_META_KEY: ctx.request_id}
        self._streams.add(stream)
        if self._closed:
            stream.close()
        try:
            acknowledged = SubscriptionsAcknowledgedNotificationParams(
                notifications=stream.honored, _meta=meta
            )
            await ctx.session.send_notification(
                SubscriptionsAcknowledgedNotification(params=acknowledged), related_request_id=ctx.request_id
            )
            while (event := await stream.next()) is not None:
                await ctx.session.send_notification(
                    event_to_notification(event, meta), related_request_id=ctx.request_id
                )
        finally:
            self._streams.discard(stream)
        return SubscriptionsListenResult(_meta=meta)
