"""A function's signature as data: argument schema, result schema, docstring. One place for every face of it."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticUserError

from toolhost_sdk.errors import UsageError

_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?):\s*$")
_ARGUMENT = re.compile(r"^(\*{0,2}\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What is known of a function from its definition alone.

    Args:
        arguments: a pydantic model with one field a parameter; unknown names are refused.
        injected: name of each parameter that the platform supplies, by its annotation.
        returns: the declared result, `inspect.Signature.empty` without one.
    """

    name: str
    description: str
    arguments: type[BaseModel]
    injected: Mapping[str, type]
    returns: Any

    def input_schema(self) -> dict[str, Any]:
        """JSON Schema (2020-12) of the arguments as one object."""
        schema: dict[str, Any] = without_titles(self.arguments.model_json_schema(by_alias=True))
        schema.setdefault("properties", {})
        return schema

    def result(self) -> TypeAdapter[Any]:
        """The adapter of the declared result. Raises UsageError when no schema can be made of it."""
        try:
            return TypeAdapter(self.returns)
        except PydanticUserError as error:
            raise UsageError(
                f"no schema can be made of what {self.name!r} returns: {error.message}"
            ) from None

    def parse(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments as the function wants them. Raises UsageError naming each argument that does not fit."""
        try:
            model = self.arguments.model_validate(dict(arguments))
        except ValidationError as error:
            raise UsageError(f"arguments of {self.name!r} do not fit: {_in_words(error)}") from None
        fields = self.arguments.model_fields
        return {
            fields[name].alias or name: getattr(model, name)
            for name in fields
            if name in model.model_fields_set
        }


def inspect_function(
    fn: Callable[..., Any], *, name: str | None = None, inject: tuple[type, ...] = ()
) -> Signature:
    """Read *fn*.

    Args:
        inject: parameters annotated with one of these types are supplied by the platform.

    Raises:
        UsageError: a parameter has no annotation or one that no schema can be made of; the message names it.
    """
    label = name or fn.__name__
    signature = inspect.signature(fn)
    try:
        hints = typing.get_type_hints(fn, include_extras=True)
    except NameError as error:
        raise UsageError(f"an annotation of {label!r} cannot be resolved: {error}") from None
    summary, documented = _read_docstring(inspect.getdoc(fn) or "")
    fields: dict[str, Any] = {}
    injected: dict[str, type] = {}
    for index, parameter in enumerate(signature.parameters.values()):
        annotation = hints.get(parameter.name)
        if isinstance(annotation, type) and issubclass(annotation, inject):
            injected[parameter.name] = annotation
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise UsageError(f"parameter {str(parameter)!r} of {label!r} has no schema: name each argument")
        if annotation is None:
            raise UsageError(f"parameter {parameter.name!r} of {label!r} has no type annotation")
        default = ... if parameter.default is parameter.empty else parameter.default
        # Field names of a model may not collide with BaseModel's own, so fields are numbered and aliased.
        fields[f"p{index}"] = (
            annotation,
            # A description of None would hide one that the annotation has.
            Field(
                default, alias=parameter.name, **_only_if_known(description=documented.get(parameter.name))
            ),
        )
    returns = hints.get("return", signature.empty)
    try:
        model = create_model(
            label, __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=False), **fields
        )
        model.model_json_schema()
    except (PydanticUserError, TypeError) as error:
        raise UsageError(f"no schema can be made of the signature of {label!r}: {error}") from None
    return Signature(name=label, description=summary, arguments=model, injected=injected, returns=returns)


def _only_if_known(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _in_words(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc']) or 'arguments'}: {item['msg'].lower()}"
        for item in error.errors(include_url=False, include_input=False, include_context=False)
    )


def _read_docstring(doc: str) -> tuple[str, dict[str, str]]:
    """The text before the first section, and the descriptions of a Google-style `Args:` section."""
    summary: list[str] = []
    arguments: dict[str, str] = {}
    section = ""
    current = ""
    for line in doc.splitlines():
        if match := _SECTION.match(line):
            section, current = match[1], ""
        elif not section:
            summary.append(line)
        elif section in {"Args", "Arguments", "Parameters"} and line.strip():
            entry = _ARGUMENT.match(line.strip())
            if entry and len(line) - len(line.lstrip()) <= 4:
                current = entry[1].lstrip("*")
                arguments[current] = entry[2]
            elif current:
                arguments[current] = f"{arguments[current]} {line.strip()}".strip()
    return "\n".join(summary).strip(), arguments


def without_titles(schema: Any) -> Any:
    """pydantic titles every field by its name: noise in a prompt."""
    if isinstance(schema, list):
        return [without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    cleaned = {key: value for key, value in schema.items() if key != "title" or not isinstance(value, str)}
    for key, value in cleaned.items():
        if key in {"properties", "$defs", "patternProperties"} and isinstance(value, dict):
            cleaned[key] = {name: without_titles(item) for name, item in value.items()}
        elif key not in {"default", "const", "enum", "examples"}:
            cleaned[key] = without_titles(value)
    return cleaned
