"""The route table as values and moves."""

from __future__ import annotations

import asyncio

import pytest

from toolhost.hosting.routes import MOVES, RouteRegistry
from toolhost.wire import Address, ServerDefinition
from toolhost_sdk.errors import ConflictError, NotFoundError

pytestmark = pytest.mark.anyio
ADDRESS = Address(node_id="n1", unix="/run/h.sock")


async def test_a_name_is_routed_once() -> None:
    """DEF-R3, NET-R1"""
    routes = RouteRegistry()
    routes.add("bash", anonymous=False)

    with pytest.raises(ConflictError) as caught:
        routes.add("bash", anonymous=False)

    assert "'bash'" in caught.value.message
    assert "starting" in caught.value.message


@pytest.mark.parametrize(
    "state", [state for state in MOVES if state not in MOVES["starting"] and state != "starting"]
)
async def test_an_illegal_move_raises_and_changes_nothing(state: str) -> None:
    """LIFE-R1: states are a transition table."""
    routes = RouteRegistry()
    before = routes.add("bash", anonymous=False)
    revision = routes.revision

    with pytest.raises(ConflictError):
        routes.move("bash", state)  # type: ignore[arg-type]  # states come as strings here

    assert routes.get("bash") == before
    assert routes.revision == revision


async def test_each_move_to_ready_is_a_new_generation() -> None:
    """LIFE-R4"""
    routes = RouteRegistry()
    routes.add("bash", anonymous=False)

    first = routes.move("bash", "ready", address=ADDRESS, definition=ServerDefinition(version="1"))
    away = routes.move("bash", "restarting")
    second = routes.move("bash", "ready", address=ADDRESS)

    assert (first.generation, away.address, second.generation) == (1, None, 2)
    assert second.definition == ServerDefinition(version="1")


async def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    """LIFE-R2"""
    routes = RouteRegistry()
    routes.add("jobs", anonymous=False)

    with pytest.raises(NotFoundError, match="running: jobs"):
        routes.get("bash")


async def test_a_stopped_name_can_be_used_again_at_once() -> None:
    """LIFE-R5"""
    routes = RouteRegistry()
    routes.add("bash", anonymous=False)
    routes.move("bash", "stopped")

    routes.add("bash", anonymous=False)

    assert routes.get("bash").state == "starting"


async def test_a_slow_watcher_sees_the_newest_table() -> None:
    """NET-R1"""
    routes = RouteRegistry()
    tables = routes.watch()
    first = await anext(tables)
    for name in ("a", "b", "c"):
        routes.add(name, anonymous=False)

    async with asyncio.timeout(1):
        newest = await anext(tables)

    assert first.routes == []
    assert [route.name for route in newest.routes] == ["a", "b", "c"]
