"""Every feature of the protocol once: the fixtures the official conformance suites ask for.

Names, texts and schemas of functions are the suites' own, so `test_` here is part of an interface. The functions
at the end are the fixtures of the Tasks scenarios.

Annotations are real objects in this file (no `from __future__ import annotations`): a class that travels to a
tool host by value takes along only the names its code uses.
"""

import asyncio
import base64
import io
import json
import wave
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

from toolhost.tools import (
    Audio,
    Content,
    EmbeddedResource,
    Image,
    Message,
    Text,
    ToolContext,
    ToolServer,
    completion,
    prompt,
    resource,
    tool,
)
from toolhost_sdk.errors import ExecutionError

Schema: TypeAlias = dict[str, Any]

RED_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
)


def _silence() -> bytes:
    """A hundredth of a second of silence as a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(160))
    return file.getvalue()


def _object(**properties: Schema) -> Schema:
    """A flat object schema in which every property is required."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _text_question(text: str, tokens: int) -> Schema:
    message = {"role": "user", "content": {"type": "text", "text": text}}
    return {"messages": [message], "maxTokens": tokens}


def _spoken(answer: Mapping[str, Any]) -> str:
    """The text of a sampling answer, whose content is one block or a list of them."""
    content = answer.get("content") or []
    blocks = content if isinstance(content, list) else [content]
    return " ".join(block.get("text", "") for block in blocks)


def _choice(answer: Mapping[str, Any]) -> str:
    return f"action={answer['action']}, content={json.dumps(answer.get('content') or {}, ensure_ascii=False)}"


def _field(answer: Mapping[str, Any], name: str) -> str:
    """One value the user gave, or what they did instead."""
    if answer["action"] != "accept":
        return f"({answer['action']})"
    return str((answer.get("content") or {}).get(name, ""))


TEXT: Schema = {"type": "string"}
DEFAULTS = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    },
    "required": [],
}
ENUMS = {
    "type": "object",
    "properties": {
        "untitledSingle": {"type": "string", "enum": ["option1", "option2", "option3"]},
        "titledSingle": {
            "type": "string",
            "oneOf": [
                {"const": "value1", "title": "First Option"},
                {"const": "value2", "title": "Second Option"},
                {"const": "value3", "title": "Third Option"},
            ],
        },
        "legacyEnum": {
            "type": "string",
            "enum": ["opt1", "opt2", "opt3"],
            "enumNames": ["Option One", "Option Two", "Option Three"],
        },
        "untitledMulti": {
            "type": "array",
            "items": {"type": "string", "enum": ["option1", "option2", "option3"]},
        },
        "titledMulti": {
            "type": "array",
            "items": {
                "anyOf": [
                    {"const": "value1", "title": "First Choice"},
                    {"const": "value2", "title": "Second Choice"},
                    {"const": "value3", "title": "Third Choice"},
                ]
            },
        },
    },
    "required": [],
}
JSON_SCHEMA_2020_12 = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
REGION = {
    "type": "object",
    "properties": {"region": {"type": "string", "description": "Where to run", "x-mcp-header": "Region"}},
    "required": ["region"],
}


