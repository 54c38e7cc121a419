"""The launcher port: how a tool host process comes to be, somewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolhost.hosting.service import HostConfig
from toolhost.wire import Address
from toolhost_sdk.endpoints.channel import Channel


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchedHost:
    """A running tool host: where it is, and the controller's channel to it."""

    host_id: str
    address: Address
    pid: int
    channel: Channel


class Launcher(ABC):
    """Starts and ends tool host processes. The composition root chooses the provider."""

    node_id: str

    @abstractmethod
    async def check(self, placement: Mapping[str, Any]) -> None:
        """Raises PlacementError when no node can ever offer *placement*; the message has the demand and the
        nearest offer. Raises UsageError for a key that may not be set."""

    @abstractmethod
    async def launch(
        self, config: HostConfig, placement: Mapping[str, Any], *, timeout: float
    ) -> LaunchedHost:
        """Start one. Raises StartupTimeoutError, with nothing left behind."""

    @abstractmethod
    async def kill(self, host: LaunchedHost) -> None:
        """End its process now. Idempotent; a dead one is fine."""
