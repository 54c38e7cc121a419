"""The servers that come with toolhost, by the word that CLI and control API know them by."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from toolhost.tools.server import ToolServer, ToolSpec
from toolhost_sdk.errors import NotFoundError

SHIPPED: Mapping[str, str] = {
    "bash": "toolhost.tools.bash:BashTool",
    "jobs": "toolhost.tools.jobs:AsyncBashTool",
}


def shipped_spec(kind: str, arguments: Mapping[str, Any]) -> ToolSpec:
    """The spec of a shipped server with these operational arguments.

    Raises:
        NotFoundError: no such kind; the message lists them.
        UsageError: the arguments do not fit.
    """
    if kind not in SHIPPED:
        raise NotFoundError(f"no kind of server {kind!r}; there are {', '.join(SHIPPED)}", kind=kind)
    module, name = SHIPPED[kind].split(":")
    server: type[ToolServer] = getattr(import_module(module), name)
    return server.bind(**arguments)
