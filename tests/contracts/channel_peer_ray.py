"""The probe of the channel contract as a Ray actor. Apart, so that a server on a socket imports no Ray."""

from __future__ import annotations

from tests.contracts.channel_peer import SMALL, Probe
from typing_extensions import override

from toolhost_sdk.endpoints.channel_ray import ChannelActorMixin


class ProbeActor(ChannelActorMixin):
    """An async actor that serves a `Probe`."""

    channel_limits = SMALL

    @override
    def channel_dispatcher(self) -> Probe:
        return Probe()
