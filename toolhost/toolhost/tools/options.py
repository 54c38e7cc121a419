"""What the marks of a server's methods say beside their signatures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from toolhost.wire import TaskPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOptions:
    """What `@tool` says beside the signature. See `toolhost.wire.ToolDefinition` for the hints' meaning."""

    name: str | None = None
    title: str | None = None
    description: str | None = None
    read_only: bool | None = None
    destructive: bool | None = None
    idempotent: bool | None = None
    open_world: bool | None = None
    structured: bool | None = None
    input_schema: dict[str, Any] | None = None
    always_load: bool = False
    task: TaskPolicy = "after_grace"
    timeout: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceOptions:
    uri: str
    name: str | None = None
    title: str | None = None
    description: str | None = None
    mime_type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    name: str | None = None
    title: str | None = None
    description: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """Marks the one method that completes arguments."""
