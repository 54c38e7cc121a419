"""A scripted model on loopback, speaking enough of the Messages API for clients that want one.

A request without tools gets text. One with tools gets the call that the script gives for it, and text when it gives
none: a script is a list of calls, made one a turn, or a function of the request and of how many calls were answered
before it. Everything asked is recorded, so a test can look at what the model would have seen.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typing_extensions import override

_START = 10.0


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A call the model makes; *tool* is the name the client gave it, such as `mcp__bash__run_command`."""

    tool: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """One recorded `POST /v1/messages`."""

    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def tools(self) -> list[str]:
        return [tool["name"] for tool in self.body.get("tools", ())]

    @property
    def tool_results(self) -> list[dict[str, Any]]:
        """The tool results of the last user turn."""
        return [block for block in _last_turn(self.body) if block.get("type") == "tool_result"]

    def result_text(self) -> str:
        """The text of those results, as the model would read it."""
        texts: list[str] = []
        for result in self.tool_results:
            content = result.get("content", "")
            blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
            texts += [block["text"] for block in blocks if block.get("type") == "text"]
        return "".join(texts)


Script = Callable[[ModelRequest, int], PlannedCall | None]


@dataclass(slots=True)
class MessagesStub:
    """The running stub; `url` is what clients take as base URL."""

    script: Script
    url: str = ""
    requests: list[ModelRequest] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # what else was asked for

    def with_results(self) -> list[ModelRequest]:
        return [request for request in self.requests if request.tool_results]

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/messages", self._messages, methods=["POST"]),
                Route("/v1/messages/count_tokens", self._count, methods=["POST"]),
                Route("/{path:path}", self._other, methods=["GET", "HEAD", "POST", "PUT", "DELETE"]),
            ]
        )

    async def _messages(self, request: Request) -> Response:
        asked = ModelRequest(headers=dict(request.headers), body=await request.json())
        self.requests.append(asked)
        blocks = self._answer(asked)
        message = _message(blocks, model=asked.body.get("model", "stub"), number=len(self.requests))
        if not asked.body.get("stream"):
            return JSONResponse(message)
        return Response(_stream(message), media_type="text/event-stream")

    def _answer(self, asked: ModelRequest) -> list[dict[str, Any]]:
        call = self.script(asked, _answered_calls(asked.body)) if asked.tools else None
        if call is not None:
            identity = f"toolu_stub{len(self.requests):04d}"
            return [{"type": "tool_use", "id": identity, "name": call.tool, "input": call.arguments}]
        return [{"type": "text", "text": "The scripted model is done."}]

    async def _count(self, request: Request) -> Response:
        await request.body()
        return JSONResponse({"input_tokens": 100})

    async def _other(self, request: Request) -> Response:
        self.refused.append(f"{request.method} {request.url.path}")
        error = {"type": "not_found_error", "message": "the stub serves messages only"}
        return JSONResponse({"type": "error", "error": error}, status_code=404)


def _last_turn(body: dict[str, Any]) -> list[dict[str, Any]]:
    turns = [turn for turn in body.get("messages", ()) if turn["role"] == "user"]
    if not turns:
        return []
    content = turns[-1]["content"]
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _answered_calls(body: dict[str, Any]) -> int:
    return sum(
        block.get("type") == "tool_result"
        for turn in body.get("messages", ())
        if isinstance(turn["content"], list)
        for block in turn["content"]
    )


def _message(blocks: list[dict[str, Any]], *, model: str, number: int) -> dict[str, Any]:
    called = any(block["type"] == "tool_use" for block in blocks)
    return {
        "id": f"msg_stub{number:04d}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": blocks,
        "stop_reason": "tool_use" if called else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 5},
    }


def _stream(message: dict[str, Any]) -> bytes:
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}}
    ]
    for index, block in enumerate(message["content"]):
        events += _block_events(index, block)
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    events += [
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()


def _block_events(index: int, block: dict[str, Any]) -> list[dict[str, Any]]:
    if block["type"] == "tool_use":
        start = {**block, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
    else:
        start = {"type": "text", "text": ""}
        delta = {"type": "text_delta", "text": block["text"]}
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        {"type": "content_block_delta", "index": index, "delta": delta},
        {"type": "content_block_stop", "index": index},
    ]


def _one_a_turn(calls: Sequence[PlannedCall]) -> Script:
    return lambda _request, answered: calls[answered] if answered < len(calls) else None


@contextmanager
def messages_stub(script: Sequence[PlannedCall] | Script = ()) -> Iterator[MessagesStub]:
    """A stub that makes the calls of *script*, on a free port of loopback."""
    stub = MessagesStub(script if callable(script) else _one_a_turn(script))
    with serving(stub.app()) as stub.url:
        yield stub


@contextmanager
def serving(app: Starlette) -> Iterator[str]:
    """Serve *app* from a thread; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = _ThreadServer(uvicorn.Config(app, log_level="warning", http="h11", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            if not server.ready.wait(_START):
                raise TimeoutError(f"the stub did not serve within {_START:g} s")
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            thread.join(timeout=_START)


class _ThreadServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()
