"""Each process of a host is killed while a job prints a numbered stream: seeded, at random points.

What must hold: the URL stays, no byte is lost or doubled, no status is invented, no process is left.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from tests.support.clients import connected
from tests.support.logs import piece
from tests.support.serving import Serving, labelled, serving
from tests.support.waiting import alive, eventually

from toolhost.hosting.control_client import ControlClient

pytestmark = [pytest.mark.anyio, pytest.mark.ray, pytest.mark.faults]

LINES = 60_000
# About three seconds of output; the detached sleep must not survive the job.
STREAM = f"setsid sleep 987 & for i in $(seq 0 1000 {LINES - 1000}); do seq $i $((i+999)); sleep 0.05; done"
EXPECTED = "".join(f"{n}\n" for n in range(LINES)).encode()


UNKNOWN = {"exit_code": None, "signal": None}


class Reader:
    """Reads a job's log as a client does: by offset, over a new connection whenever the old one breaks."""

    def __init__(self, host: Serving, job: str) -> None:
        self.host = host
        self.job = job
        self.data = b""
        self.done = False

    async def read(self, until: int | None = None) -> None:
        """Read to the end of the job, or until *until* bytes are here."""
        async with asyncio.timeout(60):
            while not self._enough(until):
                try:
                    await self._read_on_one_connection(until)
                except* (OSError, httpx2.HTTPError, MCPError):
                    await asyncio.sleep(0.1)

    async def _read_on_one_connection(self, until: int | None) -> None:
        async with jobs_client(self.host) as client:
            while not self._enough(until):
                data, self.done = await piece(client, self.job, len(self.data))
                self.data += data
                if not data:
                    await asyncio.sleep(0.02)

    def _enough(self, until: int | None) -> bool:
        return self.done or (until is not None and len(self.data) >= until)


@asynccontextmanager
async def jobs_client(host: Serving) -> AsyncIterator[Client]:
    async with connected(f"{host.url}/jobs/mcp", host.token, mode="2026-07-28") as client:
        yield client


async def start_stream(host: Serving) -> Reader:
    async with jobs_client(host) as client:
        status = (await client.call_tool("run", {"command": STREAM, "wait_seconds": 0})).structured_content
    assert status is not None
    return Reader(host, status["job_id"])


async def final_status(host: Serving, job: str) -> dict[str, Any]:
    async with jobs_client(host) as client:
        result = await client.call_tool("run_status", {"job_id": job, "wait_seconds": 30})
    assert result.structured_content is not None
    return result.structured_content


def server_pid(host: Serving, name: str) -> int:
    """Of the tool host that runs *name*, asked through the control socket."""

    async def ask() -> int:
        client = ControlClient(host.home)
        try:
            pid = (await client.server(name)).pid
            assert pid is not None
            return pid
        finally:
            await client.aclose()

    return asyncio.run(ask())


@pytest.fixture
def point(request: pytest.FixtureRequest) -> int:
    """How many bytes a reader has when the victim is killed."""
    return random.Random(request.param).randrange(1_000, len(EXPECTED) * 2 // 3)


@pytest.mark.parametrize("point", [1, 2], indirect=True)
@pytest.mark.parametrize("victim", ["tool host", "ingress"])
async def test_a_job_survives_the_death_of_what_stands_between_it_and_its_reader(
    victim: str, point: int, tmp_path: Path
) -> None:
    """JOB-A6, JOB-A7, JOB-R5, SURV-R1, SURV-R3, ZERO-3, LIFE-R4: same URL, every byte once, a true status."""
    with serving(tmp_path / "home", "--port", "0", work_dir=tmp_path) as host:
        reader = await start_stream(host)
        second = Reader(host, reader.job)
        await reader.read(until=point)
        pid = host.ingress_pid if victim == "ingress" else await asyncio.to_thread(server_pid, host, "jobs")
        os.kill(pid, signal.SIGKILL)
        await asyncio.gather(reader.read(), second.read())
        status = await final_status(host, reader.job)
        left = labelled(host.home.instance)

    assert reader.data == EXPECTED
    assert second.data == EXPECTED
    assert (status["state"], status["result"]["exit_code"]) == ("succeeded", 0)
    assert left == []


@pytest.mark.parametrize("point", [3, 4], indirect=True)
async def test_a_dead_warden_ends_its_jobs_and_says_that_their_end_is_unknown(
    point: int, tmp_path: Path
) -> None:
    """ZERO-1, ZERO-2, SURV-R3, JOB-R6: within 5 s nothing of the job is left, and no status is invented."""
    with serving(tmp_path / "home", "--port", "0", work_dir=tmp_path) as host:
        reader = await start_stream(host)
        await reader.read(until=point)
        os.kill(host.warden_pid, signal.SIGKILL)
        await asyncio.to_thread(
            lambda: eventually(lambda: not labelled(host.home.instance), within=5, what="empty tree")
        )
        await reader.read()
        status = await final_status(host, reader.job)
        async with jobs_client(host) as client:
            after = (
                await client.call_tool("run", {"command": "echo again", "wait_seconds": 20})
            ).structured_content

    assert EXPECTED.startswith(reader.data)
    assert len(reader.data) >= point
    assert (status["state"], status["error"]["code"], status["result"]) == ("failed", "host_lost", UNKNOWN)
    assert after is not None
    assert (after["state"], after["output"]) == ("succeeded", "again")


@pytest.mark.parametrize("point", [5, 6], indirect=True)
async def test_nothing_is_left_when_everything_but_the_sweeper_is_killed_at_once(
    point: int, tmp_path: Path
) -> None:
    """LEASE-R3, ZERO-1, ZERO-2: the next host in the same home has the same URL and the truth about the job."""
    home = tmp_path / "home"
    port = free_port()
    with serving(home, "--port", str(port), work_dir=tmp_path) as host:
        reader = await start_stream(host)
        await reader.read(until=point)
        sweeper = zygote_of(host.warden_pid)
        jobs = labelled(host.home.instance)
        ours = [pid for pid in host.processes() if pid != sweeper] + [server_pid_of(host), host.process.pid]
        random.Random(point).shuffle(ours)
        for pid in ours:
            kill(pid)
        await asyncio.to_thread(
            lambda: eventually(lambda: not labelled(host.home.instance), within=5, what="empty tree")
        )
        left = [pid for pid in jobs if alive(pid)]
    with serving(home, "--port", str(port), work_dir=tmp_path) as again:
        reader.host = again
        await reader.read()
        status = await final_status(again, reader.job)

    assert jobs
    assert left == []
    assert again.url == host.url
    assert EXPECTED.startswith(reader.data)
    assert len(reader.data) >= point
    assert (status["state"], status["error"]["code"], status["result"]) == ("failed", "host_lost", UNKNOWN)


def server_pid_of(host: Serving) -> int:
    """The tool host, whose command line (`ray::...`) does not name the home."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(server_pid, host, "jobs").result()


def zygote_of(warden: int) -> int:
    """The warden's first child, which outlives it."""
    children = Path(f"/proc/{warden}/task/{warden}/children").read_text().split()
    return min(int(pid) for pid in children)


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
