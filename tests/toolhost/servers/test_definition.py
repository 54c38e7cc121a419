"""How a tool server is defined: tool-servers.md section 2."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from inline_snapshot import snapshot

from toolhost.tools import Content, Image, Text, ToolContext, ToolServer, tool
from toolhost.tools.local import LocalServer
from toolhost_sdk.errors import UsageError

pytestmark = pytest.mark.anyio


class Greeter(ToolServer):
    constructed = 0

    def __init__(self, greeting: str = "Hello") -> None:
        type(self).constructed += 1
        self.greeting = greeting

    @tool(read_only=True)
    def greet(self, who: str, times: int = 1) -> str:
        """Return a greeting for somebody.

        Args:
            who: the name to greet,
                as it is written
            times: how often
        """
        return " ".join([f"{self.greeting}, {who}!"] * times)

    @tool
    async def count(self, text: str) -> dict[str, int]:
        """Count what is in a text."""
        return {"characters": len(text), "words": len(text.split())}


async def test_docstrings_become_descriptions_and_calls_answer(tmp_path: Path) -> None:
    """DEF-A1, DEF-R5, DEF-R6"""
    async with LocalServer(Greeter.bind(greeting="Hi"), name="greeter", state_dir=tmp_path) as server:
        outcome = await server.call("greet", {"who": "Ada", "times": 2})
        definition = server.definition.tools[0]

    assert outcome == {"content": [{"type": "text", "text": "Hi, Ada! Hi, Ada!"}]}
    assert definition.model_dump(exclude_defaults=True) == snapshot(
        {
            "name": "greet",
            "description": "Return a greeting for somebody.",
            "input_schema": {
                "additionalProperties": False,
                "properties": {
                    "who": {"description": "the name to greet, as it is written", "type": "string"},
                    "times": {"default": 1, "description": "how often", "type": "integer"},
                },
                "required": ["who"],
                "type": "object",
            },
            "read_only": True,
        }
    )


async def test_a_text_function_returns_text_alone_and_a_dict_function_structure_too(tmp_path: Path) -> None:
    """DEF-A6, DEF-R6, CLIENT-R1"""
    async with LocalServer(Greeter.bind(), name="greeter", state_dir=tmp_path) as server:
        text = await server.call("greet", {"who": "Ada"})
        data = await server.call("count", {"text": "a b"})
        schemas = [definition.output_schema for definition in server.definition.tools]

    assert "structured" not in text
    assert data == snapshot(
        {
            "content": [{"type": "text", "text": '{"characters":3,"words":2}'}],
            "structured": {"characters": 3, "words": 2},
        }
    )
    assert schemas == [None, {"additionalProperties": {"type": "integer"}, "type": "object"}]


def test_binding_a_server_constructs_nothing_and_survives_a_pickle() -> None:
    """DEF-R1, LIFE-A9"""
    before = Greeter.constructed

    spec = pickle.loads(pickle.dumps(Greeter.bind(greeting="secret-greeting")))

    assert Greeter.constructed == before
    assert spec == Greeter.bind(greeting="secret-greeting")
    assert "secret-greeting" not in repr(spec)


@pytest.mark.parametrize("arguments", [{"greating": "x"}, {"greeting": "x", "more": 1}])
def test_arguments_that_the_constructor_does_not_take_are_refused_at_bind(arguments: dict[str, Any]) -> None:
    """DEF-R1"""
    with pytest.raises(UsageError) as caught:
        Greeter.bind(**arguments)

    assert caught.value.code == "usage"
    assert "'Greeter'" in caught.value.message


class Base(ToolServer):
    def __init__(self, log: list[str]) -> None:
        log.append("base")

    @tool
    def first(self) -> str:
        """First."""
        return "first of base"

    @tool
    def second(self) -> str:
        """Second."""
        return "second"


class Derived(Base):
    def __init__(self, log: list[str]) -> None:
        super().__init__(log)
        log.append("derived")

    @tool
    def third(self) -> str:
        """Third."""
        return "third"

    @tool
    def first(self) -> str:
        """First, again."""
        return "first of derived"


async def test_a_two_level_subclass_runs_both_initialisers_once_and_keeps_declaration_order(
    tmp_path: Path,
) -> None:
    """DEF-A3, DEF-R4"""
    log: list[str] = []
    async with LocalServer(Derived.bind(log), name="two", state_dir=tmp_path) as server:
        names = [definition.name for definition in server.definition.tools]
        outcome = await server.call("first")

    assert log == ["base", "derived"]
    assert names == ["first", "second", "third"]
    assert outcome["content"][0]["text"] == "first of derived"


@pytest.mark.parametrize("name", ["a b", "x/y", "", "-a", "ä", "a" * 65])
def test_a_function_name_that_clients_could_not_carry_is_refused_at_bind(name: str) -> None:
    """DEF-R3, DEF-A4"""

    class Bad(ToolServer):
        @tool(name=name or "?")
        def fn(self) -> str:
            """F."""
            return ""

    with pytest.raises(UsageError):
        Bad.bind()


@pytest.mark.parametrize("name", ["a b", "x/y", "", "a.b", "_a", "a" * 65])
def test_a_server_name_that_no_url_could_carry_is_refused(name: str, tmp_path: Path) -> None:
    """DEF-R3, DEF-A4"""
    with pytest.raises(UsageError) as caught:
        LocalServer(Greeter.bind(), name=name, state_dir=tmp_path)

    assert repr(name) in caught.value.message


def test_two_functions_of_one_name_are_refused() -> None:
    """DEF-R3"""

    class Twice(ToolServer):
        def setup(self) -> None:
            self.add_tool(len_of, name="same")
            self.add_tool(len_of, name="same")

    with pytest.raises(UsageError, match="'same'"):
        Twice.bind().definition()


def len_of(text: str) -> int:
    """Length of a text."""
    return len(text)


async def test_expose_offers_a_subset_in_declaration_order() -> None:
    """DEF-A5, DEF-R4"""
    parts = Greeter.bind().build().only(["count", "greet"])

    assert list(parts.tools) == ["greet", "count"]


@pytest.mark.parametrize("expose", [[], ["nope"], ["greet", "nope"]])
def test_an_unknown_or_empty_selection_lists_the_valid_names(expose: list[str]) -> None:
    """DEF-R4"""
    with pytest.raises(UsageError) as caught:
        Greeter.bind().build().only(expose)

    assert "greet, count" in caught.value.message


def test_prefix_restores_the_seeds_naming() -> None:
    """DEF-R2"""
    parts = Greeter.bind().build()

    assert list(parts.tools) == ["greet", "count"]
    assert list(parts.only(None, prefix="hello").tools) == ["hello_greet", "hello_count"]


async def test_any_function_becomes_a_tool_in_one_line(tmp_path: Path) -> None:
    """DEF-R7, DEF-A2: real parameters, types and required ones; docstring and name are the function's."""

    class Adds(ToolServer):
        def setup(self) -> None:
            self.add_tool(len_of)

    async with LocalServer(Adds.bind(), name="adds", state_dir=tmp_path) as server:
        definition = server.definition.tools[0]
        outcome = await server.call("len_of", {"text": "abc"})

    assert (definition.name, definition.description) == ("len_of", "Length of a text.")
    assert definition.input_schema["properties"] == {"text": {"type": "string"}}
    assert definition.input_schema["required"] == ["text"]
    assert outcome.get("structured") == {"result": 3}


