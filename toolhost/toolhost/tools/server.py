"""Defining a tool server: `ToolServer`, `@tool`, `@resource`, `@prompt`, `@completion`, `bind`.

Nothing runs when a server is constructed or bound. `spawn` sends the frozen spec to a tool host, which constructs
the object there, once, and calls `start`. Construction arguments say where and how; parameters of functions say
what to do, and are all a model ever sees.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, ClassVar, Self, TypeVar, overload

from toolhost.tools.context import ServerEnvironment, ToolContext
from toolhost.tools.functions import PromptFunction, ResourceFunction, ToolFunction
from toolhost.tools.options import Completion, PromptOptions, ResourceOptions, ToolOptions
from toolhost.wire import ServerDefinition, TaskPolicy
from toolhost_sdk.errors import UsageError

Fn = TypeVar("Fn", bound=Callable[..., Any])
SERVER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")
_MARK = "__toolhost__"


@overload
def tool(fn: Fn, /) -> Fn: ...
@overload
def tool(
    *,
    name: str | None = None,
    title: str | None = None,
    description: str | None = None,
    read_only: bool | None = None,
    destructive: bool | None = None,
    idempotent: bool | None = None,
    open_world: bool | None = None,
    structured: bool | None = None,
    input_schema: dict[str, Any] | None = None,
    always_load: bool = False,
    task: TaskPolicy = "after_grace",
    timeout: float | None = None,
    meta: dict[str, Any] | None = None,
) -> Callable[[Fn], Fn]: ...
def tool(fn: Any = None, /, *, meta: dict[str, Any] | None = None, **options: Any) -> Any:
    """Offer a method to clients. Its docstring and annotations are the interface an agent reads.

    Args:
        structured: force (True) or forbid (False) structured results; by default everything but text, content
            values and None has them.
        input_schema: a hand-written schema, kept verbatim; the function then gets the arguments as sent.
        always_load: ask clients that defer tools to put this one into the prompt.
        task: whether a long call may become a task of the protocol.
        timeout: seconds a call may take.
    """
    mark = ToolOptions(meta=meta or {}, **options)
    return _marked(fn, mark) if fn is not None else lambda target: _marked(target, mark)


def resource(
    uri: str,
    *,
    name: str | None = None,
    title: str | None = None,
    description: str | None = None,
    mime_type: str | None = None,
) -> Callable[[Fn], Fn]:
    """Offer a method's return value (str or bytes) under *uri*; `{placeholders}` in it are parameters."""
    mark = ResourceOptions(uri=uri, name=name, title=title, description=description, mime_type=mime_type)
    return lambda fn: _marked(fn, mark)


def prompt(
    *, name: str | None = None, title: str | None = None, description: str | None = None
) -> Callable[[Fn], Fn]:
    """Offer a method as a prompt; it returns a str or a list of `Message`. Its parameters are strings."""
    mark = PromptOptions(name=name, title=title, description=description)
    return lambda fn: _marked(fn, mark)


def completion(fn: Fn) -> Fn:
    """Mark the method `(ref, argument, context) -> list[str]` that completes prompt and template arguments."""
    return _marked(fn, Completion())


def _marked(fn: Fn, mark: object) -> Fn:
    setattr(fn, _MARK, mark)
    return fn


