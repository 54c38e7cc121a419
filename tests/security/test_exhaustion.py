"""One client's excess ends at a bound, with an answer, while the others are served."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest
from tests.support import raw
from tests.support.clients import ERAS, call_text, connected
from tests.support.commands import processes_with
from tests.support.waiting import eventually

from toolhost import ToolContext, ToolHost, ToolServer, tool
from toolhost.tools.bash import BashTool

pytestmark = [pytest.mark.anyio, pytest.mark.ray]

LINE = 64 << 20


class Meeting(ToolServer):
    """Calls that end when they are told to."""

    max_concurrent = 2
    max_queued = 3

    @tool
    async def wait(self, path: str) -> str:
        """Wait until *path* exists."""
        while not Path(path).exists():  # noqa: ASYNC110  a file tells nobody
            await anyio.sleep(0.01)
        return path


class Echo(ToolServer):
    max_concurrent = 30

    @tool
    async def echo(self, text: str, seconds: float, context: ToolContext) -> str:
        """Return the text after some time."""
        await anyio.sleep(seconds)
        return text


@contextmanager
def health_watched(host: ToolHost) -> Iterator[list[float]]:
    """Seconds that `/healthz` took, again and again, while the block ran."""
    took: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            started = time.monotonic()
            assert raw.request(host.url, "GET", "/healthz").status == 200
            took.append(time.monotonic() - started)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield took
    finally:
        done.set()
        watcher.join()


@pytest.fixture(scope="module", autouse=True)
def shell(host: ToolHost) -> Iterator[str]:
    host.spawn(BashTool.bind(timeout=30, persistent=False), name="busy")
    yield "busy"
    host.stop("busy", grace=0.5)


def run(host: ToolHost, command: str, **more: object) -> str:
    arguments = {"command": command, "wait_seconds": 30, **more}
    return raw.text_of(raw.call(host.url, "busy", "run_command", arguments, token=host.operator_token))


def test_children_that_flee_in_numbers_are_all_gone_when_the_call_ends(host: ToolHost) -> None:
    """RES-1, TREE-R4, TREE-R5, BASH-R2, ZERO-1: detached, twice forked, deaf to SIGTERM."""
    mark = f"77{secrets.randbelow(10**6):06d}"
    flee = (
        f"for i in $(seq 60); do (setsid sh -c 'trap \"\" TERM HUP; setsid sleep {mark} & sleep {mark}' &) ; done; "
        f"until [ $(pgrep -cf 'sleep {mark}') -ge 60 ]; do sleep 0.05; done; echo spread"
    )

    ended = run(host, flee)
    left = processes_with(f"sleep\0{mark}")
    timed_out = run(host, f"{flee}; sleep {mark}", timeout=3)

    assert ended.startswith("spread\n"), ended
    assert "ended with the command" in ended
    assert left == []
    assert "timed out after 3 s" in timed_out
    assert processes_with(f"sleep\0{mark}") == []


def test_a_fork_bomb_is_ended_by_its_timeout_while_the_host_answers(host: ToolHost) -> None:
    """RES-1, BASH-R2, ZERO-1: one that renews itself as fast as it can, within a bound of its own making."""
    mark = f"bomb{secrets.token_hex(6)}"
    # Always 40 at a time: each ends after starting its successor, so that no list of them is ever complete.
    bomb = f"f() {{ : {mark}; sleep 0.01; f & }}; for i in $(seq 40); do f & done; exec -a {mark} sleep 100"

    with health_watched(host) as took:
        said = run(host, bomb, timeout=2)

    assert "timed out after 2 s" in said, said
    assert eventually(lambda: not processes_with(mark), within=3, what="the end of the bomb")
    assert statistics.quantiles(took, n=20)[-1] < 1.0


def test_one_line_of_64_mib_is_cut_for_the_model_and_holds_up_nobody(host: ToolHost) -> None:
    """RES-4, BASH-A4, BASH-R3, LOG-R6: the answer is small, the log is whole, health keeps answering."""
    ingress = resident(host)

    with health_watched(host) as took:
        said = run(host, f"head -c {LINE} /dev/zero | tr '\\0' x", wait_seconds=45)
    job = said.rstrip("]").rsplit(" ", 1)[-1]
    tail = {"job_id": job, "offset": LINE - 10, "max_bytes": 100}
    end = raw.text_of(raw.call(host.url, "busy", "run_output", tail, token=host.operator_token))

    assert len(said) <= 30_000
    assert "64 MiB out" in said.splitlines()[-1]
    assert end.startswith("x" * 10 + "\n")
    assert f"bytes {LINE - 10}-{LINE} of {LINE} | end]" in end
    assert statistics.quantiles(took, n=20)[-1] < 1.0
    assert resident(host) - ingress < 32 << 20


def resident(host: ToolHost) -> int:
    """Bytes of memory that the ingress has."""
    pid = json.loads((host.home / "host.json").read_text())["ingress_pid"]
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


async def test_thirty_clients_with_equal_ids_get_their_own_answers(host: ToolHost) -> None:
    """MCP-3, EXEC-A1: in both eras at once, each a different wait, so that answers overtake each other."""
    host.spawn(Echo.bind(), name="equal")
    token = host.mint_token(scopes=["equal"])

    async def one(number: int, era: str) -> tuple[int, list[str]]:
        async with connected(f"{host.url}/equal/mcp", token, mode=era) as client:
            texts = []
            for turn in range(3):  # each client counts its ids from the same number on
                wait = ((number * 7 + turn * 11) % 10) / 50
                texts.append(await call_text(client, "echo", {"text": f"{number}/{turn}", "seconds": wait}))
        return number, texts

    try:
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*(one(number, ERAS[number % 2]) for number in range(30)))
    finally:
        await asyncio.to_thread(host.stop, "equal", grace=0.5)

    assert dict(answers) == {number: [f"{number}/{turn}" for turn in range(3)] for number in range(30)}


async def test_calls_beyond_the_queue_are_refused_at_once_and_the_others_end(
    host: ToolHost, tmp_path: Path
) -> None:
    """EXEC-A5, EXEC-R2, RES-7: two run, three wait, the rest is told to come back."""
    host.spawn(Meeting.bind(), name="queue")
    door = tmp_path / "open"

    def call(number: int) -> raw.Raw:
        return raw.call(host.url, "queue", "wait", {"path": str(door)}, token=host.operator_token)

    try:
        calls = [asyncio.create_task(asyncio.to_thread(call, number)) for number in range(8)]
        async with asyncio.timeout(20):
            for finished in asyncio.as_completed(calls):
                await finished
                early = [task for task in calls if task.done()]
                if len(early) == 3:
                    break
            door.touch()
            answers = await asyncio.gather(*calls)
    finally:
        await asyncio.to_thread(host.stop, "queue", grace=0.5)
    refused = [answer.json()["result"] for answer in answers if answer.json()["result"].get("isError")]

    assert len(early) == len(refused) == 3
    for result in refused:
        error = result["_meta"]["toolhost/error"]
        assert (error["code"], error["retryable"]) == ("capacity", True)
    assert sum(raw.text_of(answer) == str(door) for answer in answers) == 5


def test_connections_that_say_nothing_or_little_hold_up_nobody(host: ToolHost) -> None:
    """RES-7, MCP-9: half a head, half a body, an answer that is never read, a flood of open connections."""
    message, headers = raw.call_message("run_command", {"command": "head -c 20000 /dev/zero | tr '\\0' y"})
    body = json.dumps(message).encode()
    fields = [
        ("host", urlsplit(host.url).netloc),
        ("authorization", f"Bearer {host.operator_token}"),
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
        *headers.items(),
    ]
    post = raw.head("POST", "/busy/mcp", [*fields, ("content-length", str(len(body)))])
    with ExitStack() as open_connections:

        def opened(data: bytes) -> socket.socket:
            sock = open_connections.enter_context(raw.connection(host.url))
            sock.sendall(data)
            return sock

        for _ in range(100):
            opened(b"")
        slow = opened(b"POST /busy/mcp HT")
        opened(post)
        opened(post + body[:-1])
        for _ in range(10):
            opened(post + body)  # whose answers nobody takes
        with health_watched(host) as took:
            for piece in (b"TP/1.1\r\n", b"x", b"-a: b\r\n", b"x-b"):
                slow.sendall(piece)
                said = run(host, "echo served")
                assert said.startswith("served\n")

    assert max(took) < 2.0
    assert run(host, "echo after").startswith("after\n")
