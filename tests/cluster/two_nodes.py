"""Two raylets on this machine, a host that joins them, and a server on each: run as a program, prints JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN_PATH": sys.argv[1] + "/token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps Ray on the loopback address
}
Path(sys.argv[1], "token").write_text("0" * 64)

from ray.cluster_utils import Cluster  # noqa: E402 - Ray reads its environment when it is imported
from tests.support.clients import call_text, connected  # noqa: E402
from tests.toolhost.hosting.servers import Echo, Runs  # noqa: E402

from toolhost import ToolHost  # noqa: E402


async def ask(host: ToolHost, name: str, fn: str, arguments: dict[str, object]) -> str:
    async with connected(f"{host.url}/{name}/mcp", host.mint_token(scopes=[name])) as client:
        return await call_text(client, fn, arguments)


def main() -> None:
    payload = os.urandom(100_000).hex()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "node_ip_address": "127.0.0.1", "include_dashboard": False},
    )
    try:
        cluster.add_node(num_cpus=1, resources={"far": 1}, node_ip_address="127.0.0.1")
        cluster.wait_for_nodes()
        with ToolHost(sys.argv[1] + "/home", port=0, address=cluster.address) as host:
            near = host.spawn(Echo.bind(), name="near")
            far = host.spawn(Echo.bind(), name="far", placement={"resources": {"far": 0.1}})
            host.spawn(Runs.bind(), name="runs", placement={"resources": {"far": 0.1}})
            facts = {
                "near_is_here": near.node_id == host.status().node_id,
                "far_is_there": far.node_id not in (None, near.node_id),
                "unchanged": asyncio.run(ask(host, "far", "echo", {"text": payload})) == payload,
                "command": asyncio.run(ask(host, "runs", "sleep", {"seconds": 0})),
                "stopped": far.stop(),
            }
        print(json.dumps(facts))
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
