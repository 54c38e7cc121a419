"""The two ways to talk to an MCP client during a call: questions in rounds (2026-07-28), or requests to it (before)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import anyio
from mcp.server.connection import allowed_log_levels
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    ClientCapabilities,
    CreateMessageRequest,
    CreateMessageResult,
    CreateMessageResultWithTools,
    ElicitRequest,
    ElicitResult,
    ListRootsRequest,
    ListRootsResult,
    LoggingMessageNotification,
    LoggingMessageNotificationParams,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel, ValidationError
from typing_extensions import override

from toolhost.ingress.dispatch import Caller, RequestLife
from toolhost.ingress.sessions import legacy_session
from toolhost_sdk.errors import ToolhostError, UsageError

LIFE_KEY: Final = "toolhost.life"
RESUMED_KEY: Final = "toolhost.resumed"
_METHODS: Final = {
    "elicitation": "elicitation/create",
    "sampling": "sampling/createMessage",
    "roots": "roots/list",
}
_LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
_REQUIRED: Final[dict[str, dict[str, Any]]] = {
    "elicitation": {"elicitation": {}},
    "elicitation.url": {"elicitation": {"url": {}}},
    "sampling": {"sampling": {}},
    "sampling.tools": {"sampling": {"tools": {}}},
    "roots": {"roots": {}},
}


class InputRequired(Exception):
    """The call goes on when the client has answered. `result` is the wire form of that."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__("input required")
        self.result = result


def is_modern(ctx: ServerRequestContext[Any, Any]) -> bool:
    return ctx.protocol_version in MODERN_PROTOCOL_VERSIONS


def capabilities_of(declared: ClientCapabilities | None) -> list[str]:
    """What the client of a call can be asked for, in the words of `CallPayload`."""
    found: list[str] = []
    if declared is None:
        return found
    if (elicitation := declared.elicitation) is not None:
        if elicitation.form is not None or elicitation.url is None:  # an empty object means forms
            found.append("elicitation")
        if elicitation.url is not None:
            found.append("elicitation.url")
    if (sampling := declared.sampling) is not None:
        found.append("sampling")
        if sampling.tools is not None:
            found.append("sampling.tools")
    if declared.roots is not None:
        found.append("roots")
    return found


def missing_capability(kind: str, message: str) -> MCPError:
    """The modern refusal of a call whose client cannot do what it needs."""
    return MCPError(
        code=MISSING_REQUIRED_CLIENT_CAPABILITY,
        message=message,
        data={"requiredCapabilities": _REQUIRED.get(kind, {kind: {}})},
    )


class McpCaller(Caller):
    """What both ways share."""

    def __init__(self, ctx: ServerRequestContext[Any, Any]) -> None:
        self._ctx = ctx
        self.wants_progress = bool(ctx.meta) and "progress_token" in (ctx.meta or {})
        self.capabilities = capabilities_of(ctx.session.client_capabilities)

    @override
    async def progress(self, progress: float, total: float | None, message: str | None) -> None:
        await self._ctx.session.report_progress(progress, total, message)

    @override
    async def log(self, payload: Mapping[str, Any]) -> None:
        level = payload.get("level")
        if level not in _LEVELS or not self.shows(level):
            return
        params = LoggingMessageNotificationParams(
            level=level, data=payload.get("data"), logger=payload.get("logger")
        )
        await self._ctx.session.send_notification(
            LoggingMessageNotification(params=params), related_request_id=self._ctx.request_id
        )

    def shows(self, level: str) -> bool:
        """Whether the client wants messages of this level."""
        raise NotImplementedError

    def round(self) -> dict[str, Any]:
        """What earlier rounds left, as members of the payload."""
        return {}

    def _check_kinds(self, questions: Mapping[str, Any]) -> str | None:
        return next((str(q["kind"]) for q in questions.values() if q["kind"] not in self.capabilities), None)


