"""MCP tool servers behind one ingress.

Importing this starts nothing and does not import Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolhost.tools import ToolContext, ToolServer, ToolSpec, tool

if TYPE_CHECKING:
    from toolhost.hosting.endpoint import ToolEndpoint, resolve_tool_url
    from toolhost.hosting.handle import ToolHandle, spawn, stop
    from toolhost.hosting.toolhost import ToolHost
    from toolhost.tools.bash import BashTool
    from toolhost.tools.jobs import AsyncBashTool, AsyncJobTool, job_tool
    from toolhost.tools.template import ToolServerTemplate

_LAZY = {
    "AsyncBashTool": "toolhost.tools.jobs",
    "AsyncJobTool": "toolhost.tools.jobs",
    "BashTool": "toolhost.tools.bash",
    "ToolServerTemplate": "toolhost.tools.template",
    "job_tool": "toolhost.tools.jobs",
    "ToolEndpoint": "toolhost.hosting.endpoint",
    "resolve_tool_url": "toolhost.hosting.endpoint",
    "ToolHandle": "toolhost.hosting.handle",
    "spawn": "toolhost.hosting.handle",
    "stop": "toolhost.hosting.handle",
    "ToolHost": "toolhost.hosting.toolhost",
}

__all__ = [
    "AsyncBashTool",
    "AsyncJobTool",
    "BashTool",
    "ToolContext",
    "ToolEndpoint",
    "ToolHandle",
    "ToolHost",
    "ToolServer",
    "ToolServerTemplate",
    "ToolSpec",
    "job_tool",
    "resolve_tool_url",
    "spawn",
    "stop",
    "tool",
]


def __getattr__(name: str) -> Any:
    """Hosting pulls in what a mere server definition never needs."""
    from importlib import import_module

    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
