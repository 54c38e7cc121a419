"""Tool hosts as Ray actors: Ray places, starts and connects them; supervision is ours (`max_restarts=0`)."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from typing_extensions import override

from toolhost.hosting.home import Home
from toolhost.hosting.launcher import LaunchedHost, Launcher
from toolhost.hosting.loop_guard import LoopGuard
from toolhost.hosting.service import HostConfig, ToolHostService, log_to_files
from toolhost.hosting.warden_lease import start_warden
from toolhost.wire import Address
from toolhost_sdk.endpoints.channel import Channel, Dispatcher
from toolhost_sdk.endpoints.channel_ray import ChannelActorMixin, RayChannel
from toolhost_sdk.endpoints.relay import relay_to
from toolhost_sdk.endpoints.unix_client import UnixChannel
from toolhost_sdk.endpoints.unix_server import serve_unix
from toolhost_sdk.errors import PlacementError, StartupTimeoutError, UnavailableError, UsageError
from toolhost_sdk.node.client import WardenClient

logger = logging.getLogger(__name__)
_PLACEMENT_KEYS = frozenset(
    {"resources", "num_cpus", "num_gpus", "memory", "scheduling_strategy", "label_selector"}
)


class ToolHostActor(ChannelActorMixin):
    """The shell around `ToolHostService` in a Ray worker. It reserves no CPU, so that functions which dispatch
    tasks cannot starve themselves."""

    async def open(self, config: dict[str, Any]) -> dict[str, Any]:
        """Serve. Returns where: node id, socket path and pid."""
        settings = HostConfig(**config)
        home = Home(Path(settings.home))
        home.prepare()
        log_to_files(home.logs_dir, settings.host_id)
        LoopGuard(asyncio.get_running_loop()).start()
        executor = WardenClient(UnixChannel(await asyncio.to_thread(start_warden, home)))
        self._service = ToolHostService(settings, executor, home.state_dir)
        path = home.runtime_dir / f"host-{settings.host_id}.sock"
        self._socket = serve_unix(self._service.dispatch, path)
        await self._socket.__aenter__()
        return {"node_id": ray.get_runtime_context().get_node_id(), "unix": str(path), "pid": os.getpid()}

    @override
    def channel_dispatcher(self) -> Dispatcher:
        return self._service.dispatch


class RayLauncher(Launcher):
    """Launches on the connected Ray. *namespace* keeps two hosts on one cluster apart."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self.node_id = ray.get_runtime_context().get_node_id()
        self._actors: dict[str, Any] = {}
        self._relays: dict[str, AsyncExitStack] = {}

    @override
    async def check(self, placement: Mapping[str, Any]) -> None:
        if unknown := sorted(set(placement) - _PLACEMENT_KEYS):
            raise UsageError(
                f"placement may not hold {unknown[0]!r}; it takes {', '.join(sorted(_PLACEMENT_KEYS))}"
            )
        _require_ray()
        demand = _demand(placement)
        offers = [node["Resources"] for node in await asyncio.to_thread(ray.nodes) if node["Alive"]]
        if any(all(offer.get(key, 0) >= amount for key, amount in demand.items()) for offer in offers):
            return
        best: dict[str, float] = max(
            offers, key=lambda offer: sum(offer.get(key, 0) >= demand[key] for key in demand), default={}
        )
        nearest = {key: best.get(key, 0) for key in demand}
        raise PlacementError(
            f"no node offers {_in_words(demand)}; the nearest has {_in_words(nearest)}: "
            "start a node with these resources or ask for less",
            demand=demand,
            nearest=nearest,
        )

    @override
    async def launch(
        self, config: HostConfig, placement: Mapping[str, Any], *, timeout: float
    ) -> LaunchedHost:
        _require_ray()
        name = f"host-{config.host_id}"
        options: dict[str, Any] = {"num_cpus": 0, **placement}
        if not placement:  # Ray would choose any node; files and sockets are here
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(self.node_id, soft=False)
        actor: Any = (
            ray.remote(ToolHostActor)
            .options(name=name, namespace=self._namespace, max_restarts=0, max_concurrency=1000, **options)
            .remote()
        )
        self._actors[config.host_id] = actor
        try:
            return await self._opened(actor, config, timeout)
        except BaseException:  # a caller that gave up leaves nothing behind either
            await self._end(config.host_id)
            raise

    async def _opened(self, actor: Any, config: HostConfig, timeout: float) -> LaunchedHost:
        try:
            async with asyncio.timeout(timeout):
                where = await actor.open.remote(asdict(config))
        except (TimeoutError, RayError) as error:
            if isinstance(error, RayError) and (cause := getattr(error, "cause", None)) is not None:
                raise cause from None
            logs = Home(Path(config.home)).logs_dir
            raise StartupTimeoutError(
                f"tool host {config.host_id!r} did not start within {timeout:g} s: look into "
                f"{str(logs / f'host-{config.host_id}.log')!r}, or raise start_timeout"
            ) from None
        if where["node_id"] == self.node_id:
            channel: Channel = UnixChannel(where["unix"])
            path = where["unix"]
        else:
            channel = RayChannel(actor)
            path = await self._relay(config, channel)
        address = Address(node_id=where["node_id"], unix=path)
        return LaunchedHost(host_id=config.host_id, address=address, pid=where["pid"], channel=channel)

    async def _relay(self, config: HostConfig, channel: Channel) -> str:
        """A socket of this node that leads to a host on another one: ingresses need no Ray."""
        path = Home(Path(config.home)).runtime_dir / f"far-{config.host_id}.sock"
        relay = self._relays[config.host_id] = AsyncExitStack()
        await relay.enter_async_context(serve_unix(relay_to(channel), path))
        return str(path)

    @override
    async def kill(self, host: LaunchedHost) -> None:
        await host.channel.aclose()
        await self._end(host.host_id)

    async def _end(self, host_id: str) -> None:
        actor = self._actors.pop(host_id, None)
        try:
            if (relay := self._relays.pop(host_id, None)) is not None:
                await relay.aclose()
        finally:
            if actor is not None and ray.is_initialized():
                await asyncio.to_thread(ray.kill, actor)


def _require_ray() -> None:
    """Most of Ray's functions start a Ray of their own, open to the network, where none runs."""
    if not ray.is_initialized():
        raise UnavailableError("Ray was shut down in this process: close this host and start another")


def _demand(placement: Mapping[str, Any]) -> dict[str, float]:
    demand = {key: float(amount) for key, amount in (placement.get("resources") or {}).items()}
    for option, resource in (("num_cpus", "CPU"), ("num_gpus", "GPU"), ("memory", "memory")):
        if placement.get(option):
            demand[resource] = float(placement[option])
    return demand


def _in_words(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {key!r}" for key, amount in resources.items()) or "anything"
