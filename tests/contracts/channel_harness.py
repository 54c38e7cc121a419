"""What the channel contract needs from a provider: a served process that can be killed and comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import psutil
from tests.contracts.channel_peer import SMALL
from typing_extensions import override

from toolhost_sdk.endpoints.calling import LinkChannel
from toolhost_sdk.endpoints.unix_client import UnixChannel


class Harness(ABC):
    """One served peer in a process of its own."""

    uvloop = False  # whether both ends run on uvloop
    hops = 1  # connections between caller and peer, each with a window and a frame on its way
    tells_departure = True  # whether a handler learns that its caller's connection is gone

    @abstractmethod
    def channel(self) -> LinkChannel:
        """A new channel to the peer; whoever asks closes it."""

    @abstractmethod
    def revive(self) -> None:
        """Make sure that a killed peer is served again, soon."""

    @abstractmethod
    def stop(self) -> None: ...

    async def kill(self, pid: int) -> None:
        """SIGKILL the peer and return when it is gone."""
        process = psutil.Process(pid)
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(psutil.wait_procs, [process], 10)


class UnixHarness(Harness):
    def __init__(self, path: Path, *, uvloop: bool = False) -> None:
        self.uvloop = uvloop
        self._path = path
        self._server = start_server(path, uvloop=uvloop)

    @override
    def channel(self) -> LinkChannel:
        return UnixChannel(self._path, limits=SMALL)

    @override
    def revive(self) -> None:
        self.stop()
        self._server = start_server(self._path, uvloop=self.uvloop)

    @override
    def stop(self) -> None:
        self._server.kill()
        self._server.communicate(timeout=10)


def start_server(path: Path, *, uvloop: bool = False) -> subprocess.Popen[str]:
    """The probe's server, listening."""
    return start_program("tests.contracts.channel_peer", str(path), "uvloop" if uvloop else "asyncio")


def start_program(module: str, *arguments: str) -> subprocess.Popen[str]:
    """A module of this directory that says "ready"."""
    server = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    return server


class RelayHarness(UnixHarness):
    """A relay in a process of its own before the peer. The relay's own connection to the peer stays."""

    hops = 2
    tells_departure = False

    def __init__(self, path: Path) -> None:
        self._behind = path.with_name("behind.sock")
        super().__init__(self._behind)
        self._front = path
        self._relay = start_program("tests.contracts.channel_relay", str(path), str(self._behind))

    @override
    def channel(self) -> LinkChannel:
        return UnixChannel(self._front, limits=SMALL)

    @override
    def revive(self) -> None:
        UnixHarness.stop(self)
        self._server = start_server(self._path)

    @override
    def stop(self) -> None:
        super().stop()
        self._relay.kill()
        self._relay.communicate(timeout=10)


class RayHarness(Harness):
    def __init__(self) -> None:
        import ray  # only here: the fast suite starts no Ray and does not import it for this
        from tests.contracts.channel_peer_ray import ProbeActor

        self._ray = ray
        self._actor: Any = ray.remote(num_cpus=0, max_restarts=-1)(ProbeActor).remote()

    @override
    def channel(self) -> LinkChannel:
        from toolhost_sdk.endpoints.channel_ray import RayChannel

        return RayChannel(self._actor, heartbeat=0.2, limits=SMALL)

    @override
    def revive(self) -> None:
        pass  # Ray does

    @override
    def stop(self) -> None:
        self._ray.kill(self._actor)
