"""How calls run: tool-servers.md section 7, without a network."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from inline_snapshot import snapshot

from toolhost.tools import ToolContext, ToolServer, completion, prompt, tool
from toolhost.tools.local import LocalServer, _DirectCall
from toolhost_sdk.errors import CapacityError, NotFoundError

pytestmark = pytest.mark.anyio


class Gate(ToolServer):
    """Calls that wait until the test lets them go."""

    def __init__(self, max_concurrent: int = 8, max_queued: int = 64) -> None:
        self.max_concurrent = max_concurrent
        self.max_queued = max_queued
        self.entered: list[int] = []
        self.open = threading.Event()
        self.loops: set[int] = set()

    @tool
    def blocking(self, n: int) -> str:
        """Block a thread."""
        self.entered.append(n)
        self.loops.add(threading.get_ident())
        self.open.wait(10)
        return str(n)

    @tool(timeout=0.05)
    async def slow(self) -> str:
        """Take longer than allowed."""
        await asyncio.sleep(30)
        return "never"

    @tool
    def fails(self) -> str:
        """Raise what nobody foresaw."""
        raise RuntimeError("the password is hunter2 in /etc/secret")

    @tool
    def refuses(self) -> str:
        """Raise one of the project's own errors."""
        raise NotFoundError("no thing is named 'x'; there are 'y' and 'z'")

    @tool
    def waits_for_cancel(self, ctx: ToolContext) -> str:
        """Notice a cancel from a thread."""
        self.entered.append(0)
        while not ctx.cancelled:
            time.sleep(0.005)
        self.open.set()
        return "noticed"


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the condition is set by another thread
            await asyncio.sleep(0.002)


def gate(server: LocalServer) -> Gate:
    found = server.server
    assert isinstance(found, Gate)
    return found


async def test_ten_slow_calls_overlap_and_the_eleventh_waits_when_the_bound_is_ten(tmp_path: Path) -> None:
    """EXEC-A1, EXEC-R2"""
    async with LocalServer(Gate.bind(max_concurrent=10), name="gate", state_dir=tmp_path) as server:
        calls = [asyncio.create_task(server.call("blocking", {"n": n})) for n in range(11)]
        await until(lambda: len(gate(server).entered) == 10)
        await asyncio.sleep(0.05)
        entered = len(gate(server).entered)
        gate(server).open.set()
        outcomes = await asyncio.gather(*calls)

    assert entered == 10
    assert [outcome["content"][0]["text"] for outcome in outcomes] == [str(n) for n in range(11)]


async def test_a_full_queue_answers_with_a_retryable_code(tmp_path: Path) -> None:
    """EXEC-A5, EXEC-R2"""
    async with LocalServer(
        Gate.bind(max_concurrent=1, max_queued=1), name="gate", state_dir=tmp_path
    ) as server:
        calls = [asyncio.create_task(server.call("blocking", {"n": n})) for n in range(2)]
        await until(lambda: gate(server).entered == [0])
        refused = await server.call("blocking", {"n": 2})
        gate(server).open.set()
        await asyncio.gather(*calls)

    assert refused.get("is_error") is True
    assert refused.get("meta") == {
        "toolhost/error": {"code": CapacityError.code, "retryable": True, "details": {"limit": 1}}
    }


async def test_the_loop_answers_while_functions_block(tmp_path: Path) -> None:
    """EXEC-R1: sync functions never run on the event loop's thread."""
    async with LocalServer(Gate.bind(), name="gate", state_dir=tmp_path) as server:
        call = asyncio.create_task(server.call("blocking", {"n": 1}))
        await until(lambda: gate(server).entered == [1])
        gate(server).open.set()
        await call
        loops = gate(server).loops

    assert threading.get_ident() not in loops


async def test_a_call_past_its_timeout_is_ended_in_words(tmp_path: Path) -> None:
    """EXEC-R3"""
    async with LocalServer(Gate.bind(), name="gate", state_dir=tmp_path) as server:
        outcome = await server.call("slow")

    assert outcome.get("is_error") is True
    assert outcome["content"][0]["text"] == snapshot(
        "function 'slow' exceeded its timeout of 0.05 s [deadline_exceeded]"
    )


