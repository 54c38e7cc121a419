"""Two hosts on one machine do not meet."""

from __future__ import annotations

import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from tests.support import raw
from tests.support.serving import Serving, labelled, serving
from tests.support.waiting import eventually

from toolhost import ToolHost
from toolhost.tools.jobs import AsyncBashTool

pytestmark = pytest.mark.ray


@contextmanager
def occupied(ports: range) -> Iterator[int]:
    """How many of *ports* nobody can have now."""
    with ExitStack() as stack:
        taken = 0
        for port in ports:
            with suppress(OSError):  # somebody else has it already, which is as good
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            taken += 1
        yield taken


def tool_names(host: Serving, server: str, token: str) -> int:
    return raw.call(host.url, server, "run_jobs", {}, token=token).status


def test_a_second_host_has_its_own_tokens_servers_and_jobs_and_its_end_leaves_the_first(
    host: ToolHost,
) -> None:
    """HOST-R1, HOST-A5, SEC-A1, MCP-4, ZERO-1, ZERO-5, LEASE-R2: started while the ports 8000 to 8099 are taken."""
    mark = f"{5000 + secrets.randbelow(900)}.{secrets.randbelow(10**6):06d}"
    host.spawn(AsyncBashTool.bind(), name="jobs")
    sleep = {"command": f"sleep {mark}", "wait_seconds": 0}
    mine = raw.call(host.url, "jobs", "run", sleep, token=host.operator_token)
    try:
        with tempfile.TemporaryDirectory(prefix="th-2-") as base, occupied(range(8000, 8100)) as taken:
            with serving(Path(base) / "h", "--port", "0", work_dir=Path(base)) as other:
                theirs = raw.call(other.url, "jobs", "run", sleep, token=other.token)
                operator = other.home.operator_token_file.read_text().strip()
                foreign = [
                    raw.call(other.url, "jobs", "run_jobs", {}, token=host.operator_token).status,
                    raw.call(host.url, "jobs", "run_jobs", {}, token=other.token).status,
                    raw.request(other.url, "GET", "/api/v1/servers", token=host.operator_token).status,
                    raw.request(host.url, "POST", "/api/v1/shutdown", token=operator, body=b"{}").status,
                ]
                listed = raw.request(other.url, "GET", "/api/v1/servers", token=operator).json()
                jobs = raw.call(other.url, "jobs", "run_jobs", {}, token=other.token)
                swept = subprocess.run(
                    [sys.executable, "-m", "toolhost.cli.app", "sweep", "--home", str(Path(base) / "another")],
                    capture_output=True, text=True, timeout=60, check=False,
                )  # fmt: skip
                running = len(labelled(other.home.instance)) > 0
                other.process.send_signal(signal.SIGTERM)
                other.process.communicate(timeout=30)
            eventually(lambda: not labelled(other.home.instance), what="the end of the other host's job")
        status = raw.call(
            host.url,
            "jobs",
            "run_status",
            {"job_id": job_of(mine), "wait_seconds": 0},
            token=host.operator_token,
        )
    finally:
        host.stop("jobs", grace=0.5)

    assert taken == 100
    assert foreign == [401] * 4
    assert sorted(server["name"] for server in listed) == ["bash", "jobs"]
    assert job_of(theirs) == job_of(mine) == "job-1"
    assert raw.text_of(jobs).count("job-") == 1
    assert running
    assert status.json()["result"]["structuredContent"]["state"] == "running", swept


def job_of(answer: raw.Raw) -> str:
    return str(answer.json()["result"]["structuredContent"]["job_id"])
