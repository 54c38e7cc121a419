"""What ingress, controller and tool hosts say to each other over channels. No part of it is MCP's wire.

Endpoints and methods:

    controller (`$RUN/control.sock`, served by the controller, called by ingresses, CLI and SDK on this node)
        control / routes.watch   {}                      -> item frames, each a whole `RouteTable`; never ends
        control / routes.seen    {"revision"}            -> {}   (an ingress says it has taken a table over)
        control / servers.spawn  SpawnRequest            -> ServerStatus
        control / servers.stop   {"name", "grace"}       -> {"name", "stopped": bool}
        control / servers.drain  {"name", "timeout"}     -> {"name", "drained": bool}
        control / servers.list   {}                      -> [ServerStatus]
        control / servers.log    {"name", "tail"}        -> {"text"}
        control / ingress.ready  {"url"}                 -> {}   (an ingress says it serves)
        control / tokens.*       see `toolhost.tokens`
        control / host.status    {}                      -> HostStatus
        control / host.shutdown  {}                      -> {}
    tool host (`$RUN/host-*.sock`, or a relay's socket; called by ingresses)
        <server> / tools/call           CallPayload      -> ToolOutcome
        <server> / resources/read       {"uri", ...}     -> {"contents": [...]}
        <server> / prompts/get          {"name", "arguments", ...} -> {"description", "messages": [...]}
        <server> / completion/complete  {"ref", "argument", "context"} -> {"values", "total", "has_more"}
        host / load | unload | drain | running | alive   (called by the controller only)

`tools/call` frames beside the last: accepted, progress, log, ask, handle, changed, detach. An `ask` frame is
one round of questions: `{"questions": {key: {"kind": "elicitation" | "sampling" | "roots", "params": {...}}},
"state": Any}`. The caller answers upstream with one message `{"answers": {key: answer}}` while the call runs
(legacy), or ends the call and makes it again with every answer it has in `CallPayload["answers"]` and the last
round's state in `CallPayload["state"]` (2026-07-28): the function runs from its start and finds them there. An
answer is the plain result object of the question: `{"action", "content"}`, a message, or `{"roots": [...]}`.

Content blocks in outcomes: {"type": "text", "text"}, {"type": "image" | "audio", "data": base64, "mime_type"},
{"type": "resource", "uri", "mime_type", "text" | "blob"}, {"type": "link", "uri", "name", "title",
"description", "mime_type"}; each may have "annotations" and "meta".
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from pydantic import BaseModel, ConfigDict, Field

ServerState = Literal["starting", "ready", "draining", "restarting", "stopped", "failed"]
TaskPolicy = Literal["never", "after_grace", "at_once"]


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Icon(_Wire):
    src: str
    mime_type: str | None = None
    sizes: list[str] | None = None


class ToolDefinition(_Wire):
    """One function as clients see it. `input_schema` and `output_schema` are JSON Schema, kept verbatim."""

    name: str
    title: str | None = None
    description: str
    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None = None
    read_only: bool | None = None
    destructive: bool | None = None
    idempotent: bool | None = None
    open_world: bool | None = None
    always_load: bool = False
    task: TaskPolicy = "after_grace"
    timeout: float | None = None
    icons: list[Icon] = Field(default_factory=list)
    meta: dict[str, Any] = Field(default_factory=dict)


class ResourceDefinition(_Wire):
    """A resource, or a template when `uri` holds `{placeholders}` (RFC 6570 level 1)."""

    uri: str
    name: str
    title: str | None = None
    description: str | None = None
    mime_type: str | None = None
    template: bool = False


class PromptArgument(_Wire):
    name: str
    description: str | None = None
    required: bool = False


class PromptDefinition(_Wire):
    name: str
    title: str | None = None
    description: str | None = None
    arguments: list[PromptArgument] = Field(default_factory=list)


class ServerDefinition(_Wire):
    """Everything lists are answered from. Read from the host once per generation."""

    title: str | None = None
    version: str = "0"
    instructions: str | None = None
    tools: list[ToolDefinition] = Field(default_factory=list)
    resources: list[ResourceDefinition] = Field(default_factory=list)
    prompts: list[PromptDefinition] = Field(default_factory=list)
    completions: bool = False
    logging: bool = False  # legacy `logging/setLevel` is served
    subscribable: bool = False  # legacy `resources/subscribe` is served
    resumable: bool = False  # POST streams keep an event store (servers that ask questions of legacy clients)
    retry_interval_ms: int | None = None


class Address(_Wire):
    """Where a server's host answers.

    Args:
        node_id: the node it runs on.
        unix: a socket of the ingress's own node; for a host of another node, its relay's.
    """

    node_id: str
    unix: str


class Route(_Wire):
    name: str
    generation: int
    state: ServerState
    address: Address | None = None
    definition: ServerDefinition
    anonymous: bool = False  # test configuration only: served without a token
    hold: float = 30.0  # seconds a call waits for a server that is restarting


class RouteTable(_Wire):
    revision: int
    routes: list[Route]


class SpawnRequest(_Wire):
    """`spec` is a cloudpickled `ToolSpec`; only the tool host unpickles it."""

    name: str
    spec: bytes
    expose: list[str] | None = None
    placement: dict[str, Any] = Field(default_factory=dict)
    isolation: Literal["shared", "process"] = "shared"
    detached: bool = True
    start_timeout: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    max_restarts: int = Field(default=3, ge=0)
    prefix: bool = False
    anonymous: bool = False


class ServerStatus(_Wire):
    name: str
    state: ServerState
    url: str
    node_id: str | None = None
    pid: int | None = None  # of its tool host, on that node
    restarts: int = 0
    running_calls: int = 0
    tools: list[str] = Field(default_factory=list)
    detached: bool = False
    generation: int = 0
    error: str | None = None


class HostStatus(_Wire):
    url: str | None
    pid: int
    version: str
    home: str
    node_id: str | None
    ray_address: str | None
    started_at: float
    servers: list[ServerStatus]


class CallPayload(TypedDict):
    name: str
    arguments: dict[str, Any]
    answers: NotRequired[dict[str, Any]]
    state: NotRequired[Any]
    capabilities: NotRequired[list[str]]  # kinds the client can answer: elicitation, sampling, roots
    meta: NotRequired[dict[str, Any]]


class ToolOutcome(TypedDict):
    content: list[dict[str, Any]]
    structured: NotRequired[Any]
    is_error: NotRequired[bool]
    meta: NotRequired[dict[str, Any]]
