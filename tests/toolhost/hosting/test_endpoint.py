"""Addresses of servers: tool-servers.md section 5."""

from __future__ import annotations

import pickle

import pytest

from toolhost import ToolEndpoint, resolve_tool_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://10.0.0.1:8000/bash/mcp?x=1", "http://127.0.0.9:8000/bash/mcp?x=1"),
        ("http://10.0.0.1/bash/mcp", "http://127.0.0.9/bash/mcp"),
        ("http://10.0.0.11:8000/bash/mcp", "http://10.0.0.11:8000/bash/mcp"),
        ("http://other/10.0.0.1/mcp", "http://other/10.0.0.1/mcp"),
        ("http://127.0.0.9:8000/bash/mcp", "http://127.0.0.9:8000/bash/mcp"),
    ],
)
def test_only_the_exact_host_is_replaced_and_twice_is_once(url: str, expected: str) -> None:
    """NET-R2, NET-A3"""
    once = resolve_tool_url(url, advertised="10.0.0.1", relay="127.0.0.9")

    assert once == expected
    assert resolve_tool_url(once, advertised="10.0.0.1", relay="127.0.0.9") == expected


def test_a_relay_by_ipv6_is_bracketed() -> None:
    """NET-R2"""
    assert resolve_tool_url("http://head:1/x", advertised="HEAD", relay="fd00::1") == "http://[fd00::1]:1/x"


def test_without_names_the_url_stays() -> None:
    """NET-R2"""
    assert resolve_tool_url("http://a/b", advertised=None, relay=None) == "http://a/b"


def test_no_adapter_can_forget_to_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    """NET-R2: it happens in the endpoint itself, again on the node it was sent to."""
    endpoint = ToolEndpoint("bash", "http://head:8000/bash/mcp")
    monkeypatch.setenv("TOOLHOST_ADVERTISE_HOST", "head")
    monkeypatch.setenv("TOOLHOST_RELAY_HOST", "127.0.0.1")

    assert ToolEndpoint("bash", "http://head:8000/bash/mcp").url == "http://127.0.0.1:8000/bash/mcp"
    assert pickle.loads(pickle.dumps(endpoint)).url == "http://127.0.0.1:8000/bash/mcp"


def test_the_token_is_in_no_repr() -> None:
    """SEC-R1"""
    endpoint = ToolEndpoint("bash", "http://h/bash/mcp", {"Authorization": "Bearer th_secret"})

    assert "th_secret" not in repr(endpoint)
    assert "th_secret" not in str(endpoint)