class Everything(ToolServer):
    """Offers every kind of result, question, notification, resource and prompt."""

    title: ClassVar[str | None] = "Everything"
    version: ClassVar[str] = "1"
    instructions: ClassVar[str | None] = "Fixtures for protocol tests. No function changes anything."
    max_concurrent: int = 32
    logging: ClassVar[bool] = True
    subscribable: ClassVar[bool] = True
    resumable: ClassVar[bool] = True
    retry_interval_ms: ClassVar[int | None] = 100

    # Results

    @tool(read_only=True, task="never")
    def test_simple_text(self) -> str:
        """Returns one text."""
        return "This is a simple text response for testing."

    @tool(read_only=True, task="never")
    def test_image_content(self) -> Image:
        """Returns an image of one pixel."""
        return Image(RED_PIXEL)

    @tool(read_only=True, task="never")
    def test_audio_content(self) -> Audio:
        """Returns a short sound."""
        return Audio(_silence())

    @tool(read_only=True, task="never")
    def test_embedded_resource(self) -> EmbeddedResource:
        """Returns a resource inside the result."""
        return EmbeddedResource(
            uri="test://embedded-resource",
            mime_type="text/plain",
            text="This is an embedded resource content.",
        )

    @tool(read_only=True, task="never")
    def test_multiple_content_types(self) -> list[Content]:
        """Returns a text, an image and a resource."""
        return [
            Text("Multiple content types test:"),
            Image(RED_PIXEL),
            EmbeddedResource(
                uri="test://mixed-content-resource",
                mime_type="application/json",
                text='{"test":"data","value":123}',
            ),
        ]

    @tool(read_only=True, task="never")
    def test_error_handling(self) -> str:
        """Always fails."""
        raise ExecutionError("This tool intentionally returns an error for testing")

    @tool(read_only=True, input_schema=JSON_SCHEMA_2020_12, task="never")
    def json_schema_2020_12_tool(self, **arguments: Any) -> str:
        """Tool with JSON Schema 2020-12 features"""
        return f"JSON Schema 2020-12 tool called with: {json.dumps(arguments, sort_keys=True)}"

    @tool(read_only=True, input_schema=REGION, task="never")
    def test_x_mcp_header(self, region: str) -> str:
        """Has an argument that travels as a header too."""
        return f"region: {region}"

    # Notifications

    @tool(read_only=True, task="never")
    async def test_tool_with_logging(self, ctx: ToolContext) -> str:
        """Sends three log messages."""
        for text in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await ctx.log("info", text)
            await asyncio.sleep(0.05)
        return "Tool with logging executed successfully"

    @tool(read_only=True, task="never")
    async def test_logging_tool(self, ctx: ToolContext) -> str:
        """Logs, which clients that did not ask for log messages must not see."""
        await ctx.log("info", "test_logging_tool ran")
        return "Logged."

    @tool(read_only=True, task="never")
    async def test_tool_with_progress(self, ctx: ToolContext) -> str:
        """Reports 0, 50 and 100 of 100."""
        for value in (0, 50, 100):
            await ctx.progress(value, 100, f"Completed step {value} of 100")
            await asyncio.sleep(0.05)
        return "Tool with progress executed successfully"

    @tool(read_only=True, task="never")
    async def test_trigger_tool_change(self, ctx: ToolContext) -> str:
        """Announces that the list of tools changed."""
        await ctx.changed("tools")
        return "Announced a change of the tools."

    @tool(read_only=True, task="never")
    async def test_trigger_prompt_change(self, ctx: ToolContext) -> str:
        """Announces that the list of prompts changed."""
        await ctx.changed("prompts")
        return "Announced a change of the prompts."

    @tool(read_only=True, task="never")
    async def test_reconnection(self, ctx: ToolContext) -> str:
        """Lets go of the stream in mid-call; the result is read after reconnecting."""
        await ctx.detach()
        await asyncio.sleep(0.1)
        return (
            "Reconnection test completed successfully. If you received this, the client resumed the stream."
        )

    # Questions

    @tool(read_only=True, task="never")
    async def test_missing_capability(self, ctx: ToolContext) -> str:
        """Needs a client that can sample."""
        ctx.require("sampling")
        return "The client can sample."

    @tool(read_only=True, task="never")
    async def test_sampling(self, prompt: str, ctx: ToolContext) -> str:
        """Asks the client's model.

        Args:
            prompt: The prompt to send to the LLM
        """
        return f"LLM response: {_spoken(await ctx.sample('sampling', _text_question(prompt, 100)))}"

    @tool(read_only=True, task="never")
    async def test_elicitation(self, message: str, ctx: ToolContext) -> str:
        """Asks the user for a name and an address.

        Args:
            message: The message to show the user
        """
        schema = _object(
            username={"type": "string", "description": "User's response"},
            email={"type": "string", "description": "User's email address"},
        )
        return f"User response: {_choice(await ctx.elicit('user', message, schema))}"

    @tool(read_only=True, task="never")
    async def test_streaming_elicitation(self, ctx: ToolContext) -> str:
        """Reports progress, then asks the user."""
        await ctx.progress(1, 2, "Asking")
        return (
            f"User response: {_choice(await ctx.elicit('user', 'Go on?', _object(ok={'type': 'boolean'})))}"
        )

    @tool(read_only=True, task="never")
    async def test_elicitation_sep1034_defaults(self, ctx: ToolContext) -> str:
        """Asks with a default for every primitive type."""
        answer = await ctx.elicit("defaults", "Please review the form with default values", DEFAULTS)
        return f"Elicitation completed: {_choice(answer)}"

    @tool(read_only=True, task="never")
    async def test_elicitation_sep1330_enums(self, ctx: ToolContext) -> str:
        """Asks with all five forms of an enumeration."""
        return f"Elicitation completed: {_choice(await ctx.elicit('enums', 'Please choose', ENUMS))}"

    @tool(read_only=True, task="never")
    async def test_input_required_result_elicitation(self, ctx: ToolContext) -> str:
        """Asks for a name."""
        answer = await ctx.elicit("user_name", "What is your name?", _object(name=TEXT))
        return f"Hello, {_field(answer, 'name')}!"

    @tool(read_only=True, task="never")
    async def test_input_required_result_sampling(self, ctx: ToolContext) -> str:
        """Asks the client's model a question."""
        question = _text_question("What is the capital of France?", 100)
        return _spoken(await ctx.sample("capital_question", question))

    @tool(read_only=True, task="never")
    async def test_input_required_result_list_roots(self, ctx: ToolContext) -> str:
        """Asks for the client's roots."""
        answer = await ctx.roots("client_roots")
        return f"Roots: {', '.join(root['uri'] for root in answer['roots'])}"

    @tool(read_only=True, task="never")
    async def test_input_required_result_request_state(self, ctx: ToolContext) -> str:
        """Keeps data between two rounds."""
        return await self._confirmed(ctx)

    @tool(read_only=True, task="never")
    async def test_input_required_result_tampered_state(self, ctx: ToolContext) -> str:
        """Keeps data between two rounds, for clients that tamper with it."""
        return await self._confirmed(ctx)

    async def _confirmed(self, ctx: ToolContext) -> str:
        ctx.remember({"asked": "confirm"})
        answer = await ctx.elicit("confirm", "Please confirm", _object(ok={"type": "boolean"}))
        kept = ctx.recall() == {"asked": "confirm"}
        return f"{'state-ok' if kept else 'state-lost'}: {_choice(answer)}"

    @tool(read_only=True, task="never")
    async def test_input_required_result_multiple_inputs(self, ctx: ToolContext) -> str:
        """Asks three things at once."""
        name = {"message": "What is your name?", "requestedSchema": _object(name=TEXT)}
        answers = await ctx.ask(
            {
                "user_name": ("elicitation", name),
                "greeting": ("sampling", _text_question("Generate a greeting", 50)),
                "client_roots": ("roots", {}),
            }
        )
        roots = ", ".join(root["uri"] for root in answers["client_roots"]["roots"])
        return f"{_spoken(answers['greeting'])} {_field(answers['user_name'], 'name')} ({roots})"

    @tool(read_only=True, task="never")
    async def test_input_required_result_multi_round(self, ctx: ToolContext) -> str:
        """Asks one thing after another."""
        name = await ctx.elicit("step1", "Step 1: What is your name?", _object(name=TEXT))
        color = await ctx.elicit("step2", "Step 2: What is your favorite color?", _object(color=TEXT))
        return f"{_field(name, 'name')} likes {_field(color, 'color')}."

    @tool(read_only=True, task="never")
    async def test_input_required_result_capabilities(self, ctx: ToolContext) -> str:
        """Asks only what the client can answer."""
        form = {"message": "What is your name?", "requestedSchema": _object(name=TEXT)}
        questions: dict[str, tuple[Any, Schema]] = {
            "user_name": ("elicitation", form),
            "greeting": ("sampling", _text_question("Generate a greeting", 50)),
            "client_roots": ("roots", {}),
        }
        possible = {key: question for key, question in questions.items() if question[0] in ctx.capabilities}
        answers = await ctx.ask(possible)
        return f"Answered: {', '.join(answers) or 'nothing'}"

    # Resources, prompts, completion

    @resource("test://static-text", name="Static text", mime_type="text/plain")
    def static_text(self) -> str:
        """A text that never changes."""
        return "This is the content of the static text resource."

    @resource("test://static-binary", name="Static binary", mime_type="image/png")
    def static_binary(self) -> bytes:
        """An image of one pixel."""
        return RED_PIXEL

    @resource("test://watched-resource", name="Watched resource", mime_type="text/plain")
    def watched(self) -> str:
        """A resource to subscribe to."""
        return "Watched resource content"

    @resource("test://template/{id}/data", name="Template", mime_type="application/json")
    def template(self, id: str) -> str:
        """Data that depends on an id."""
        data = {"id": id, "templateTest": True, "data": f"Data for ID: {id}"}
        return json.dumps(data, separators=(",", ":"))

    @prompt()
    def test_simple_prompt(self) -> str:
        """A prompt without arguments."""
        return "This is a simple prompt for testing."

    @prompt()
    def test_prompt_with_arguments(self, arg1: str, arg2: str) -> str:
        """A prompt with two arguments.

        Args:
            arg1: First test argument
            arg2: Second test argument
        """
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @prompt()
    def test_prompt_with_embedded_resource(self, resourceUri: str) -> list[Message]:  # noqa: N803 - suites' name
        """A prompt with a resource.

        Args:
            resourceUri: URI of the resource to embed
        """
        text = "Embedded resource content for testing."
        embedded = EmbeddedResource(uri=resourceUri, mime_type="text/plain", text=text)
        return [Message("user", embedded), Message("user", "Please process the embedded resource above.")]

    @prompt()
    def test_prompt_with_image(self) -> list[Message]:
        """A prompt with an image."""
        return [Message("user", Image(RED_PIXEL)), Message("user", "Please analyze the image above.")]

    @prompt()
    async def test_input_required_result_prompt(self, ctx: ToolContext) -> str:
        """A prompt that asks the user first."""
        question = "What context should the prompt use?"
        answer = await ctx.elicit("user_context", question, _object(context=TEXT))
        return f"Use this context: {_field(answer, 'context')}"

    @completion
    async def complete(
        self, ref: dict[str, Any], argument: dict[str, Any], context: dict[str, Any]
    ) -> list[str]:
        """Places that begin with what was typed."""
        del ref, context
        return [word for word in ("paris", "park", "party", "test") if word.startswith(argument["value"])]

    # Tasks

    @tool(read_only=True, task="never")
    def greet(self, name: str) -> str:
        """Greets at once.

        Args:
            name: Whom to greet
        """
        return f"Hello, {name}!"

    @tool(read_only=True, task="at_once")
    async def slow_compute(self, ctx: ToolContext, seconds: float = 1.0, label: str = "") -> str:
        """Takes a while.

        Args:
            seconds: How long
            label: Comes back in the result
        """
        await ctx.accepted()
        await asyncio.sleep(seconds)
        return f"Computed {label!r} in {seconds:g} s"

    @tool(read_only=True, task="at_once")
    async def failing_job(self, ctx: ToolContext) -> str:
        """Fails after a second."""
        await ctx.accepted()
        await asyncio.sleep(1.0)
        raise ExecutionError("this job always fails")

    @tool(read_only=True, task="at_once")
    async def protocol_error_job(self, ctx: ToolContext) -> str:
        """Breaks in a way that is no answer of a function."""
        await ctx.accepted()
        raise RuntimeError("deliberate")

    @tool(read_only=True, task="at_once")
    async def confirm_delete(self, filename: str, ctx: ToolContext) -> str:
        """Asks before it pretends to delete.

        Args:
            filename: What to delete
        """
        answer = await ctx.elicit("confirm", f"Delete {filename}?", _object(confirm={"type": "boolean"}))
        confirmed = answer["action"] == "accept" and (answer.get("content") or {}).get("confirm")
        return f"{'Deleted' if confirmed else 'Kept'} {filename}"

    @tool(read_only=True, task="at_once")
    async def multi_input(self, ctx: ToolContext) -> str:
        """Asks two things at once."""
        first = {"message": "First value?", "requestedSchema": _object(value=TEXT)}
        second = {"message": "Second value?", "requestedSchema": _object(value=TEXT)}
        answers = await ctx.ask({"first": ("elicitation", first), "second": ("elicitation", second)})
        return " ".join(_field(answers[key], "value") for key in ("first", "second"))

    @tool(read_only=True, task="at_once")
    async def test_tool_with_task(self, ctx: ToolContext) -> str:
        """Asks for a name, then takes a while."""
        answer = await ctx.elicit("user_name", "What is your name?", _object(name=TEXT))
        await ctx.accepted()
        await asyncio.sleep(0.2)
        return f"Task done for {_field(answer, 'name')}"
