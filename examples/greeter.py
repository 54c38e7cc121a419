"""A tool server as a user writes one: a class, functions with types and docstrings, nothing else.

toolhost spawn examples.greeter:Greeter --arg greeting=Hej
toolhost call greeter greet --arg who=Ada
"""

from __future__ import annotations

from dataclasses import dataclass

from toolhost import ToolServer, tool


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How long a text is."""

    words: int
    characters: int


class Greeter(ToolServer):
    """Greets, and counts words.

    Args:
        greeting: bound by whoever starts the server; a model never sees it.
    """

    version = "1"
    instructions = "Call greet to greet somebody by name."

    def __init__(self, greeting: str = "Hello") -> None:
        self._greeting = greeting

    @tool(read_only=True)
    def greet(self, who: str) -> str:
        """Return a greeting.

        Args:
            who: the name to greet.
        """
        return f"{self._greeting}, {who}!"

    @tool(read_only=True)
    def count(self, text: str) -> Count:
        """Count words and characters. The result is data, so it comes back structured as well.

        Args:
            text: any text.
        """
        return Count(words=len(text.split()), characters=len(text))