@dataclass
class Point:
    x: int
    y: int = 0


class Kinds(ToolServer):
    @tool
    def nothing(self) -> None:
        """N."""

    @tool
    def number(self) -> float:
        """N."""
        return 1.5

    @tool
    def point(self, at: Point) -> Point:
        """P."""
        return Point(at.x + 1, at.y)

    @tool
    def points(self) -> list[Point]:
        """P."""
        return [Point(1)]

    @tool
    def picture(self) -> list[Content]:
        """P."""
        return [Text("look"), Image(b"\x89PNG")]

    @tool
    def context(self, ctx: ToolContext, x: int = 1) -> str:
        """C."""
        return ctx.server_name + str(x)


@pytest.mark.parametrize(
    ("name", "arguments", "structured"),
    [
        ("nothing", {}, None),
        ("number", {}, {"result": 1.5}),
        ("point", {"at": {"x": 1}}, {"x": 2, "y": 0}),
        ("points", {}, {"result": [{"x": 1, "y": 0}]}),
        ("picture", {}, None),
        ("context", {}, None),
    ],
)
async def test_every_allowed_return_type_is_rendered(
    name: str, arguments: dict[str, Any], structured: Any, tmp_path: Path
) -> None:
    """DEF-R6"""
    async with LocalServer(Kinds.bind(), name="kinds", state_dir=tmp_path) as server:
        outcome = await server.call(name, arguments)

    assert outcome.get("structured") == structured
    assert outcome["content"]


def test_the_context_is_not_in_the_schema() -> None:
    """DEF-R5"""
    definition = next(tool for tool in Kinds.bind().definition().tools if tool.name == "context")

    assert list(definition.input_schema["properties"]) == ["x"]


def test_a_parameter_without_annotation_is_refused_at_bind_by_name() -> None:
    """DEF-R6"""

    class Bare(ToolServer):
        @tool
        def fn(self, thing) -> str:  # type: ignore[no-untyped-def]  # the case under test
            """F."""
            return ""

    with pytest.raises(UsageError, match="'thing'"):
        Bare.bind()


async def test_arguments_that_do_not_fit_are_named_in_words(tmp_path: Path) -> None:
    """EXEC-A6, EXEC-R6, TOOL-R9: wrong types and unknown names alike."""
    async with LocalServer(Greeter.bind(), name="greeter", state_dir=tmp_path) as server:
        wrong = await server.call("greet", {"who": 3, "shout": True})

    assert wrong.get("is_error") is True
    assert wrong["content"][0]["text"] == snapshot(
        "arguments of 'greet' do not fit: who: input should be a valid string; "
        "shout: extra inputs are not permitted [usage]"
    )
