"""The fast path of 2026-07-28: one request, answered in the task that brought it.

The SDK answers each request with a task group and a stream between two tasks, for the case that the answer becomes an
event stream. Here that case is paid for when it comes: a call that ends quickly is one JSON object from one task, the
first notification (or a long silence) makes the same answer an event stream, and a client that leaves is
noticed by a watcher that quick calls never start. What the answer says is the SDK's business as before (`serve_one`);
whatever is irregular about a request is left to the SDK's own entry.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
from mcp.server.connection import Connection
from mcp.server.lowlevel import Server
from mcp.server.runner import modern_error_data, serve_one
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import NoBackChannelError
from mcp.shared.inbound import (
    ERROR_CODE_HTTP_STATUS,
    InboundModernRoute,
    classify_inbound_request,
    find_duplicated_routing_header,
    validate_mcp_param_headers,
)
from mcp.shared.jsonrpc_dispatcher import progress_token_from_params
from mcp.shared.message import MessageMetadata, ServerMessageMetadata
from mcp.shared.transport_context import TransportContext
from mcp_types import JSONRPCRequest, ProgressToken, RequestId
from pydantic import ValidationError
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

_WATCH_AFTER: Final = 0.005  # seconds: later than a quick call ends, sooner than a cancel is missed
_STREAM_HEADERS: Final = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]


class _Answer:
    """One response: a JSON object, or from the first event on a stream."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._streams = False
        self._ended = False
        self._writing = asyncio.Lock()  # heartbeats and pings come from tasks of their own

    async def event(self, data: bytes) -> None:
        async with self._writing:
            if self._ended:
                return
            if not self._streams:
                self._streams = True
                await self._send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, message: Mapping[str, Any]) -> None:
        data = json.dumps(message, separators=(",", ":"))
        async with self._writing:
            self._ended = True
            if self._streams:
                await self._send({"type": "http.response.body", "body": _frame(data)})
                return
            body = data.encode()
            error = message.get("error")
            status = 200 if error is None else ERROR_CODE_HTTP_STATUS.get(error["code"], 200)
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await self._send({"type": "http.response.start", "status": status, "headers": headers})
            await self._send({"type": "http.response.body", "body": body})


def _frame(data: str) -> bytes:
    return f"event: message\r\ndata: {data}\r\n\r\n".encode()


@dataclass(slots=True)
class _Context:
    """The SDK's `DispatchContext` of one request: notifications go into its answer, requests to the client nowhere."""

    answer: _Answer
    transport: TransportContext
    request_id: RequestId
    message_metadata: MessageMetadata
    progress_token: ProgressToken | None
    cancel_requested: anyio.Event = field(default_factory=anyio.Event)
    can_send_request: bool = False

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        raise NoBackChannelError(method)

    async def notify(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> None:
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
        if params is not None:
            message["params"] = dict(params)
        await self.answer.event(_frame(json.dumps(message, separators=(",", ":"))))

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        if self.progress_token is None:
            return
        params = {
            "progressToken": self.progress_token,
            "progress": progress,
            "total": total,
            "message": message,
        }
        await self.notify("notifications/progress", {k: v for k, v in params.items() if v is not None})


class Exchange:
    """Answers modern requests to one server.

    Args:
        ping: seconds of silence after which an answer becomes a stream, and between its comments.
    """

    def __init__(self, server: Server[Any], *, ping: float) -> None:
        self._server = server
        self._ping = ping

    async def answer(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> bool:
        """False: it is no plain request, nothing was sent, and the SDK's entry must answer it."""
        incoming = Request(scope, receive)
        accept = incoming.headers.get("accept", "")
        if "application/json" not in accept or "text/event-stream" not in accept:
            return False
        parsed = _parse(self._server, body, incoming)
        if parsed is None:
            return False
        await self._serve(*parsed, incoming, send)
        return True

    async def _serve(
        self, request: JSONRPCRequest, route: InboundModernRoute, incoming: Request, send: Send
    ) -> None:
        answer = _Answer(send)
        context = _Context(
            answer=answer,
            transport=TransportContext(
                kind="streamable-http", can_send_request=False, headers=incoming.headers
            ),
            request_id=request.id,
            message_metadata=ServerMessageMetadata(request_context=incoming),
            progress_token=progress_token_from_params(request.params),
        )
        connection = Connection.from_envelope(
            route.protocol_version, route.client_info, route.client_capabilities
        )
        watch = _Watch(incoming.receive, answer, self._ping)
        with watch.scope:
            message: dict[str, Any] = {"jsonrpc": "2.0", "id": request.id}
            try:
                message["result"] = await serve_one(
                    self._server,
                    context,
                    request.method,
                    request.params,
                    connection=connection,
                    lifespan_state={},
                )
            except Exception as error:  # noqa: BLE001  the SDK's own boundary from exceptions to the wire
                data = modern_error_data(error)
                message["error"] = data.model_dump(by_alias=True, mode="json", exclude_none=True)
            finally:
                watch.stop()
            await answer.end(message)


def _parse(
    server: Server[Any], body: bytes, incoming: Request
) -> tuple[JSONRPCRequest, InboundModernRoute] | None:
    """The request, if everything about it is in order."""
    try:
        decoded = json.loads(body)
        request = JSONRPCRequest.model_validate(decoded)
    except (ValueError, RecursionError, ValidationError):
        return None
    if request.method == "subscriptions/listen" or find_duplicated_routing_header(incoming.headers.items()):
        return None
    route = classify_inbound_request(decoded, headers=dict(incoming.headers))
    if not isinstance(route, InboundModernRoute) or not _params_agree(server, request, incoming):
        return None
    return request, route


def _params_agree(server: Server[Any], request: JSONRPCRequest, incoming: Request) -> bool:
    """Whether `Mcp-Param-*` headers say what the arguments say."""
    if request.method != "tools/call" or server.get_tool_input_schema is None:
        return True
    params = request.params or {}
    name, arguments = params.get("name"), params.get("arguments") or {}
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        return True  # refused as bad params further on
    schema = server.get_tool_input_schema(name)
    return schema is None or validate_mcp_param_headers(schema, arguments, incoming.headers) is None


class _Watch:
    """Ends the scope when the client leaves, and keeps a silent answer open with comments."""

    def __init__(self, receive: Receive, answer: _Answer, ping: float) -> None:
        self.scope = anyio.CancelScope()
        self._receive = receive
        self._answer = answer
        self._seconds = ping
        self._tasks: list[asyncio.Task[None]] = []
        self._timer = asyncio.get_running_loop().call_later(_WATCH_AFTER, self._start)

    def stop(self) -> None:
        self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._until_gone()))
        self._timer = loop.call_later(self._seconds, self._ping)

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.scope.cancel()

    def _ping(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks[1:] = [loop.create_task(self._answer.event(b": ping\r\n\r\n"))]
        self._timer = loop.call_later(self._seconds, self._ping)
