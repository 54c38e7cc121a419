"""What a call costs: the unix channel beside Ray actor calls, in one run. `python -m bench.channel`.

The caller is one process on uvloop; the socket's server is another, and each actor is one more. Rounds alternate
between the contestants, figures are medians over the rounds.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import uvloop
from bench._common import ROOT, latency, median_of, report, run_metadata, throughput
from typing_extensions import override

from toolhost_sdk.endpoints.channel import Dispatcher, IncomingCall
from toolhost_sdk.endpoints.unix_client import UnixChannel
from toolhost_sdk.endpoints.unix_server import serve_unix

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray  # after the switch above, which Ray reads when it is imported

from toolhost_sdk.endpoints.channel_ray import ChannelActorMixin, RayChannel

ROUNDS = 5
IN_FLIGHT = 32
CALLS = {"unix_channel": 2000, "ray_channel": 300, "ray_sync_actor": 500, "ray_async_actor": 500}
MOST_OF_A_RAY_CALL = 0.3
PAYLOAD = "0123456789abcdef"


async def noop(call: IncomingCall) -> Any:
    return call.payload


class SyncActor:
    def noop(self, payload: object) -> object:
        return payload


class AsyncActor(ChannelActorMixin):
    async def noop(self, payload: object) -> object:
        return payload

    @override
    def channel_dispatcher(self) -> Dispatcher:
        return noop


async def serve(path: str) -> None:
    async with serve_unix(noop, path):
        print("ready", flush=True)
        await anyio.sleep_forever()


async def measure(path: Path) -> dict[str, dict[str, float]]:
    sync_actor: Any = ray.remote(num_cpus=0)(SyncActor).remote()
    async_actor: Any = ray.remote(num_cpus=0)(AsyncActor).remote()
    unix, over_ray = UnixChannel(path), RayChannel(async_actor)
    contestants: dict[str, Callable[[], Awaitable[object]]] = {
        "unix_channel": lambda: unix.request("bench", "noop", PAYLOAD),
        "ray_channel": lambda: over_ray.request("bench", "noop", PAYLOAD),
        "ray_sync_actor": lambda: sync_actor.noop.remote(PAYLOAD),
        "ray_async_actor": lambda: async_actor.noop.remote(PAYLOAD),
    }
    for call in contestants.values():
        assert await call() == PAYLOAD
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, call in contestants.items():
            figures = await latency(call, CALLS[name])
            figures["per_second"] = await throughput(call, 4 * CALLS[name], IN_FLIGHT)
            rounds[name].append(figures)
    await unix.aclose()
    await over_ray.aclose()
    return {name: median_of(figures) for name, figures in rounds.items()}


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "bench.sock")
        server = subprocess.Popen(
            [sys.executable, "-m", "bench.channel", str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
            num_cpus=2,
        )
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            figures = uvloop.run(measure(path))
        finally:
            server.kill()
            server.communicate(timeout=10)
            ray.shutdown()
    unix = figures["unix_channel"]
    ratios = {
        name: {
            "p50": unix["p50_us"] / other["p50_us"],
            "p99": unix["p99_us"] / other["p99_us"],
            "rate": unix["per_second"] / other["per_second"],
        }
        for name, other in figures.items()
        if name != "unix_channel"
    }
    results = {
        "run": run_metadata("ray", "msgpack", "uvloop"),
        "in_flight": IN_FLIGHT,
        "figures": figures,
        "unix_channel_over": ratios,
    }
    bars = {
        f"unix channel p50 over {name.replace('_', ' ')} call": (ratios[name]["p50"], MOST_OF_A_RAY_CALL)
        for name in ("ray_sync_actor", "ray_async_actor")
    }
    return report("channel", results, bars)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        uvloop.run(serve(sys.argv[1]))
    else:
        sys.exit(main())
