"""A scripted model on loopback, speaking enough of the Responses API for Codex.

The script: the first request gets one function call, one that holds its output gets a text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.clients.messages_stub import serving


@dataclass(slots=True)
class ResponsesStub:
    """The running stub.

    Args:
        namespace: where the client keeps the server's functions, such as `mcp__tools`.
        function: the one to call, without the namespace.
    """

    namespace: str
    function: str
    arguments: dict[str, Any]
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)

    def outputs(self) -> list[Any]:
        """What the client gave back for the call, as the model would read it."""
        return [
            item["output"]
            for request in self.requests
            for item in request["input"]
            if item.get("type") == "function_call_output"
        ]

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/responses", self._responses, methods=["POST"]),
                Route("/{path:path}", _other, methods=["GET", "HEAD", "POST"]),
            ]
        )

    async def _responses(self, request: Request) -> Response:
        asked = await request.json()
        self.requests.append(asked)
        answered = any(item.get("type") == "function_call_output" for item in asked["input"])
        item = _TEXT if answered else self._call()
        return Response(_stream(item, f"resp_{len(self.requests)}"), media_type="text/event-stream")

    def _call(self) -> dict[str, Any]:
        return {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_1",
            "namespace": self.namespace,
            "name": self.function,
            "arguments": json.dumps(self.arguments),
            "status": "completed",
        }


_TEXT = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "The scripted model is done.", "annotations": []}],
}


async def _other(request: Request) -> Response:
    return JSONResponse({"error": {"message": f"no {request.url.path}"}}, status_code=404)


def _stream(item: dict[str, Any], identity: str) -> bytes:
    usage = {
        "input_tokens": 10,
        "input_tokens_details": None,
        "output_tokens": 5,
        "output_tokens_details": None,
        "total_tokens": 15,
    }
    response = {"id": identity, "object": "response", "status": "completed", "output": [item], "usage": usage}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {"id": identity, "status": "in_progress", "output": []}},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": response},
    ]
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()


@contextmanager
def responses_stub(namespace: str, function: str, arguments: dict[str, Any]) -> Iterator[ResponsesStub]:
    """A stub that calls one function, on a free port of loopback."""
    stub = ResponsesStub(namespace, function, arguments)
    with serving(stub.app()) as stub.url:
        yield stub
