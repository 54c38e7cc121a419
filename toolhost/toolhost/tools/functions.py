"""One offered function: its definition, and how it is called and its return value rendered."""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from concurrent.futures import Executor as ThreadExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from jsonschema import Draft202012Validator
from pydantic import TypeAdapter, create_model

from toolhost.tools.content import (
    Audio,
    Content,
    EmbeddedResource,
    Image,
    Message,
    ResourceLink,
    Text,
    to_block,
)
from toolhost.tools.context import ToolContext
from toolhost.tools.options import PromptOptions, ResourceOptions, ToolOptions
from toolhost.wire import PromptArgument, PromptDefinition, ResourceDefinition, ToolDefinition, ToolOutcome
from toolhost_sdk.endpoints.signature import Signature, inspect_function, without_titles
from toolhost_sdk.errors import NotFoundError, UsageError

_FUNCTION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
_CONTENT = (Text, Image, Audio, EmbeddedResource, ResourceLink)
_EMPTY = "(no output)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFunction:
    fn: Callable[..., Any]
    signature: Signature
    definition: ToolDefinition
    verbatim: bool  # a hand-written schema: arguments are passed on as sent
    result: TypeAdapter[Any] | None  # None: not structured
    wrapped: bool  # the structured result is {"result": value}
    promised: Draft202012Validator | None  # of the output schema, which clients check results against

    @classmethod
    def read(cls, fn: Callable[..., Any], options: ToolOptions) -> ToolFunction:
        name = options.name or fn.__name__
        if not _FUNCTION_NAME.match(name):
            raise UsageError(
                f"{name!r} is no function name: 1 to 64 letters, digits, '_', '-' or '.', starting with a letter "
                "or digit"
            )
        signature = _signature(fn, name, verbatim=options.input_schema is not None)
        result = _result_adapter(signature, options.structured)
        wrapped, schema = (False, None) if result is None else _result_schema(result)
        description = options.description or signature.description
        return cls(
            fn=fn,
            signature=signature,
            verbatim=options.input_schema is not None,
            result=result,
            wrapped=wrapped,
            promised=None if schema is None else Draft202012Validator(schema),
            definition=ToolDefinition(
                name=name,
                title=options.title,
                description=description or name,
                input_schema=options.input_schema or signature.input_schema(),
                output_schema=schema,
                read_only=options.read_only,
                destructive=options.destructive,
                idempotent=options.idempotent,
                open_world=options.open_world,
                always_load=options.always_load,
                task=options.task,
                timeout=options.timeout,
                meta=options.meta,
            ),
        )

    def renamed(self, name: str) -> ToolFunction:
        return replace(self, definition=self.definition.model_copy(update={"name": name}))

    async def call(
        self, arguments: Mapping[str, Any], context: ToolContext, threads: ThreadExecutor
    ) -> ToolOutcome:
        values = dict(arguments) if self.verbatim else self.signature.parse(arguments)
        injected = dict.fromkeys(self.signature.injected, context)
        value = await invoke(self.fn, {**values, **injected}, context, threads)
        return self.render(value)

    def render(self, value: Any) -> ToolOutcome:
        """The outcome that *value* stands for. Raises TypeError or ValueError for one that its type does not allow."""
        if self.signature.returns is ToolOutcome:
            outcome: ToolOutcome = value
            return outcome
        if self.result is not None:
            plain = self.result.dump_python(value, mode="json", by_alias=True, warnings="error")
            structured = {"result": plain} if self.wrapped else plain
            self._check_promise(structured)
            text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            return {"content": [{"type": "text", "text": text}], "structured": structured}
        return {"content": [to_block(item) for item in _contents(value)]}

    def _check_promise(self, structured: Any) -> None:
        # pydantic lets None and missing keys pass when it dumps.
        assert self.promised is not None
        wrong = next(self.promised.iter_errors(structured), None)
        if wrong is not None:
            raise TypeError(
                f"{self.definition.name!r} returned what its type does not allow: {wrong.message:.300}"
            )


def _signature(fn: Callable[..., Any], name: str, *, verbatim: bool) -> Signature:
    if not verbatim:
        return inspect_function(fn, name=name, inject=(ToolContext,))
    # Arguments are described by hand, so parameters need no annotations; only the context is looked for.
    hints = typing.get_type_hints(fn)
    injected = {
        key: hint for key, hint in hints.items() if isinstance(hint, type) and issubclass(hint, ToolContext)
    }
    return Signature(
        name=name,
        description=inspect.cleandoc(fn.__doc__ or ""),
        arguments=create_model(name),
        injected=injected,
        returns=hints.get("return", inspect.Signature.empty),
    )


def _result_adapter(signature: Signature, wanted: bool | None) -> TypeAdapter[Any] | None:
    """None where results are not structured. Text stays text: clients that are given both text and structure
    show their model the structured part only."""
    returns = signature.returns
    silent = returns in (inspect.Signature.empty, None, type(None), ToolOutcome, Any) or _is_content(returns)
    if silent and wanted:
        raise UsageError(f"{signature.name!r} cannot have structured results: its return type says nothing")
    if wanted is False or silent or (returns is str and not wanted):
        return None
    return signature.result()


