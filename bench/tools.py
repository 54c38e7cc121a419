"""What tools cost through a whole host: commands, pings, starts and stops. `python -m bench.tools`.

One real host (Ray, warden, tool hosts, ingress on one port); the client is the official one over a kept connection,
and beside it bare HTTP, which shows what is the client's own. The bars are those of the tool servers' reference page.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import psutil
from bench._common import latency, report, run_metadata
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from toolhost import ToolHandle, ToolHost
from toolhost.tools.bash import BashTool
from toolhost.tools.jobs import AsyncBashTool
from toolhost.tools.template import ToolServerTemplate

LEGACY = "2025-11-25"
STARTS = 50
CALLS = 300
GRACE = 5.0


@asynccontextmanager
async def connected(url: str, token: str) -> AsyncIterator[Client]:
    headers = {"authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60, trust_env=False) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield client


class BareSession:
    """A legacy session in bare HTTP: one POST a call, nothing checked but the status."""

    def __init__(self, http: httpx2.AsyncClient, url: str, token: str) -> None:
        self._http = http
        self._url = url
        self._headers = {
            "authorization": f"Bearer {token}",
            "accept": "application/json, text/event-stream",
        }

    async def open(self) -> float:
        """Say hello; returns the milliseconds `initialize` took."""
        who = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "bench", "version": "0"}}
        started = time.perf_counter()
        answer = await self._post("initialize", who)
        took = (time.perf_counter() - started) * 1e3
        self._headers |= {
            "mcp-session-id": answer.headers["mcp-session-id"],
            "mcp-protocol-version": LEGACY,
        }
        note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        (await self._http.post(self._url, json=note, headers=self._headers)).raise_for_status()
        return took

    async def _post(self, method: str, params: dict[str, Any]) -> httpx2.Response:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        answer = await self._http.post(self._url, json=body, headers=self._headers)
        return answer.raise_for_status()

    async def ping(self) -> None:
        await self._post("ping", {})

    async def run(self, command: str) -> None:
        await self._post("tools/call", {"name": "run_command", "arguments": {"command": command}})


async def milliseconds(call: Callable[[], Awaitable[object]], count: int = CALLS) -> dict[str, float]:
    figures = await latency(call, count, warm_up=30)
    return {name.replace("_us", "_ms"): round(value / 1e3, 3) for name, value in figures.items()}


async def commands(host: ToolHost) -> dict[str, Any]:
    """Medians of `true` and ping, four parallel sleeps, and `initialize` beside a running command."""
    token = host.operator_token
    results: dict[str, Any] = {}
    async with httpx2.AsyncClient(timeout=60, trust_env=False) as http:
        for name in ("apart", "session"):
            async with connected(f"{host.url}/{name}/mcp", token) as client:
                results[f"true_{name}"] = await milliseconds(
                    lambda client=client: client.call_tool("run_command", {"command": "true"})
                )
            bare = BareSession(http, f"{host.url}/{name}/mcp", token)
            await bare.open()
            results[f"true_{name}_bare_http"] = await milliseconds(lambda bare=bare: bare.run("true"))
        results["ping_bare_http"] = await milliseconds(bare.ping)
        async with connected(f"{host.url}/apart/mcp", token) as client:
            started = time.perf_counter()
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(client.call_tool, "run_command", {"command": "sleep 1"})
            results["four_parallel_sleeps_s"] = round(time.perf_counter() - started, 3)
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "run_command", {"command": "sleep 2"})
                await anyio.sleep(0.3)
                taken = [await BareSession(http, f"{host.url}/apart/mcp", token).open() for _ in range(20)]
            results["initialize_beside_a_command_ms"] = {
                "p50": round(statistics.median(taken), 2), "max": round(max(taken), 2),
            }  # fmt: skip
    return results


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    value = work()
    return round(time.perf_counter() - started, 4), value


def starts(host: ToolHost, place: Path) -> dict[str, Any]:
    """Seconds that the N-th server's start takes, and what memory 50 of them hold."""
    before = resident()
    taken: list[float] = []
    handles: list[ToolHandle] = []
    for number in range(STARTS):
        spec = ToolServerTemplate.bind(str(place / f"notes-{number}"))
        seconds, handle = timed(lambda spec=spec, number=number: host.spawn(spec, name=f"notes-{number}"))
        taken.append(seconds)
        handles.append(handle)
    grown = resident() - before
    stops = [timed(handle.stop)[0] for handle in handles]
    return {
        "nth_start_s": {str(n): taken[n - 1] for n in (1, 2, 10, 50)},
        "median_of_2_to_50_s": round(statistics.median(taken[1:]), 4),
        "first_five_s": round(sum(taken[:5]), 3),
        "all_fifty_s": round(sum(taken), 3),
        "mib_per_further_server": round(grown / (STARTS - 1) / 2**20, 2),
        "idle_stop_median_s": round(statistics.median(stops), 4),
    }


def resident() -> int:
    """Bytes that the processes below this one hold, shared pages counted in each."""
    return sum(process.memory_info().rss for process in psutil.Process().children(recursive=True))


async def busy_stop(host: ToolHost) -> dict[str, Any]:
    """A server stopped while its command ignores SIGTERM."""
    handle = host.spawn(AsyncBashTool.bind(), name="busy")
    async with connected(handle.url, host.operator_token) as client:
        command = "trap '' TERM; while true; do sleep 1; done"
        await client.call_tool("run", {"command": command, "wait_seconds": 0.2})
    seconds, _ = await anyio.to_thread.run_sync(lambda: timed(lambda: handle.stop(grace=GRACE)))
    return {"busy_stop_s": seconds}


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="th-") as place:
        first, host = timed(lambda: ToolHost(Path(place) / "h", port=0, num_cpus=2).start())
        try:
            began = starts(host, Path(place))
            host.spawn(BashTool.bind(persistent=False), name="apart")
            host.spawn(BashTool.bind(), name="session")
            ran = anyio.run(commands, host)
            busy = anyio.run(busy_stop, host)
        finally:
            host.close()
    results = {**run_metadata("ray", "mcp"), "host_start_s": first, **began, **ran, **busy}
    bars = {
        "true, independent calls, bare HTTP p50 (ms)": (ran["true_apart_bare_http"]["p50_ms"], 5.0),
        "true, session, bare HTTP p50 (ms)": (ran["true_session_bare_http"]["p50_ms"], 5.0),
        "ping p50 (ms)": (ran["ping_bare_http"]["p50_ms"], 2.0),
        "four parallel sleep 1 (s)": (ran["four_parallel_sleeps_s"], 1.3),
        "initialize beside a running command p50 (ms)": (ran["initialize_beside_a_command_ms"]["p50"], 50.0),
        "start of a further server, median (s)": (began["median_of_2_to_50_s"], 0.1),
        "start of five servers including the first (s)": (began["first_five_s"], 1.5),
        "start of fifty servers (s)": (began["all_fifty_s"], 5.0),
        "memory of a further server (MiB)": (began["mib_per_further_server"], 10.0),
        "idle stop, median (s)": (began["idle_stop_median_s"], 0.2),
        "busy stop (s)": (busy["busy_stop_s"], GRACE + 1),
    }
    return report("tools", results, bars)


if __name__ == "__main__":
    sys.exit(main())
