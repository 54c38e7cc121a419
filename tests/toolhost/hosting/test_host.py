"""Servers over their lives, in a real host: tool-servers.md sections 3, 4 and 5."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import ray
from tests.support.clients import ERAS, call_text, connected
from tests.support.waiting import alive, eventually
from tests.toolhost.hosting.servers import Dies, Echo, Hangs, Other, Refuses, Runs

from toolhost import ToolHandle, ToolHost, ToolServer, ToolSpec, tool
from toolhost_sdk.errors import ConflictError, NotFoundError, PlacementError, StartupTimeoutError, UsageError

pytestmark = [pytest.mark.anyio, pytest.mark.ray]


@contextmanager
def spawned(host: ToolHost, spec: ToolSpec, name: str, **options: object) -> Iterator[ToolHandle]:
    handle = host.spawn(spec, name=name, **options)  # type: ignore[arg-type]  # options are checked by spawn
    try:
        yield handle
    finally:
        host.stop(name, grace=0.5)


async def ask(host: ToolHost, name: str, fn: str, arguments: dict[str, object] | None = None) -> str:
    token = host.mint_token(scopes=[name])
    async with connected(f"{host.url}/{name}/mcp", token) as client:
        return await call_text(client, fn, arguments)


def status_code(host: ToolHost, url: str) -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {host.operator_token}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("era", ERAS)
async def test_a_spawned_server_answers_as_soon_as_spawn_returns(host: ToolHost, era: str) -> None:
    """LIFE-R1, NET-R1, DEF-A1"""
    with spawned(host, Echo.bind("hi "), "echo1") as handle:
        token = host.mint_token(scopes=["echo1"])
        async with connected(handle.url, token, mode=era) as client:
            tools = (await client.list_tools()).tools
            text = await call_text(client, "echo", {"text": "Ada"})

    assert [tool.name for tool in tools] == ["echo", "pid", "environment"]
    assert text == "hi Ada"


async def test_stop_makes_the_url_unknown_and_the_name_free(host: ToolHost) -> None:
    """LIFE-A1, LIFE-A2, LIFE-R5"""
    handle = host.spawn(Echo.bind("one "), name="again")
    stopped = handle.stop()
    code = status_code(host, handle.url)
    with spawned(host, Echo.bind("two "), "again"):
        text = await ask(host, "again", "echo", {"text": "x"})

    assert (stopped, code, text) == (True, 404, "two x")


def test_stopping_twice_or_the_unknown_is_safe_and_says_so(host: ToolHost) -> None:
    """LIFE-A4, LIFE-R2"""
    handle = host.spawn(Echo.bind(), name="twice")

    assert handle.stop() is True
    assert handle.stop() is False
    assert handle.state == "stopped"
    assert host.stop("never-was") is False


async def test_a_pickled_handle_works_in_another_process_and_owns_nothing(host: ToolHost) -> None:
    """LIFE-A3, LIFE-A5, LIFE-R2: dropping and collecting handles changes nothing; any copy can stop."""
    handle = host.spawn(Echo.bind("still "), name="copied")
    data = pickle.dumps(handle)
    del handle
    gc.collect()
    text = await ask(host, "copied", "echo", {"text": "here"})

    code = f"import pickle; handle = pickle.loads({data!r}); print(handle.url, handle.stop())"
    output = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert text == "still here"
    assert output.stdout.split() == [f"{host.url}/copied/mcp", "True"]


def test_a_taken_name_is_a_conflict_and_nothing_starts(host: ToolHost) -> None:
    """DEF-R3, DEF-A4"""
    with spawned(host, Echo.bind(), "taken") as handle:
        with pytest.raises(ConflictError, match="'taken'"):
            host.spawn(Echo.bind(), name="taken")

        assert handle.state == "ready"


def test_a_server_that_cannot_be_constructed_says_why_and_leaves_nothing(host: ToolHost) -> None:
    """LIFE-R1"""
    with pytest.raises(UsageError, match="cannot open the database"):
        host.spawn(Refuses.bind(), name="refuses")

    assert "refuses" not in [server.name for server in host.servers()]


def test_a_server_that_is_not_ready_in_time_leaves_nothing(host: ToolHost) -> None:
    """LIFE-R1"""
    with pytest.raises(StartupTimeoutError, match="'hangs'"):
        host.spawn(Hangs.bind(), name="hangs", isolation="process", start_timeout=1.5)

    assert "hangs" not in [server.name for server in host.servers()]


def test_an_unknown_selection_is_refused_at_spawn(host: ToolHost) -> None:
    """DEF-R4, DEF-A5"""
    with pytest.raises(UsageError, match="echo, pid, environment"):
        host.spawn(Echo.bind(), name="chosen", expose=["nope"])

    with spawned(host, Echo.bind(), "chosen", expose=["pid"]):
        assert host.status().servers[-1].tools == ["pid"]


def test_a_placement_that_no_node_can_offer_fails_at_once_with_the_nearest_offer(host: ToolHost) -> None:
    """HOST-R4"""
    with pytest.raises(PlacementError) as caught:
        host.spawn(Echo.bind(), name="placed", placement={"resources": {"chipyard": 1}, "num_cpus": 2})

    assert caught.value.details == {
        "demand": {"chipyard": 1.0, "CPU": 2.0},
        "nearest": {"chipyard": 0, "CPU": ray.cluster_resources()["CPU"]},
    }


@pytest.mark.parametrize(
    ("option", "value"), [("start_timeout", 0), ("max_restarts", -1), ("isolation", "vm"), ("replicas", 2)]
)
def test_an_option_that_spawn_does_not_have_is_named_and_nothing_starts(
    host: ToolHost, option: str, value: object
) -> None:
    """LIFE-R1"""
    with pytest.raises(UsageError, match=f"option '{option}'.*the options are expose, placement"):
        host.spawn(Echo.bind(), name="odd", **{option: value})  # type: ignore[arg-type]  # the case under test

    assert "odd" not in [server.name for server in host.servers()]


def test_runtime_env_is_no_placement(host: ToolHost) -> None:
    """RAY-8: callers cannot set it."""
    with pytest.raises(UsageError, match="'runtime_env'"):
        host.spawn(Echo.bind(), name="env", placement={"runtime_env": {"env_vars": {"A": "1"}}})


async def test_servers_of_equal_placement_share_a_process_unless_one_wants_its_own(host: ToolHost) -> None:
    """HOST-R2, HOST-A2, HOST-R5"""
    with (
        spawned(host, Echo.bind(), "shared1"),
        spawned(host, Other.bind(), "shared2"),
        spawned(host, Echo.bind(), "alone", isolation="process"),
    ):
        one, two, alone = [await ask(host, name, "pid") for name in ("shared1", "shared2", "alone")]

    assert one == two != alone


async def test_resources_place_the_server(host: ToolHost) -> None:
    """HOST-A1"""
    with spawned(host, Echo.bind(), "with_cpu", placement={"num_cpus": 1}) as handle:
        assert handle.node_id == host.status().node_id


def test_fifty_concurrent_spawns_all_succeed(host: ToolHost) -> None:
    """HOST-A4, HOST-R3 (its times are in bench/tools.py)"""
    names = [f"many{n}" for n in range(50)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda name: host.spawn(Echo.bind(), name=name), names))
        ready = {server.name for server in host.servers() if server.state == "ready"}
        list(threads.map(host.stop, names))

    assert set(names) <= ready


async def test_a_class_that_the_host_cannot_import_travels_by_value(host: ToolHost) -> None:
    """DEF-R1"""

    class Local(ToolServer):
        @tool
        def where(self) -> str:
            """Where."""
            return "by value"

    with spawned(host, Local.bind(), "local"):
        assert await ask(host, "local", "where") == "by value"


def test_a_class_that_can_travel_neither_way_fails_at_spawn_by_name(host: ToolHost) -> None:
    """DEF-R1"""
    with pytest.raises(UsageError, match="'Echo'"):
        host.spawn(Echo.bind(sys.stdout), name="unpicklable")


async def test_a_killed_host_comes_back_under_the_same_url(host: ToolHost) -> None:
    """LIFE-A7, LIFE-R4: calls in flight fail in words with a retryable code, later ones are answered."""
    with spawned(host, Runs.bind(), "killed", isolation="process") as handle:
        token = host.mint_token(scopes=["killed"])
        async with connected(handle.url, token) as client:
            pids: list[int] = []
            started = asyncio.Event()

            async def progress(_value: float, _total: float | None, message: str | None) -> None:
                pids.append(int(message or 0))
                started.set()

            call = asyncio.create_task(
                client.call_tool("sleep", {"seconds": 1000}, progress_callback=progress)
            )
            async with asyncio.timeout(10):
                await started.wait()
            os.kill(host_pid(host, "killed"), signal.SIGKILL)
            result = await call
            again = await call_text(client, "sleep", {"seconds": 0})

    assert result.is_error
    assert result.meta is not None
    assert result.meta["toolhost/error"]["code"] == "tool_server_unavailable"
    assert result.meta["toolhost/error"]["retryable"] is True
    assert again == "None"
    assert host.stop("killed") is False
    eventually(lambda: not alive(pids[0]), what="end of the interrupted call's command")


async def test_a_host_killed_while_idle_is_back_before_anyone_notices(host: ToolHost) -> None:
    """LIFE-R4, DISP-R3: a call that comes while it restarts is held, not refused."""
    with spawned(host, Echo.bind("still "), "idle", isolation="process") as handle:
        before = host_pid(host, "idle")
        os.kill(before, signal.SIGKILL)
        text = await ask(host, "idle", "echo", {"text": "here"})

    assert text == "still here"
    assert handle.state == "stopped"


def host_pid(host: ToolHost, name: str) -> int:
    """The process a server runs in, from the control plane's own record."""
    server = next(server for server in host.servers() if server.name == name)
    assert server.pid is not None
    return server.pid