def _result_schema(result: TypeAdapter[Any]) -> tuple[bool, dict[str, Any]]:
    """Whether the result is wrapped into an object, and the schema of what is sent."""
    schema = without_titles(result.json_schema(mode="serialization"))
    if schema.get("type") == "object":
        return False, schema
    definitions = schema.pop("$defs", None)
    wrapped = {"type": "object", "properties": {"result": schema}, "required": ["result"]}
    return True, {**wrapped, "$defs": definitions} if definitions else wrapped


def _is_content(annotation: Any) -> bool:
    if annotation in _CONTENT or annotation == Content:
        return True
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (list, tuple, typing.Union, types.UnionType):
        return all(_is_content(item) or item in (str, type(None), ...) for item in arguments) and any(
            _is_content(item) for item in arguments
        )
    return False


def _contents(value: Any) -> list[Content | str]:
    match value:
        case None | "":
            return [_EMPTY]
        case list() | tuple():
            return [item for part in value for item in _contents(part)]
        case str() | Text() | Image() | Audio() | EmbeddedResource() | ResourceLink():
            return [value]
        case _:
            return [json.dumps(TypeAdapter(Any).dump_python(value, mode="json"), ensure_ascii=False)]


async def invoke(
    fn: Callable[..., Any], arguments: dict[str, Any], context: ToolContext | None, threads: ThreadExecutor
) -> Any:
    """Call *fn*: in the loop when it is async, else in a worker thread."""
    if inspect.iscoroutinefunction(inspect.unwrap(fn)):
        return await fn(**arguments)
    try:
        value = await asyncio.get_running_loop().run_in_executor(threads, partial(fn, **arguments))
    except asyncio.CancelledError:
        if context is not None:
            context.cancelled = True  # a thread cannot be ended; it can be told
        raise
    return await value if inspect.isawaitable(value) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceFunction:
    fn: Callable[..., Any]
    definition: ResourceDefinition
    pattern: re.Pattern[str]

    @classmethod
    def read(cls, fn: Callable[..., Any], options: ResourceOptions) -> ResourceFunction:
        pieces = re.split(r"\{(\w+)\}", options.uri)
        pattern = "".join(
            f"(?P<{piece}>[^/?#]+)" if index % 2 else re.escape(piece) for index, piece in enumerate(pieces)
        )
        return cls(
            fn=fn,
            pattern=re.compile(pattern),
            definition=ResourceDefinition(
                uri=options.uri,
                name=options.name or fn.__name__,
                title=options.title,
                description=options.description or inspect.getdoc(fn),
                mime_type=options.mime_type,
                template=len(pieces) > 1,
            ),
        )

    async def read_contents(self, uri: str, threads: ThreadExecutor) -> dict[str, Any] | None:
        """The contents under *uri*, None when it is not ours."""
        match = self.pattern.fullmatch(uri)
        if match is None:
            return None
        value = await invoke(self.fn, match.groupdict(), None, threads)
        mime_type = self.definition.mime_type
        if isinstance(value, bytes):
            blob = base64.b64encode(value).decode()
            return {"uri": uri, "mime_type": mime_type or "application/octet-stream", "blob": blob}
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return {"uri": uri, "mime_type": mime_type or "text/plain", "text": text}


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFunction:
    fn: Callable[..., Any]
    signature: Signature
    definition: PromptDefinition

    @classmethod
    def read(cls, fn: Callable[..., Any], options: PromptOptions) -> PromptFunction:
        name = options.name or fn.__name__
        signature = inspect_function(fn, name=name, inject=(ToolContext,))
        schema = signature.input_schema()
        required = set(schema.get("required", ()))
        arguments = [
            PromptArgument(name=key, description=value.get("description"), required=key in required)
            for key, value in schema["properties"].items()
        ]
        description = options.description or signature.description or None
        return cls(
            fn=fn,
            signature=signature,
            definition=PromptDefinition(
                name=name, title=options.title, description=description, arguments=arguments
            ),
        )

    async def get(
        self, arguments: Mapping[str, Any], context: ToolContext, threads: ThreadExecutor
    ) -> dict[str, Any]:
        values = self.signature.parse(arguments)
        values.update(dict.fromkeys(self.signature.injected, context))
        value = await invoke(self.fn, values, context, threads)
        messages = [Message("user", value)] if isinstance(value, str) else list(value)
        return {
            "description": self.definition.description,
            "messages": [{"role": item.role, "content": to_block(item.content)} for item in messages],
        }


async def read_resource(
    resources: Mapping[str, ResourceFunction], uri: str, threads: ThreadExecutor
) -> dict[str, Any]:
    """`{"contents": [...]}` of the first resource or template that *uri* fits."""
    for resource in resources.values():
        if (contents := await resource.read_contents(uri, threads)) is not None:
            return {"contents": [contents]}
    raise NotFoundError(f"there is no resource {uri!r}", uri=uri)
