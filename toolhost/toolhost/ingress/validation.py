"""Arguments are checked here, before anything is dispatched; the words are for the model that made the mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError, best_match
from referencing import Registry

from toolhost.wire import ToolDefinition

_MAX_WORDS: Final = 300
_NAMED: Final = 8


class ToolCheck:
    """One function's schema, compiled once per definition."""

    __slots__ = ("_error", "_names", "_validator", "tool")

    def __init__(self, tool: ToolDefinition) -> None:
        self.tool = tool
        self._names = list(tool.input_schema.get("properties") or ())
        self._error: str | None = None
        try:
            Draft202012Validator.check_schema(tool.input_schema)
        except SchemaError as error:
            self._error = (
                f"function {tool.name!r} has an input schema that is none: {error.message[:_MAX_WORDS]}"
            )
        except Exception as cause:  # noqa: BLE001  a schema comes from an author: none may take the others down
            self._error = (
                f"function {tool.name!r} has an input schema that cannot be read: {cause!s:.{_MAX_WORDS}}"
            )
        # The empty registry: a `$ref` to a remote document is an error, never a request of ours.
        registry: Any = Registry()
        self._validator = Draft202012Validator(tool.input_schema, registry=registry)

    def complaint(self, arguments: Mapping[str, Any]) -> str | None:
        """What is wrong with *arguments*, naming the argument; None when nothing is."""
        if self._error is not None:
            return self._error
        try:
            error = best_match(self._validator.iter_errors(arguments))
        except Exception as cause:  # noqa: BLE001  the translation boundary of a validator fed with foreign schemas
            return f"function {self.tool.name!r} has an input schema that cannot be applied: {cause!s:.{_MAX_WORDS}}"
        return None if error is None else self._words(error)

    def _words(self, error: ValidationError) -> str:
        name = self.tool.name
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
        where = f"argument {path[1:]!r} of {name!r}" if path else f"arguments of {name!r}"
        if error.validator == "required" and isinstance(error.instance, Mapping):
            missing = [key for key in error.validator_value if key not in error.instance]
            inside = f" in {path[1:]!r}" if path else ""
            return f"{name!r} needs {_listed('argument', missing)}{inside}{self._takes()}"
        if error.validator == "additionalProperties" and not path and isinstance(error.instance, Mapping):
            extra = [key for key in error.instance if key not in self._names]
            return f"{name!r} has no {_listed('argument', extra)}{self._takes()}"
        return f"{where}: {error.message[:_MAX_WORDS]}"

    def _takes(self) -> str:
        return f"; it takes {', '.join(map(repr, self._names))}" if self._names else "; it takes none"


def unknown_function(server: str, name: str, known: Iterable[str]) -> str:
    """The words for a function that is not there, or that this caller may not see: one answer."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(map(repr, near))}?"
    elif names:
        shown = ", ".join(map(repr, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")
        hint = f"it has {shown}"
    else:
        hint = "it has none"
    return f"server {server!r} has no function {name[:100]!r}: {hint}"


def _listed(noun: str, names: list[str]) -> str:
    return f"{noun if len(names) == 1 else noun + 's'} {', '.join(repr(name) for name in names[:_NAMED])}"