async def test_only_our_own_errors_reach_the_model_with_their_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SEC-R5, SEC-A4, EXEC-A6: anything else is an incident, whose cause is in the log."""
    async with LocalServer(Gate.bind(), name="gate", state_dir=tmp_path) as server:
        own = await server.call("refuses")
        foreign = await server.call("fails")
        unknown = await server.call("nope")

    assert own["content"][0]["text"] == "no thing is named 'x'; there are 'y' and 'z' [not_found]"
    text = foreign["content"][0]["text"]
    assert "hunter2" not in text
    assert "/etc" not in text
    incident = foreign["meta"]["toolhost/error"]["details"]["incident"]
    assert incident in text
    assert incident in caplog.text
    assert "hunter2" in caplog.text
    assert unknown.get("is_error") is True


async def test_a_cancelled_call_tells_its_thread(tmp_path: Path) -> None:
    """EXEC-R4: a thread cannot be ended; it can be told."""
    async with LocalServer(Gate.bind(), name="gate", state_dir=tmp_path) as server:
        call = asyncio.create_task(server.call("waits_for_cancel"))
        await until(lambda: gate(server).entered == [0])
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

        await until(gate(server).open.is_set)


async def test_draining_refuses_new_calls_and_lets_running_ones_end(tmp_path: Path) -> None:
    """LIFE-R3"""
    async with LocalServer(Gate.bind(), name="gate", state_dir=tmp_path) as server:
        running = asyncio.create_task(server.call("blocking", {"n": 1}))
        await until(lambda: gate(server).entered == [1])
        draining = asyncio.create_task(server.drain(5))
        await asyncio.sleep(0)
        refused = await server.call("blocking", {"n": 2})
        gate(server).open.set()

        assert await draining is True
        assert (await running)["content"][0]["text"] == "1"
        assert refused["meta"]["toolhost/error"]["code"] == "tool_server_unavailable"


async def test_draining_waits_for_queued_calls_too(tmp_path: Path) -> None:
    """LIFE-R3"""
    async with LocalServer(Gate.bind(max_concurrent=1), name="gate", state_dir=tmp_path) as server:
        gate = server.server
        assert isinstance(gate, Gate)
        calls = [asyncio.ensure_future(server.call("blocking", {"n": n})) for n in range(3)]
        while not gate.entered:  # noqa: ASYNC110  a thread's list
            await asyncio.sleep(0.005)
        draining = asyncio.ensure_future(server.drain(5.0))
        await asyncio.sleep(0)
        gate.open.set()
        drained = await draining

        assert (drained, [call.done() for call in calls]) == (True, [True] * 3)
        assert sorted(gate.entered) == [0, 1, 2]


async def test_a_closed_server_runs_no_call_that_was_queued(tmp_path: Path) -> None:
    """LIFE-R2"""
    async with LocalServer(Gate.bind(max_concurrent=1), name="gate", state_dir=tmp_path) as server:
        gate = server.server
        assert isinstance(gate, Gate)
        calls = [asyncio.ensure_future(server.call("blocking", {"n": n})) for n in range(3)]
        while not gate.entered:  # noqa: ASYNC110  a thread's list
            await asyncio.sleep(0.005)
    gate.open.set()
    await asyncio.wait(calls, timeout=5)

    assert gate.entered == [0]


class Completes(ToolServer):
    def __init__(self) -> None:
        self.threads: set[int] = set()

    @prompt()
    def ask(self, colour: str) -> str:
        """Ask about a colour."""
        return colour

    @completion
    def colours(self, ref: dict[str, Any], argument: dict[str, Any], context: dict[str, Any]) -> list[str]:
        self.threads.add(threading.get_ident())
        return ["red"]


async def test_a_completion_runs_off_the_loop(tmp_path: Path) -> None:
    """EXEC-R1"""
    async with LocalServer(Completes.bind(), name="completes", state_dir=tmp_path) as server:
        call = _DirectCall("completes", {"ref": {}, "argument": {}})
        call.method = "completion/complete"
        values = await server.dispatch(call)

        assert values["values"] == ["red"]
        assert isinstance(server.server, Completes)
        assert threading.get_ident() not in server.server.threads


class Loose(ToolServer):
    @tool
    def nothing(self) -> dict[str, int]:
        """Return None in spite of the type."""
        return None  # type: ignore[return-value]  # the point of it

    @tool
    def hole(self) -> list[int]:
        """Return a None inside."""
        return [1, None]  # type: ignore[list-item]  # the point of it

    @tool
    def no_number(self) -> float:
        """Return what JSON has no word for."""
        return float("nan")

    @tool
    def maybe(self) -> int | None:
        """Return None as the type says."""
        return None


@pytest.mark.parametrize("name", ["nothing", "hole", "no_number"])
async def test_a_result_that_breaks_its_schema_is_the_servers_fault_and_never_sent(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """DEF-R6"""
    async with LocalServer(Loose.bind(), name="loose", state_dir=tmp_path) as server:
        outcome = await server.call(name)
        allowed = await server.call("maybe")

    assert "structured" not in outcome
    assert outcome["meta"]["toolhost/error"]["code"] == "internal"
    assert name in caplog.text
    assert allowed["structured"] == {"result": None}
