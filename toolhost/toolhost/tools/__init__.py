"""Tool servers: how to define them, and the built-in ones."""

from toolhost.tools.content import Audio, Content, EmbeddedResource, Image, Message, ResourceLink, Text
from toolhost.tools.context import CapabilityRequiredError, ServerEnvironment, ToolContext
from toolhost.tools.server import ToolServer, ToolSpec, completion, prompt, resource, tool
from toolhost.wire import ToolOutcome

__all__ = [
    "Audio",
    "CapabilityRequiredError",
    "Content",
    "EmbeddedResource",
    "Image",
    "Message",
    "ResourceLink",
    "ServerEnvironment",
    "Text",
    "ToolContext",
    "ToolOutcome",
    "ToolServer",
    "ToolSpec",
    "completion",
    "prompt",
    "resource",
    "tool",
]
