"""A server's definition made ready to answer from: compiled checks and lists in wire form, once per generation."""

from __future__ import annotations

import json
from typing import Any, Final

from mcp.shared.inbound import X_MCP_HEADER_KEY

from toolhost.ingress.content import complete, prompt_entry, resource_entry, tool_entry
from toolhost.ingress.validation import ToolCheck
from toolhost.wire import ServerDefinition

# Lists are answered from memory and their changes are announced: caching them longer would save nobody anything.
FRESH: Final = {"ttlMs": 0, "cacheScope": "private"}
Scope = frozenset[str] | None


class Catalog:
    """What one server offers. A *scope* names the functions a token opens; None means everything."""

    def __init__(self, definition: ServerDefinition) -> None:
        self.definition = definition
        self._checks = {tool.name: ToolCheck(tool) for tool in definition.tools}
        self._headed = {
            tool.name: tool.input_schema
            for tool in definition.tools
            if X_MCP_HEADER_KEY in json.dumps(tool.input_schema)
        }
        self._lists: dict[tuple[str, bool, Scope], dict[str, Any]] = {}
        self.serves = {
            "tools": True,
            "resources": bool(definition.resources),
            "prompts": bool(definition.prompts),
            "completion": definition.completions,
            "logging": definition.logging,
            "subscribe": definition.subscribable,
        }

    def names(self, scope: Scope) -> list[str]:
        """The functions within *scope*, in declaration order."""
        return [name for name in self._checks if scope is None or name in scope]

    def check(self, name: str, scope: Scope) -> ToolCheck | None:
        """One function, or None when it is not there or not within *scope*: one answer."""
        return self._checks.get(name) if scope is None or name in scope else None

    def headed_schema(self, name: str) -> dict[str, Any] | None:
        """The input schema of a function with arguments that travel in headers too; None for every other."""
        return self._headed.get(name)

    def listed(self, what: str, scope: Scope, *, modern: bool) -> dict[str, Any]:
        """The result of a list method, the same object each time: `tools`, `resources`, `templates`, `prompts`."""
        key = (what, modern, scope)
        if key not in self._lists:
            if len(self._lists) > 256:  # token scopes are few; a flood of different ones must not pile up
                self._lists.clear()
            self._lists[key] = self._build(what, scope, modern)
        return self._lists[key]

    def _build(self, what: str, scope: Scope, modern: bool) -> dict[str, Any]:
        # A token for single functions opens those and nothing else.
        resources = self.definition.resources if scope is None else []
        prompts = self.definition.prompts if scope is None else []
        tools = [tool for tool in self.definition.tools if scope is None or tool.name in scope]
        entries: dict[str, list[dict[str, Any]]]
        match what:
            case "tools":
                entries = {"tools": [tool_entry(tool, modern=modern) for tool in tools]}
            case "resources":
                entries = {"resources": [resource_entry(r) for r in resources if not r.template]}
            case "templates":
                entries = {"resourceTemplates": [resource_entry(r) for r in resources if r.template]}
            case _:
                entries = {"prompts": [prompt_entry(prompt) for prompt in prompts]}
        return complete({**entries, **FRESH}, modern=modern)

    def changes(self, other: Catalog) -> list[str]:
        """Which of `tools`, `prompts`, `resources` differ from *other*."""
        old, new = other.definition, self.definition
        pairs = {
            "tools": (old.tools, new.tools),
            "prompts": (old.prompts, new.prompts),
            "resources": (old.resources, new.resources),
        }
        return [what for what, (before, after) in pairs.items() if before != after]
