"""From the wire of the platform to the wire of MCP: definitions, content blocks, outcomes. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolhost.wire import PromptDefinition, ResourceDefinition, ToolDefinition
from toolhost_sdk.errors import ToolhostError

ERROR_META = "toolhost/error"


def tool_entry(tool: ToolDefinition, *, modern: bool) -> dict[str, Any]:
    """One entry of `tools/list`."""
    annotations = {
        "title": tool.title,
        "readOnlyHint": tool.read_only,
        "destructiveHint": tool.destructive,
        "idempotentHint": tool.idempotent,
        "openWorldHint": tool.open_world,
    }
    meta = dict(tool.meta)
    if tool.always_load:
        meta["anthropic/alwaysLoad"] = True
    output = tool.output_schema
    if output is not None and not modern and output.get("type") != "object":
        output = None  # before 2026-07-28 only objects can be structured
    return _given(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        inputSchema=tool.input_schema,
        outputSchema=output,
        annotations=_given(**annotations) or None,
        icons=[_given(src=i.src, mimeType=i.mime_type, sizes=i.sizes) for i in tool.icons] or None,
        _meta=meta or None,
    )


def resource_entry(resource: ResourceDefinition) -> dict[str, Any]:
    """One entry of `resources/list`, or of `resources/templates/list`."""
    return _given(
        name=resource.name,
        title=resource.title,
        description=resource.description,
        mimeType=resource.mime_type,
        **{"uriTemplate" if resource.template else "uri": resource.uri},
    )


def prompt_entry(prompt: PromptDefinition) -> dict[str, Any]:
    """One entry of `prompts/list`."""
    arguments = [
        _given(name=a.name, description=a.description, required=a.required) for a in prompt.arguments
    ]
    return _given(
        name=prompt.name, title=prompt.title, description=prompt.description, arguments=arguments or None
    )


def content_block(block: Mapping[str, Any]) -> dict[str, Any]:
    """One content block. Raises `KeyError` for one that is none."""
    extra = _given(annotations=block.get("annotations"), _meta=block.get("meta"))
    match block["type"]:
        case "text":
            return {"type": "text", "text": block["text"], **extra}
        case "image" | "audio" as kind:
            return {"type": kind, "data": block["data"], "mimeType": block["mime_type"], **extra}
        case "resource":
            return {"type": "resource", "resource": resource_contents(block), **extra}
        case "link":
            link = _given(
                uri=block["uri"],
                name=block["name"],
                title=block.get("title"),
                description=block.get("description"),
                mimeType=block.get("mime_type"),
            )
            return {"type": "resource_link", **link, **extra}
    raise KeyError(block["type"])


def resource_contents(item: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of one resource, text or blob."""
    return _given(
        uri=item["uri"], mimeType=item.get("mime_type"), text=item.get("text"), blob=item.get("blob")
    )


def call_result(outcome: Mapping[str, Any], *, modern: bool) -> dict[str, Any]:
    """The result of `tools/call`. Raises `KeyError` for an outcome with a block that is none."""
    result: dict[str, Any] = {"content": [content_block(block) for block in outcome["content"]]}
    structured = outcome.get("structured")
    if structured is not None and (modern or isinstance(structured, dict)):
        result["structuredContent"] = structured
    if outcome.get("is_error"):
        result["isError"] = True
    if outcome.get("meta"):
        result["_meta"] = outcome["meta"]
    return complete(result, modern=modern)


def complete(result: dict[str, Any], *, modern: bool) -> dict[str, Any]:
    """*result* as a finished one; only 2026-07-28 knows any other."""
    return {"resultType": "complete", **result} if modern else result


def failure(error: ToolhostError) -> dict[str, Any]:
    """A failed call as an outcome: words for the model, the stable code for programs."""
    facts = {"code": error.code, "retryable": error.retryable, "details": error.details}
    return {
        "content": [{"type": "text", "text": f"{error.message} [{error.code}]"}],
        "is_error": True,
        "meta": {ERROR_META: facts},
    }


def prompt_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """One message of a prompt."""
    return {"role": message["role"], "content": content_block(message["content"])}


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