class ModernCaller(McpCaller):
    """2026-07-28: the call ends with the questions, and is made again with the answers.

    The sealed state holds all answers so far and what was asked, so each retry brings only what is new.

    Args:
        responses: the answers of this request, as validated wire data.
        state: the request's unsealed state, ours.
    """

    def __init__(
        self,
        ctx: ServerRequestContext[Any, Any],
        responses: Mapping[str, BaseModel] | None,
        state: str | None,
    ) -> None:
        super().__init__(ctx)
        kept = json.loads(state) if state is not None else {}
        self._state: Any = kept.get("state")
        self._answers: dict[str, Any] = dict(kept.get("answers") or {})
        asked = kept.get("asked")
        for key, answer in (responses or {}).items():
            if asked is None or (key in asked and _fits(asked[key], answer)):
                self._answers[key] = answer.model_dump(by_alias=True, mode="json", exclude_none=True)

    @override
    def round(self) -> dict[str, Any]:
        return {"answers": self._answers, "state": self._state}

    @override
    def shows(self, level: str) -> bool:
        return level in allowed_log_levels(self._ctx.protocol_version, self._ctx.meta)

    @override
    async def ask(self, questions: Mapping[str, Any], state: Any) -> dict[str, Any]:
        if (kind := self._check_kinds(questions)) is not None:
            raise missing_capability(kind, f"this function needs a client with the capability {kind!r}")
        asked = {key: question["kind"] for key, question in questions.items()}
        requests = {
            key: _request(question["kind"], question.get("params") or {})
            for key, question in questions.items()
        }
        kept = {"answers": self._answers, "state": state, "asked": asked}
        raise InputRequired(
            {"resultType": "input_required", "inputRequests": requests, "requestState": json.dumps(kept)}
        )


class LegacyCaller(McpCaller):
    """Before 2026-07-28: requests to the client on the call's own stream, while it waits."""

    def __init__(self, ctx: ServerRequestContext[Any, Any]) -> None:
        super().__init__(ctx)
        scope = ctx.request.scope if ctx.request is not None else {}
        life = scope.get(LIFE_KEY)
        self.life = life if isinstance(life, RequestLife) else None
        self._resumed = scope.get(RESUMED_KEY)
        self._level = legacy_session(ctx).level

    @override
    def shows(self, level: str) -> bool:
        return self._level is None or _LEVELS.index(level) >= _LEVELS.index(self._level)

    @override
    async def detach(self) -> None:
        if self._ctx.close_sse_stream is not None:
            await self._ctx.close_sse_stream()

    @override
    def is_back(self) -> bool:
        return bool(self._resumed is not None and self._resumed())

    @override
    async def ask(self, questions: Mapping[str, Any], state: Any) -> dict[str, Any]:
        del state
        if (kind := self._check_kinds(questions)) is not None:
            raise UsageError(f"this function needs a client with the capability {kind!r}", capability=kind)
        answers: dict[str, Any] = {}
        failures: list[ToolhostError] = []

        async def put(key: str, question: Mapping[str, Any]) -> None:
            try:
                answers[key] = await self._put(key, question)
            except ToolhostError as error:  # collected, so that no exception group leaves
                failures.append(error)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for key, question in questions.items():
                group.start_soon(put, key, question)
        if failures:
            raise failures[0]
        return answers

    async def _put(self, key: str, question: Mapping[str, Any]) -> Any:
        wire = _request(question["kind"], question.get("params") or {})
        metadata = ServerMessageMetadata(related_request_id=self._ctx.request_id)
        session = self._ctx.session
        answer: BaseModel
        try:
            match question["kind"]:
                case "elicitation" | "elicitation.url":
                    asked = ElicitRequest.model_validate(wire)
                    answer = await session.send_request(asked, ElicitResult, metadata=metadata)
                case "sampling" | "sampling.tools":
                    wanted = CreateMessageRequest.model_validate(wire)
                    shape = CreateMessageResultWithTools if wanted.params.tools else CreateMessageResult
                    answer = await session.send_request(wanted, shape, metadata=metadata)
                case _:
                    answer = await session.send_request(
                        ListRootsRequest(), ListRootsResult, metadata=metadata
                    )
        except MCPError as error:
            raise ToolhostError(
                f"the client did not answer question {key!r}: {error.error.message}"
            ) from error
        except ValidationError as error:
            raise ToolhostError(f"question {key!r} or its answer is malformed") from error
        return answer.model_dump(by_alias=True, mode="json", exclude_none=True)


class PlainCaller(Caller):
    """A program at the control API: it gets the result, and cannot be asked."""

    @override
    async def progress(self, progress: float, total: float | None, message: str | None) -> None:
        del progress, total, message

    @override
    async def log(self, payload: Mapping[str, Any]) -> None:
        del payload

    @override
    async def ask(self, questions: Mapping[str, Any], state: Any) -> dict[str, Any]:
        raise UsageError(f"the function asks {', '.join(map(repr, questions))}; call it with an MCP client")


def _request(kind: str, params: Mapping[str, Any]) -> dict[str, Any]:
    method = _METHODS[kind.partition(".")[0]]
    if kind == "roots":
        return {"method": method}
    return {"method": method, "params": dict(params)}


def _fits(kind: str, answer: BaseModel) -> bool:
    """Whether an answer has the shape of its question's kind; one that has not is asked again."""
    if kind.startswith("elicitation"):
        return isinstance(answer, ElicitResult)
    if kind == "roots":
        return isinstance(answer, ListRootsResult)
    return not isinstance(answer, ElicitResult | ListRootsResult)
