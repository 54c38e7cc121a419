"""What spawn, stop, death and restore do when they meet: tool-servers.md section 3."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.toolhost.hosting.in_process import Rig, supervising
from tests.toolhost.hosting.servers import Echo
from typing_extensions import override

from toolhost import ToolServer, tool
from toolhost.tools.context import ServerEnvironment
from toolhost.tools.pickling import dump_spec
from toolhost.wire import SpawnRequest
from toolhost_sdk.errors import ConflictError, NotFoundError, StartupTimeoutError, UsageError

pytestmark = pytest.mark.anyio

GATES: dict[str, asyncio.Event] = {}
STARTED: list[str] = []


class Gated(ToolServer):
    """Starts when the test lets it."""

    def __init__(self, gate: str, answer: str = "") -> None:
        self.gate = gate
        self.answer = answer

    @override
    async def start(self, env: ServerEnvironment) -> None:
        STARTED.append(self.gate)
        await GATES.setdefault(self.gate, asyncio.Event()).wait()

    @tool
    async def which(self) -> str:
        """Which one answers."""
        return self.answer or self.gate


class BadAtClosing(Echo):
    @override
    async def aclose(self) -> None:
        raise RuntimeError("the connection was gone already")


class Waits(ToolServer):
    @tool
    async def wait(self) -> str:
        """Wait for the test."""
        gate = GATES["wait"] = asyncio.Event()
        STARTED.append("wait")
        await gate.wait()
        return ""


class Slow(ToolServer):
    def __init__(self) -> None:
        threading.Event().wait(1.0)

    @tool
    def never(self) -> str:
        """Never."""
        return ""


def request(name: str, spec: Any = None, **options: Any) -> SpawnRequest:
    return SpawnRequest(name=name, spec=dump_spec(spec or Echo.bind()), detached=False).model_copy(
        update=options
    )


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110  the state of objects, not of events
            await anyio.sleep(0.005)


async def which(rig: Rig, name: str) -> str:
    address = rig.routes.get(name).address
    assert address is not None
    host = next(iter(rig.supervisor._hosts.values()))
    outcome = await host.launched.channel.request(name, "tools/call", {"name": "which", "arguments": {}})
    return str(outcome["content"][0]["text"])


async def test_a_server_stopped_while_its_host_launches_leaves_no_host(tmp_path: Path) -> None:
    """LIFE-R5"""
    async with supervising(tmp_path / "h") as rig:
        rig.launcher.hold()
        spawning = asyncio.ensure_future(rig.supervisor.spawn(request("early")))
        await rig.launcher.launching.wait()
        stopped = await rig.supervisor.stop("early")
        rig.launcher.may_launch.set()

        with pytest.raises(ConflictError, match="stopped while it started"):
            await spawning
        assert (stopped, rig.launcher.hosts, "early" in rig.routes) == (True, {}, False)


async def test_a_name_stopped_while_it_loads_belongs_to_its_next_spawn_alone(tmp_path: Path) -> None:
    """LIFE-R5: the first spawn's end touches nothing of the second."""
    async with supervising(tmp_path / "h") as rig:
        await rig.supervisor.spawn(request("keeps_the_host"))
        first = asyncio.ensure_future(rig.supervisor.spawn(request("one", Gated.bind("first"))))
        await until(lambda: "first" in STARTED)
        await rig.supervisor.stop("one")
        GATES["second"] = asyncio.Event()
        GATES["second"].set()
        await rig.supervisor.spawn(request("one", Gated.bind("second")))
        GATES["first"].set()

        with pytest.raises(ConflictError, match="stopped while it started"):
            await first
        assert rig.supervisor.status("one").state == "ready"
        assert await which(rig, "one") == "second"


async def test_one_of_two_spawns_of_a_name_is_refused_and_the_other_stands(tmp_path: Path) -> None:
    """DEF-R3"""
    async with supervising(tmp_path / "h") as rig:
        both = [rig.supervisor.spawn(request("twins")) for _ in range(2)]
        results = await asyncio.gather(*both, return_exceptions=True)

        assert [type(result) for result in results].count(ConflictError) == 1
        assert rig.supervisor.status("twins").state == "ready"


async def test_a_start_that_times_out_leaves_no_host(tmp_path: Path) -> None:
    """LIFE-R1"""
    async with supervising(tmp_path / "h") as rig:
        with pytest.raises(StartupTimeoutError, match="'gated'"):
            await rig.supervisor.spawn(request("gated", Gated.bind("never"), start_timeout=0.2))

        assert rig.launcher.hosts == {}


async def test_a_host_that_dies_while_a_server_loads_fails_that_spawn_and_restarts_the_others(
    tmp_path: Path,
) -> None:
    """LIFE-R4"""
    async with supervising(tmp_path / "h") as rig:
        await rig.supervisor.spawn(request("old"))
        loading = asyncio.ensure_future(rig.supervisor.spawn(request("new", Gated.bind("dying"))))
        await until(lambda: "dying" in STARTED)
        await rig.launcher.die(next(iter(rig.launcher.hosts)))

        with pytest.raises(Exception, match=r"ended|closed|died"):
            await loading
        await until(lambda: rig.supervisor.status("old").state == "ready")
        assert rig.supervisor.status("old").restarts == 1
        assert [status.name for status in await rig.supervisor.statuses()] == ["old"]