async def test_a_server_that_keeps_dying_is_failed_and_can_be_spawned_again(host: ToolHost) -> None:
    """LIFE-R4"""
    with spawned(host, Dies.bind(), "dies", isolation="process", max_restarts=1) as handle:
        token = host.mint_token(scopes=["dies"])
        async with connected(handle.url, token) as client:
            for _ in range(2):
                assert (await client.call_tool("die")).is_error
                eventually(lambda: handle.state != "restarting", within=20)
            assert handle.state == "failed"
            failed = await client.call_tool("python")
    with spawned(host, Echo.bind(), "dies"):
        assert await ask(host, "dies", "echo", {"text": "new"}) == "new"

    assert failed.is_error


def test_busy_stop_ends_the_process_tree(host: ToolHost) -> None:
    """LIFE-R3, LIFE-A6"""
    handle = host.spawn(Runs.bind(), name="busy")
    token = host.mint_token(scopes=["busy"])

    async def run() -> int:
        async with connected(handle.url, token) as client:
            started: asyncio.Future[int] = asyncio.get_running_loop().create_future()

            async def progress(_value: float, _total: float | None, message: str | None) -> None:
                started.set_result(int(message or 0))

            call = asyncio.create_task(
                client.call_tool("sleep", {"seconds": 1000}, progress_callback=progress)
            )
            pid = await asyncio.wait_for(started, 10)
            assert await asyncio.to_thread(handle.stop, grace=1.0)
            await asyncio.wait([call], timeout=5)
            call.cancel()
            return pid

    pid = asyncio.run(run())

    assert not alive(pid)


