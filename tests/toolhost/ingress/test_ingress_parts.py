"""Parts that are simpler to see alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolhost.ingress.dispatch import ChannelPool
from toolhost.ingress.guard import is_deeper
from toolhost.ingress.runner import _uvicorn_config
from toolhost.ingress.validation import ToolCheck, unknown_function
from toolhost.wire import Address, ToolDefinition


def depth_of(value: object) -> int:
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 0


@given(
    st.recursive(
        st.none() | st.text(alphabet='[]{}"\\ax') | st.integers(),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='[{"\\'), inner, max_size=4)
        ),
    ),
    st.integers(1, 6),
)
def test_depth_is_counted_outside_of_strings(value: object, limit: int) -> None:
    """MCP-9"""
    assert is_deeper(json.dumps(value).encode(), limit) == (depth_of(value) > limit)


def test_uvicorn_runs_on_h11_without_websockets_access_log_or_trusted_proxies() -> None:
    """SDK-R3, WEB-6, PERF-R2"""
    config = _uvicorn_config(lambda scope: None)

    assert (config.http, config.ws, config.access_log, config.proxy_headers) == ("h11", "none", False, False)


def check(schema: dict[str, object]) -> ToolCheck:
    return ToolCheck(ToolDefinition(name="f", description="", input_schema=schema))


@pytest.mark.parametrize(
    ("schema", "arguments", "words"),
    [
        (
            {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}},
            {"a": [1, "x"]},
            "argument 'a[1]' of 'f'",
        ),
        ({"$ref": "http://example.invalid/schema"}, {}, "cannot be applied"),
        ({"type": "objekt"}, {}, "input schema that is none"),
        (
            {"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}},
            {"a": 1},
            "needs argument 'b'",
        ),
    ],
)
def test_a_complaint_names_the_argument(
    schema: dict[str, object], arguments: dict[str, object], words: str
) -> None:
    """SDK-R6"""
    assert words in (check(schema).complaint(arguments) or "")


def test_valid_arguments_are_no_complaint_under_all_of_2020_12() -> None:
    """SDK-R6"""
    schema = {
        "type": "object",
        "$defs": {"name": {"type": "string"}},
        "properties": {"n": {"$ref": "#/$defs/name"}},
        "additionalProperties": False,
    }

    assert check(schema).complaint({"n": "x"}) is None
    assert check(schema).complaint({"n": 1}) == "argument 'n' of 'f': 1 is not of type 'string'"


def test_unknown_functions_are_told_the_nearest_or_the_first_names() -> None:
    assert unknown_function("s", "x", []) == "server 's' has no function 'x': it has none"
    assert unknown_function("s", "zzz", ["a", "b"]) == "server 's' has no function 'zzz': it has 'a', 'b'"


@pytest.mark.anyio
async def test_channels_are_shared_by_address_until_nobody_is_there(anyio_backend: str) -> None:
    """NET-R1"""
    one, two = Address(node_id="a", unix="/nowhere/1"), Address(node_id="b", unix="/nowhere/2")
    pool = ChannelPool()
    kept, dropped = pool.get(one), pool.get(two)

    await pool.keep({one})

    assert pool.get(one) is kept
    assert pool.get(two) is not dropped
    await pool.aclose()