class ToolServer:
    """Base of every tool server; subclass it and mark methods with `@tool`. Ordinary inheritance holds."""

    title: ClassVar[str | None] = None
    version: ClassVar[str] = "0"
    instructions: ClassVar[str | None] = None
    max_concurrent: int = 8
    max_queued: int = 64
    call_timeout: float | None = None
    logging: ClassVar[bool] = False
    subscribable: ClassVar[bool] = False
    resumable: ClassVar[bool] = False
    retry_interval_ms: ClassVar[int | None] = None

    @classmethod
    def bind(cls, *args: Any, **kwargs: Any) -> ToolSpec:
        """A frozen spec: this class with these operational arguments. Runs nothing.

        Raises:
            UsageError: the arguments do not fit the constructor, or a declared function has a bad name or
                signature.
        """
        try:
            inspect.signature(cls).bind(*args, **kwargs)
        except TypeError as error:
            raise UsageError(f"cannot bind {cls.__name__!r}: {error}") from None
        for attribute, mark in _marks(cls).items():
            if isinstance(mark, ToolOptions):
                ToolFunction.read(MethodType(getattr(cls, attribute), cls), mark)
        return ToolSpec(cls=cls, args=args, kwargs=kwargs)

    def setup(self) -> None:
        """Called once before `start`; may `add_tool`."""

    async def start(self, env: ServerEnvironment) -> None:
        """Called once in the host's loop before the first call."""

    async def aclose(self) -> None:
        """Called once after the last call."""

    def add_tool(self, fn: Callable[..., Any], *, name: str | None = None, **options: Any) -> None:
        """Offer *fn* (a bound method, a function, a task's `.call`) beside the declared methods.

        Args:
            name: defaults to the function's own.
            options: as in `tool`.
        """
        mark = getattr(fn, _MARK, None)
        defaults = {} if not isinstance(mark, ToolOptions) else {k: getattr(mark, k) for k in mark.__slots__}
        added: list[ToolFunction] = self.__dict__.setdefault("_added_tools", [])
        added.append(
            ToolFunction.read(
                fn, ToolOptions(**{**defaults, **options, "name": name or defaults.get("name")})
            )
        )


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A server class with its operational arguments. Arguments may be secret: they are in no repr."""

    cls: type[ToolServer]
    args: tuple[Any, ...] = field(default=(), repr=False)
    kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def build(self) -> ServerParts:
        """Construct the server and read its functions. Belongs in the tool host."""
        server = self.cls(*self.args, **self.kwargs)
        server.setup()
        return ServerParts.of(server)

    def definition(self) -> ServerDefinition:
        """What clients will see. Constructs the server."""
        return self.build().definition()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerParts:
    """A constructed server with its functions by name, in declaration order."""

    server: ToolServer
    tools: Mapping[str, ToolFunction]
    resources: Mapping[str, ResourceFunction]
    prompts: Mapping[str, PromptFunction]
    complete: Callable[..., Any] | None

    @classmethod
    def of(cls, server: ToolServer) -> Self:
        tools: dict[str, ToolFunction] = {}
        resources: dict[str, ResourceFunction] = {}
        prompts: dict[str, PromptFunction] = {}
        complete = None
        for attribute, mark in _marks(type(server)).items():
            method = getattr(server, attribute)
            match mark:
                case ToolOptions():
                    _add(tools, ToolFunction.read(method, mark))
                case ResourceOptions():
                    resources[mark.uri] = ResourceFunction.read(method, mark)
                case PromptOptions():
                    function = PromptFunction.read(method, mark)
                    prompts[function.definition.name] = function
                case Completion():
                    complete = method
        for function in server.__dict__.get("_added_tools", ()):
            _add(tools, function)
        return cls(server=server, tools=tools, resources=resources, prompts=prompts, complete=complete)

    def only(self, expose: list[str] | None, *, prefix: str | None = None) -> ServerParts:
        """The same server offering a selection, optionally with names as `{prefix}_{name}`.

        Raises:
            UsageError: the selection is empty or names something unknown; the message lists what there is.
        """
        tools = dict(self.tools)
        if expose is not None:
            unknown = [name for name in expose if name not in tools]
            if unknown or not expose:
                wrong = f"does not offer {unknown[0]!r}" if unknown else "cannot expose nothing"
                raise UsageError(
                    f"{type(self.server).__name__!r} {wrong}; its functions are {', '.join(tools)}"
                )
            tools = {name: fn for name, fn in tools.items() if name in expose}
        if prefix:
            tools = {f"{prefix}_{name}": fn.renamed(f"{prefix}_{name}") for name, fn in tools.items()}
        return ServerParts(
            server=self.server,
            tools=tools,
            resources=self.resources,
            prompts=self.prompts,
            complete=self.complete,
        )

    def definition(self) -> ServerDefinition:
        server = type(self.server)
        return ServerDefinition(
            title=server.title,
            version=server.version,
            instructions=self.server.instructions,
            tools=[fn.definition for fn in self.tools.values()],
            resources=[fn.definition for fn in self.resources.values()],
            prompts=[fn.definition for fn in self.prompts.values()],
            completions=self.complete is not None,
            logging=server.logging,
            subscribable=server.subscribable,
            resumable=server.resumable,
            retry_interval_ms=server.retry_interval_ms,
        )


def _marks(cls: type) -> dict[str, Any]:
    """Marked attributes, bases first, each at the place of its first declaration."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for attribute, value in vars(base).items():
            mark = getattr(value, _MARK, None)
            if mark is not None:
                found[attribute] = mark
            elif attribute in found and not callable(value):
                del found[attribute]
    return found


def _add(tools: dict[str, ToolFunction], function: ToolFunction) -> None:
    name = function.definition.name
    if name in tools:
        raise UsageError(f"two functions are named {name!r}: give one of them another name=")
    tools[name] = function


def check_server_name(name: str) -> str:
    """*name* itself, or UsageError."""
    if not SERVER_NAME.match(name):
        raise UsageError(
            f"{name!r} is no server name: 1 to 64 letters, digits, '_' or '-', starting with a letter or digit"
        )
    return name


__all__ = [
    "PromptOptions", "ResourceOptions", "ServerParts", "ToolContext", "ToolOptions", "ToolServer", "ToolSpec",
    "check_server_name", "completion", "prompt", "resource", "tool",
]  # fmt: skip
