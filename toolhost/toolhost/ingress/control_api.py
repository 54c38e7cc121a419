"""The control API (`/api/v1`): what the CLI and operators' programs use. The outer app has checked token and body.

Rules of this file: no effect by GET; no pickles over HTTP, a server is spawned by the name of a shipped kind only;
every failure is one envelope, `{"error": {"code", "message", "retryable", "details"}}`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

import anyio
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from toolhost.ingress.app import API_PREFIX
from toolhost.ingress.callers import PlainCaller
from toolhost.ingress.content import failure
from toolhost.ingress.dispatch import Call
from toolhost.ingress.routes import RouteBook, ServedRoute
from toolhost.ingress.validation import unknown_function
from toolhost.tokens import TokenStore
from toolhost.wire import SpawnRequest
from toolhost_sdk.endpoints.channel import Channel
from toolhost_sdk.errors import (
    CancelledByCaller,
    CapacityError,
    ConflictError,
    DeadlineExceededError,
    InternalError,
    LimitExceededError,
    NotFoundError,
    PermissionDeniedError,
    PlacementError,
    ToolhostError,
    UnauthenticatedError,
    UnavailableError,
    UsageError,
)

logger = logging.getLogger(__name__)
_STATUS: Final[tuple[tuple[type[ToolhostError], int], ...]] = (
    (CapacityError, 503),
    (UsageError, 400),
    (NotFoundError, 404),
    (ConflictError, 409),
    (LimitExceededError, 429),
    (DeadlineExceededError, 504),
    (CancelledByCaller, 499),
    (UnavailableError, 503),
    (PlacementError, 409),
    (UnauthenticatedError, 401),
    (PermissionDeniedError, 403),
)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SpawnBody(_Body):
    name: str
    kind: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    expose: list[str] | None = None


class DrainBody(_Body):
    timeout: float = Field(default=30.0, ge=0, le=86400)


class CallBody(_Body):
    tool: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class TokenBody(_Body):
    label: str = ""
    scopes: list[str]
    ttl: float | None = None


SpawnKind = Callable[[str, dict[str, Any]], bytes]


def create_api(
    *, control: Channel, routes: RouteBook, tokens: TokenStore, spawn_kind: SpawnKind | None = None
) -> FastAPI:
    """The application.

    Args:
        control: to the controller.
        spawn_kind: the spec of a shipped kind with arguments, as it travels to a tool host.
    """
    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    handlers = _Handlers(control, routes, tokens, spawn_kind or _shipped)
    for method, path, handler in (
        ("GET", "/servers", handlers.servers),
        ("POST", "/servers", handlers.spawn),
        ("DELETE", "/servers/{name}", handlers.stop),
        ("POST", "/servers/{name}/drain", handlers.drain),
        ("POST", "/servers/{name}/call", handlers.call),
        ("GET", "/servers/{name}/log", handlers.log),
        ("GET", "/status", handlers.status),
        ("POST", "/shutdown", handlers.shutdown),
        ("GET", "/tokens", handlers.list_tokens),
        ("POST", "/tokens", handlers.mint_token),
        ("DELETE", "/tokens/{token_id}", handlers.revoke_token),
    ):
        api.add_api_route(API_PREFIX + path, handler, methods=[method], response_model=None)
    api.add_exception_handler(ToolhostError, _toolhost_error)
    api.add_exception_handler(RequestValidationError, _validation_error)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_exception_handler(Exception, _unknown_error)
    return api


class _Handlers:
    def __init__(
        self, control: Channel, routes: RouteBook, tokens: TokenStore, spawn_kind: SpawnKind
    ) -> None:
        self._control = control
        self._routes = routes
        self._tokens = tokens
        self._spawn_kind = spawn_kind

    async def _ask(self, method: str, payload: dict[str, Any] | None = None) -> Any:
        return await self._control.request("control", method, payload or {})

    async def servers(self) -> list[dict[str, Any]]:
        return self._counted(await self._ask("servers.list"))

    async def spawn(self, body: SpawnBody) -> dict[str, Any]:
        spec = await anyio.to_thread.run_sync(self._spawn_kind, body.kind, body.arguments)
        request = SpawnRequest(name=body.name, spec=spec, expose=body.expose)
        status: dict[str, Any] = await self._ask("servers.spawn", request.model_dump())
        return status

    async def stop(self, name: str, grace: Annotated[float, Query(ge=0, le=3600)] = 5.0) -> dict[str, Any]:
        answer: dict[str, Any] = await self._ask("servers.stop", {"name": name, "grace": grace})
        return answer

    async def drain(self, name: str, body: DrainBody) -> dict[str, Any]:
        answer: dict[str, Any] = await self._ask("servers.drain", {"name": name, "timeout": body.timeout})
        return answer

    async def log(self, name: str, tail: Annotated[int, Query(ge=1, le=100_000)] = 200) -> dict[str, Any]:
        answer: dict[str, Any] = await self._ask("servers.log", {"name": name, "tail": tail})
        return answer

    async def status(self) -> dict[str, Any]:
        status: dict[str, Any] = await self._ask("host.status")
        return {**status, "servers": self._counted(status.get("servers") or [])}

    async def shutdown(self) -> dict[str, Any]:
        await self._ask("host.shutdown")
        return {"stopping": True}

    async def call(self, name: str, body: CallBody, request: Request) -> Any:
        """A call without MCP: the whole outcome, a failed one too."""
        served = self._served(name)
        check = served.catalog.check(body.tool, None)
        if check is None:
            raise NotFoundError(unknown_function(name, body.tool, served.catalog.names(None)))
        if (complaint := check.complaint(body.arguments)) is not None:
            raise UsageError(complaint)
        payload = {"name": body.tool, "arguments": body.arguments, "capabilities": []}
        repeatable = bool(check.tool.read_only or check.tool.idempotent)
        call = Call(method="tools/call", payload=payload, repeatable=repeatable)
        return await _while_connected(request, lambda: self._outcome(served, call))

    async def _outcome(self, served: ServedRoute, call: Call) -> Any:
        try:
            return await self._routes.dispatch.run(served.live, call, PlainCaller())
        except ToolhostError as error:
            return failure(error)

    async def list_tokens(self) -> list[dict[str, Any]]:
        return [record.public() for record in self._tokens.list()]

    async def mint_token(self, body: TokenBody) -> dict[str, Any]:
        minted = self._tokens.mint(label=body.label, scopes=body.scopes, ttl=body.ttl)
        return {**minted.record.public(), "token": minted.token}

    async def revoke_token(self, token_id: str) -> dict[str, Any]:
        if not self._tokens.revoke(token_id):
            raise NotFoundError(f"no token {token_id!r} that is not revoked yet")
        return {"id": token_id, "revoked": True}

    def _served(self, name: str) -> ServedRoute:
        served = self._routes.get(name)
        if served is None:
            known = ", ".join(sorted(self._routes.names())) or "none"
            raise NotFoundError(f"no server is named {name!r}; running: {known}")
        return served

    def _counted(self, statuses: list[dict[str, Any]]) -> list[dict[str, Any]]:
        running = self._routes.dispatch.running()
        return [{**status, "running_calls": running[status["name"]]} for status in statuses]


async def _while_connected(request: Request, work: Callable[[], Awaitable[Any]]) -> Any:
    """The result of *work*, which is cancelled when the client leaves."""
    result: list[Any] = []

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        result.append(await work())
        group.cancel_scope.cancel()
    if not result:
        raise CancelledByCaller("the client left")
    return result[0]


def _shipped(kind: str, arguments: dict[str, Any]) -> bytes:
    # Imported at the first spawn: the shipped servers bring much that an ingress has no other use for.
    from toolhost.tools.pickling import dump_spec
    from toolhost.tools.shipped import shipped_spec

    return dump_spec(shipped_spec(kind, arguments))


def _envelope(error: ToolhostError, status: int) -> JSONResponse:
    body = {
        "code": error.code,
        "message": error.message,
        "retryable": error.retryable,
        "details": error.details,
    }
    headers = {"retry-after": "1"} if status == 503 else None
    return JSONResponse({"error": body}, status_code=status, headers=headers)


async def _toolhost_error(request: Request, error: Exception) -> JSONResponse:
    del request
    assert isinstance(error, ToolhostError)
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    return _envelope(error, status)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    del request
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or "the body"
    return _envelope(UsageError(f"{where}: {first['msg']}"), 400)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    known = {404: NotFoundError, 405: UsageError}
    kind = known.get(error.status_code, UsageError)
    response = _envelope(kind(f"{request.method} {request.url.path}: {error.detail}"), error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _unknown_error(request: Request, error: Exception) -> JSONResponse:
    incident = secrets.token_hex(6)
    logger.error("%s %s failed (incident %s)", request.method, request.url.path, incident, exc_info=error)
    return _envelope(InternalError(f"this failed inside; the ingress log has it as incident {incident}"), 500)
