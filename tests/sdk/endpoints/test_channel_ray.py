"""What only the Ray provider has: callers that die without a word, actors that are gone for good."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
import ray
from tests.contracts.channel_peer_ray import ProbeActor

from toolhost_sdk.endpoints.channel import CallHeader
from toolhost_sdk.endpoints.channel_ray import RayChannel
from toolhost_sdk.errors import UnavailableError

pytestmark = [pytest.mark.anyio, pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


class Caller:
    """An actor that calls another one and never leaves by itself."""

    async def hang(self, actor: Any) -> None:
        await RayChannel(actor, heartbeat=0.1).request("probe", "hang", "a")


async def test_a_killed_caller_ends_its_handlers() -> None:
    actor: Any = ray.remote(num_cpus=0)(ProbeActor).remote()
    caller: Any = ray.remote(num_cpus=0)(Caller).remote()
    channel = RayChannel(actor)
    hanging = caller.hang.remote(actor)
    await channel.request("probe", "wait_for", ["started a", 1], header=CallHeader(timeout=20))

    ray.kill(caller)

    await channel.request("probe", "wait_for", ["ended a", 1], header=CallHeader(timeout=20))
    await channel.aclose()
    ray.kill(actor)
    del hanging


async def test_an_idle_channel_keeps_its_connection() -> None:
    actor: Any = ray.remote(num_cpus=0)(ProbeActor).remote()
    channel = RayChannel(actor, heartbeat=0.05)
    await channel.request("probe", "watch_peer", "a")
    link = channel.standing()

    await anyio.sleep(0.5)  # ten heartbeats; three missed ones would end the lease

    assert await channel.request("probe", "marks", "gone a") == 0
    assert channel.standing() is link
    await channel.aclose()
    ray.kill(actor)


async def test_an_actor_that_is_gone_is_unavailable() -> None:
    actor: Any = ray.remote(num_cpus=0)(ProbeActor).remote()
    channel = RayChannel(actor)
    await channel.request("probe", "echo")
    ray.kill(actor)

    for _ in range(2):
        with anyio.fail_after(20):
            with pytest.raises(UnavailableError):
                while True:
                    await channel.request("probe", "echo")
    await channel.aclose()