def test_a_server_of_a_process_that_ended_ends_and_a_detached_one_stays(host: ToolHost) -> None:
    """LIFE-A8, LIFE-R2, LIFE-A6"""
    script = textwrap.dedent(
        """
        from tests.toolhost.hosting.servers import Echo
        from toolhost import spawn
        spawn(Echo.bind(), name="owned")
        spawn(Echo.bind(), name="free", detached=True)
        print("ready", flush=True)
        input()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TOOLHOST_HOME": str(host.home), "PYTHONPATH": os.getcwd()},
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        assert {"owned", "free"} <= {server.name for server in host.servers()}
        owner.kill()

    eventually(
        lambda: "owned" not in {server.name for server in host.servers()}, what="end of the owned server"
    )
    assert "free" in {server.name for server in host.servers()}
    assert host.stop("free") is True


def test_what_is_asked_of_an_unknown_server_names_the_known_ones(host: ToolHost) -> None:
    """LIFE-R5"""
    with spawned(host, Echo.bind(), "known"), pytest.raises(NotFoundError):
        ToolHandle("unknown", host.home, host.url).status()
    assert status_code(host, f"{host.url}/unknown/mcp") == 404


def test_a_second_host_in_the_same_home_is_refused(host: ToolHost) -> None:
    """Two hosts on one machine must not meet."""
    with pytest.raises(ConflictError, match="already runs"):
        ToolHost(host.home, port=0).start()


async def test_every_blocking_verb_has_an_awaitable_twin(host: ToolHost) -> None:
    """LIFE-R1: from async code nothing blocks the caller's loop."""
    handle = await host.spawn.aio(Echo.bind("hej "), name="twin")
    status, servers, config = await asyncio.gather(
        handle.status.aio(), host.servers.aio(), host.mcp_config.aio(["twin"])
    )
    endpoint = await handle.new_endpoint.aio(ttl=60)

    assert (status.state, "twin" in [server.name for server in servers]) == ("ready", True)
    assert config["mcpServers"]["twin"]["url"] == endpoint.url == handle.url
    assert (await handle.stop.aio(), await host.stop.aio("twin")) == (True, False)


def test_a_fork_uses_handles_and_leaves_the_host_alone(host: ToolHost) -> None:
    """LIFE-A3"""
    with spawned(host, Echo.bind(), "forked") as handle:
        assert handle.state == "ready"
        child = os.fork()
        if child == 0:
            try:
                host.close()
                with pytest.raises(UsageError, match="fork"):
                    host.servers()
                os._exit(0 if handle.state == "ready" else 1)
            finally:
                os._exit(2)

        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (handle.state, len(host.servers())) == ("ready", 1)