async def test_a_failed_server_stays_failed_when_its_host_dies(tmp_path: Path) -> None:
    """LIFE-R4"""
    async with supervising(tmp_path / "h") as rig:
        await rig.supervisor.spawn(request("good"))
        await rig.supervisor.spawn(request("bad", max_restarts=0))
        for _ in range(2):
            await rig.launcher.die(next(iter(rig.launcher.hosts)))
            await until(lambda: rig.supervisor.status("bad").state == "failed")
            await until(lambda: rig.supervisor.status("good").state == "ready")

        assert rig.supervisor.status("bad").restarts == 0
        await rig.supervisor.spawn(request("bad"))
        assert rig.supervisor.status("bad").state == "ready"


async def test_a_server_that_fails_to_close_is_stopped_all_the_same(tmp_path: Path) -> None:
    """LIFE-R2"""
    async with supervising(tmp_path / "h") as rig:
        await rig.supervisor.spawn(request("bad", BadAtClosing.bind()))

        assert await rig.supervisor.stop("bad")
        assert (rig.launcher.hosts, await rig.supervisor.statuses()) == ({}, [])


async def test_a_detached_server_that_does_not_come_back_is_listed_and_kept(tmp_path: Path) -> None:
    """LIFE-R3"""
    async with supervising(tmp_path / "h") as rig:
        for name in ("fine", "broken"):
            spec = Gated.bind(name) if name == "broken" else Echo.bind()
            rig.specs.save(request(name, spec, detached=True, start_timeout=0.3))
        await rig.supervisor.restore()
        states = {status.name: (status.state, status.error) for status in await rig.supervisor.statuses()}

        assert states["fine"] == ("ready", None)
        assert states["broken"][0] == "failed"
        assert "0.3 s" in (states["broken"][1] or "")
        assert {saved.name for saved in rig.specs.saved()} == {"fine", "broken"}
        await rig.supervisor.stop("broken")
        assert {saved.name for saved in rig.specs.saved()} == {"fine"}


async def test_a_server_stopped_before_its_spawn_returns_does_not_come_back(tmp_path: Path) -> None:
    """LIFE-R3"""
    async with supervising(tmp_path / "h") as rig:
        GATES["brief"] = asyncio.Event()
        spawning = asyncio.ensure_future(
            rig.supervisor.spawn(request("brief", Gated.bind("brief"), detached=True))
        )
        await until(lambda: "brief" in STARTED)
        await rig.supervisor.stop("brief")
        GATES["brief"].set()

        with pytest.raises(ConflictError):
            await spawning
        assert rig.specs.saved() == []


async def test_a_slow_constructor_holds_up_no_other_server_of_its_host(tmp_path: Path) -> None:
    """EXEC-R1"""
    async with supervising(tmp_path / "h") as rig:
        await rig.supervisor.spawn(request("quick"))
        slow = asyncio.ensure_future(rig.supervisor.spawn(request("slow", Slow.bind())))
        loop, longest = asyncio.get_running_loop(), 0.0
        while not slow.done():
            before = loop.time()
            await anyio.sleep(0.01)
            longest = max(longest, loop.time() - before)

        assert longest < 0.5


async def test_closing_ends_a_host_that_is_still_launching(tmp_path: Path) -> None:
    """LIFE-A6"""
    async with supervising(tmp_path / "h") as rig:
        rig.launcher.hold()
        spawning = asyncio.ensure_future(rig.supervisor.spawn(request("late")))
        await rig.launcher.launching.wait()
        await rig.supervisor.aclose()
        rig.launcher.may_launch.set()

        with pytest.raises(Exception, match=r"shutting down|stopped"):
            await spawning
        assert rig.launcher.hosts == {}


async def test_a_server_that_refuses_to_start_says_why(tmp_path: Path) -> None:
    """LIFE-R1"""
    async with supervising(tmp_path / "h") as rig:
        with pytest.raises(UsageError, match="nope"):
            await rig.supervisor.spawn(request("chosen", expose=["nope"]))
        with pytest.raises(NotFoundError):
            rig.supervisor.status("chosen")
        assert rig.launcher.hosts == {}


async def test_statuses_count_the_calls_that_run(tmp_path: Path) -> None:
    """LIFE-R5"""
    async with supervising(tmp_path / "h") as rig:
        await rig.supervisor.spawn(request("busy", Waits.bind()))
        host = next(iter(rig.supervisor._hosts.values()))
        payload = {"name": "wait", "arguments": {}}
        call = asyncio.ensure_future(host.launched.channel.request("busy", "tools/call", payload))
        await until(lambda: STARTED[-1] == "wait")
        counted = [status.running_calls for status in await rig.supervisor.statuses()]
        GATES["wait"].set()
        await call

        assert counted == [1]
        assert [status.running_calls for status in await rig.supervisor.statuses()] == [0]
