"""What a function may return besides plain data: content blocks, neutral of any protocol."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    annotations: dict[str, Any] | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class Image:
    """Image bytes; *mime_type* such as `image/png`."""

    data: bytes
    mime_type: str = "image/png"
    annotations: dict[str, Any] | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class Audio:
    data: bytes
    mime_type: str = "audio/wav"
    annotations: dict[str, Any] | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedResource:
    """A resource's content inside a result: `text`, or `blob` for bytes."""

    uri: str
    mime_type: str | None = None
    text: str | None = None
    blob: bytes | None = None
    annotations: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceLink:
    uri: str
    name: str
    title: str | None = None
    description: str | None = None
    mime_type: str | None = None


Content = Text | Image | Audio | EmbeddedResource | ResourceLink


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a prompt."""

    role: Literal["user", "assistant"]
    content: Content | str


def to_block(content: Content | str) -> dict[str, Any]:
    """The wire form of one content value (see `toolhost.wire`)."""
    match content:
        case str():
            block: dict[str, Any] = {"type": "text", "text": content}
        case Text(text):
            block = {"type": "text", "text": text}
        case Image(data, mime_type):
            block = {"type": "image", "data": base64.b64encode(data).decode(), "mime_type": mime_type}
        case Audio(data, mime_type):
            block = {"type": "audio", "data": base64.b64encode(data).decode(), "mime_type": mime_type}
        case EmbeddedResource():
            body = (
                {"blob": base64.b64encode(content.blob).decode()}
                if content.blob is not None
                else {"text": content.text or ""}
            )
            block = {"type": "resource", "uri": content.uri, "mime_type": content.mime_type, **body}
        case ResourceLink():
            block = {
                "type": "link",
                "uri": content.uri,
                "name": content.name,
                "title": content.title,
                "description": content.description,
                "mime_type": content.mime_type,
            }
    if annotations := getattr(content, "annotations", None):
        block["annotations"] = annotations
    return block
