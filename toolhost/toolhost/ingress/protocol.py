"""The MCP side of one server name: both eras, answered from its catalog, calls handed to the dispatch.

Rules of this file: no policy but what the SDK leaves to a server (unknown functions, arguments, scopes); every error
of ours becomes either words in a result or a protocol error here, and nowhere else.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final

import mcp_types as types
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.lowlevel.server import HandlerEntry, NotificationOptions
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from typing_extensions import override

from toolhost.ingress.callers import (
    InputRequired,
    LegacyCaller,
    McpCaller,
    ModernCaller,
    is_modern,
    missing_capability,
)
from toolhost.ingress.catalog import FRESH, Catalog, Scope
from toolhost.ingress.content import call_result, complete, failure, prompt_message, resource_contents
from toolhost.ingress.dispatch import Call, Dispatch, LiveRoute
from toolhost.ingress.listen import ListenHub
from toolhost.ingress.sessions import SessionBook, legacy_session
from toolhost.ingress.validation import unknown_function
from toolhost.tokens import functions_in_scope
from toolhost_sdk.errors import InternalError, NotFoundError, ToolhostError, UsageError

logger = logging.getLogger(__name__)
_Ctx = ServerRequestContext[Any, Any]
_STATE_TTL: Final = 600.0
_RESERVED_META: Final = "io.modelcontextprotocol/"
_TRACE_KEYS: Final = ("traceparent", "tracestate", "baggage")
_NEEDS: Final = {
    "resources/list": "resources",
    "resources/templates/list": "resources",
    "resources/read": "resources",
    "resources/subscribe": "subscribe",
    "resources/unsubscribe": "subscribe",
    "prompts/list": "prompts",
    "prompts/get": "prompts",
    "completion/complete": "completion",
    "logging/setLevel": "logging",
}


class McpServer(Server[Any]):
    """One server name. It stays the same object while hosts behind it come and go.

    Args:
        catalog: gives the catalog as it is now.
        keys: for the sealed state of questions; the same in every ingress.
    """

    def __init__(
        self,
        live: LiveRoute,
        catalog: Callable[[], Catalog],
        *,
        dispatch: Dispatch,
        hub: ListenHub,
        book: SessionBook,
        keys: tuple[bytes, ...],
    ) -> None:
        self._live = live
        self._catalog = catalog
        self._dispatch = dispatch
        super().__init__(live.name, get_tool_input_schema=lambda name: self._catalog().headed_schema(name))
        self.take_identity()
        security = RequestStateSecurity(keys=list(keys), ttl=_STATE_TTL, audience=f"toolhost/{live.name}")
        self.middleware = [book, RequestStateBoundary(security, default_audience=None)]
        self._register(hub)

    def _register(self, hub: ListenHub) -> None:
        add = self.add_request_handler
        add("tools/list", types.PaginatedRequestParams, self._lister("tools"))
        add("tools/call", types.CallToolRequestParams, self._call_tool)
        add("resources/list", types.PaginatedRequestParams, self._lister("resources"))
        add("resources/templates/list", types.PaginatedRequestParams, self._lister("templates"))
        add("resources/read", types.ReadResourceRequestParams, self._read_resource)
        add("resources/subscribe", types.SubscribeRequestParams, self._subscribe)
        add("resources/unsubscribe", types.UnsubscribeRequestParams, self._unsubscribe)
        add("prompts/list", types.PaginatedRequestParams, self._lister("prompts"))
        add("prompts/get", types.GetPromptRequestParams, self._get_prompt)
        add("completion/complete", types.CompleteRequestParams, self._complete)
        add("logging/setLevel", types.SetLevelRequestParams, self._set_level)
        add("subscriptions/listen", types.SubscriptionsListenRequestParams, hub.serve)

    def take_identity(self) -> None:
        """Show title, version and instructions of the definition as it is now."""
        definition = self._catalog().definition
        self.version = definition.version
        self.title = definition.title
        self.instructions = definition.instructions
        self.__dict__.pop("_server_info_stamp_source", None)  # the SDK computes it once per server

    @property
    @override
    def server_info_stamp(self) -> dict[str, Any]:
        """Flat, so a copy of the surface is a whole one; the SDK's is made afresh for every answer."""
        return dict(self._server_info_stamp_source)

    @override
    def get_request_handler(self, method: str) -> HandlerEntry[Any] | None:
        needed = _NEEDS.get(method)
        if needed is not None and not self._catalog().serves[needed]:
            return None
        return super().get_request_handler(method)

    @override
    def get_capabilities(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
        *,
        protocol_version: str | None = None,
    ) -> types.ServerCapabilities:
        """What is served, and no more; every list announces its changes."""
        serves = self._catalog().serves
        modern = protocol_version in MODERN_PROTOCOL_VERSIONS
        subscribe = modern or serves["subscribe"]
        return types.ServerCapabilities(
            tools=types.ToolsCapability(list_changed=True),
            prompts=types.PromptsCapability(list_changed=True) if serves["prompts"] else None,
            resources=types.ResourcesCapability(list_changed=True, subscribe=subscribe)
            if serves["resources"]
            else None,
            completions=types.CompletionsCapability() if serves["completion"] else None,
            logging=types.LoggingCapability() if serves["logging"] and not modern else None,
            experimental=experimental_capabilities,
            extensions=extensions or self.extensions or None,
        )

    def _lister(self, what: str) -> Callable[[_Ctx, types.PaginatedRequestParams], Any]:
        async def listed(ctx: _Ctx, params: types.PaginatedRequestParams) -> dict[str, Any]:
            if params.cursor is not None:
                raise MCPError(code=types.INVALID_PARAMS, message="unknown cursor: lists come in one piece")
            return self._catalog().listed(what, self._scope(), modern=is_modern(ctx))

        return listed

    async def _call_tool(self, ctx: _Ctx, params: types.CallToolRequestParams) -> dict[str, Any]:
        modern = is_modern(ctx)
        try:
            outcome = await self._called(ctx, params)
            return call_result(outcome, modern=modern)
        except InputRequired as question:
            return question.result
        except ToolhostError as error:
            if error.code == "capability_required" and modern:
                raise missing_capability(str(error.details.get("capability")), error.message) from error
            return call_result(failure(error), modern=modern)
        except (KeyError, TypeError, ValueError) as error:
            return call_result(failure(_incident(self.name, error)), modern=modern)

    async def _called(self, ctx: _Ctx, params: types.CallToolRequestParams) -> Mapping[str, Any]:
        catalog, scope = self._catalog(), self._scope()
        check = catalog.check(params.name, scope)
        if check is None:
            raise NotFoundError(unknown_function(self.name, params.name, catalog.names(scope)))
        arguments = params.arguments or {}
        if (complaint := check.complaint(arguments)) is not None:
            raise UsageError(complaint)
        repeatable = bool(check.tool.read_only or check.tool.idempotent)
        payload = {"name": params.name, "arguments": arguments}
        outcome: Mapping[str, Any] = await self._run(
            ctx, params, "tools/call", payload, repeatable=repeatable
        )
        return outcome

    async def _read_resource(self, ctx: _Ctx, params: types.ReadResourceRequestParams) -> dict[str, Any]:
        if self._scope() is not None:
            raise _unknown_resource(params.uri)
        found = await self._answered(ctx, params, "resources/read", {"uri": params.uri})
        if "contents" not in found:
            return found
        contents = [resource_contents(item) for item in found["contents"]]
        return complete({"contents": contents, **FRESH}, modern=is_modern(ctx))

    async def _get_prompt(self, ctx: _Ctx, params: types.GetPromptRequestParams) -> dict[str, Any]:
        if self._scope() is not None:
            raise MCPError(code=types.INVALID_PARAMS, message=f"no prompt {params.name!r}")
        payload = {"name": params.name, "arguments": params.arguments or {}}
        found = await self._answered(ctx, params, "prompts/get", payload)
        if "messages" not in found:
            return found
        messages = [prompt_message(message) for message in found["messages"]]
        description = found.get("description")
        extra = {} if description is None else {"description": description}
        return complete({"messages": messages, **extra}, modern=is_modern(ctx))

    async def _complete(self, ctx: _Ctx, params: types.CompleteRequestParams) -> dict[str, Any]:
        context = params.context
        payload = {
            "ref": params.ref.model_dump(by_alias=True, mode="json", exclude_none=True),
            "argument": params.argument.model_dump(by_alias=True, mode="json", exclude_none=True),
            "context": context.model_dump(by_alias=True, mode="json", exclude_none=True) if context else {},
        }
        found = await self._answered(ctx, None, "completion/complete", payload)
        completion: dict[str, Any] = {"values": found["values"][:100], "hasMore": bool(found.get("has_more"))}
        if found.get("total") is not None:
            completion["total"] = found["total"]
        return complete({"completion": completion}, modern=is_modern(ctx))

    async def _subscribe(self, ctx: _Ctx, params: types.SubscribeRequestParams) -> types.EmptyResult:
        subscriptions = legacy_session(ctx).subscriptions
        if len(subscriptions) >= 1024:
            raise MCPError(
                code=types.INVALID_PARAMS, message="a session subscribes to at most 1024 resources"
            )
        subscriptions.add(params.uri)
        return types.EmptyResult()

    async def _unsubscribe(self, ctx: _Ctx, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
        legacy_session(ctx).subscriptions.discard(params.uri)
        return types.EmptyResult()

    async def _set_level(self, ctx: _Ctx, params: types.SetLevelRequestParams) -> types.EmptyResult:
        legacy_session(ctx).level = params.level
        return types.EmptyResult()

    async def _answered(
        self, ctx: _Ctx, params: types.InputResponseRequestParams | None, method: str, payload: dict[str, Any]
    ) -> dict[str, Any]:
        """`_run` for methods whose failures are protocol errors."""
        try:
            found: dict[str, Any] = await self._run(ctx, params, method, payload, repeatable=True)
        except InputRequired as question:
            return question.result
        except ToolhostError as error:
            raise _protocol_error(error, modern=is_modern(ctx), payload=payload) from error
        return found

    async def _run(
        self,
        ctx: _Ctx,
        params: types.InputResponseRequestParams | None,
        method: str,
        payload: dict[str, Any],
        *,
        repeatable: bool,
    ) -> Any:
        caller = _caller(ctx, params)
        call = Call(
            method=method,
            payload={
                **payload,
                **caller.round(),
                "capabilities": caller.capabilities,
                "meta": _forwarded_meta(ctx),
            },
            repeatable=repeatable,
            meta=_header_meta(ctx),
        )
        return await self._dispatch.run(self._live, call, caller)

    def _scope(self) -> Scope:
        """What the caller's token opens here; an anonymous route opens everything."""
        token = get_access_token()
        return None if token is None else functions_in_scope(token.scopes, self.name)


def _caller(ctx: _Ctx, params: types.InputResponseRequestParams | None) -> McpCaller:
    if not is_modern(ctx):
        return LegacyCaller(ctx)
    if params is None:
        return ModernCaller(ctx, None, None)
    return ModernCaller(ctx, params.input_responses, params.request_state)


def _forwarded_meta(ctx: _Ctx) -> dict[str, Any]:
    """The client's own `_meta`, without what belongs to the protocol."""
    raw = (ctx.params or {}).get("_meta")
    if not isinstance(raw, Mapping):
        return {}
    return {k: v for k, v in raw.items() if k != "progressToken" and not k.startswith(_RESERVED_META)}


def _header_meta(ctx: _Ctx) -> dict[str, Any]:
    token = get_access_token()
    meta: dict[str, Any] = {"principal": None if token is None else token.client_id}
    given: dict[str, Any] = dict(ctx.meta or {})
    meta.update({key: given[key] for key in _TRACE_KEYS if isinstance(given.get(key), str)})
    return meta


def _protocol_error(error: ToolhostError, *, modern: bool, payload: Mapping[str, Any]) -> MCPError:
    if isinstance(error, NotFoundError) and "uri" in payload:
        return _unknown_resource(str(payload["uri"]))
    if error.code == "capability_required" and modern:
        return missing_capability(str(error.details.get("capability")), error.message)
    ours = isinstance(error, NotFoundError | UsageError)
    return MCPError(
        code=types.INVALID_PARAMS if ours else types.INTERNAL_ERROR,
        message=error.message,
        data={"code": error.code, "retryable": error.retryable},
    )


def _unknown_resource(uri: str) -> MCPError:
    return MCPError(code=types.INVALID_PARAMS, message=f"no resource {uri[:200]!r}", data={"uri": uri})


def _incident(server: str, error: Exception) -> InternalError:
    incident = secrets.token_hex(6)
    logger.error(
        "server %r answered with an outcome that is none (incident %s)", server, incident, exc_info=error
    )
    return InternalError(
        f"server {server!r} answered with a result that is none; incident {incident}", incident=incident
    )
