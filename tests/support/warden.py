"""A real warden of a test's own."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.waiting import alive, eventually

from toolhost_sdk.endpoints.unix_client import UnixChannel
from toolhost_sdk.node import procfs
from toolhost_sdk.node.client import WardenClient
from toolhost_sdk.node.start import ensure_warden


@dataclass(frozen=True, slots=True, kw_only=True)
class Warden:
    """A running warden, its home and its socket."""

    home: Path
    runtime: Path
    instance: str
    socket: Path
    pid: int

    @classmethod
    def start(cls, place: Path, **options: Any) -> Warden:
        options = {"ttl": 120.0, "instance": "test", **options}
        instance = options.pop("instance")
        home, runtime = place / "home", place / "run"
        socket = ensure_warden(home, runtime, instance, **options)
        pid = int(json.loads((home / "warden.json").read_text())["pid"])
        return cls(home=home, runtime=runtime, instance=instance, socket=socket, pid=pid)

    @classmethod
    @contextmanager
    def started(cls, place: Path, **options: Any) -> Iterator[Warden]:
        warden = cls.start(place, **options)
        try:
            yield warden
        finally:
            warden.stop()

    def client(self) -> WardenClient:
        return WardenClient(UnixChannel(self.socket))

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def zygote(self) -> int:
        def found() -> list[int]:
            return [pid for pid in procfs.children(self.pid) if procfs.name(pid) == "th-zygote"]

        return eventually(found, what="the zygote's name")[0]

    def waiting_leaders(self) -> list[int]:
        """The processes in stock, once all are there: each waits below an init for a plan."""

        def found() -> list[int]:
            inits = procfs.children(self.zygote())
            leaders = [pid for parent in inits for pid in procfs.children(parent)]
            return leaders if len(leaders) == 2 else []

        return eventually(found, what="two inits in stock, each with a leader")

    def init_of(self, pid: int) -> int:
        """The init of the leader *pid*."""
        found = procfs.parent(pid)
        assert found is not None and procfs.name(found) == "th-init"
        return found

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)
        eventually(lambda: not alive(self.pid), what="the warden's death")

    def stop(self) -> None:
        """End it and wait until it and its zygote are gone."""
        if not alive(self.pid):
            return
        zygote = self.zygote()
        os.kill(self.pid, signal.SIGTERM)
        eventually(lambda: not alive(self.pid) and not alive(zygote), within=15, what="the warden's end")
