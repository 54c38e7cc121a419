"""One real host for the tests of a session: real Ray, warden, tool host actors, ingress."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolhost import ToolHost
from toolhost.hosting.loop_guard import BLOCKED


@pytest.fixture(scope="session")
def host() -> Iterator[ToolHost]:
    with tempfile.TemporaryDirectory(prefix="th-") as directory:
        home = Path(directory) / "h"
        with ToolHost(home, port=0, num_cpus=4) as running:
            yield running
        # EXEC-R1: no server of ours may ever have blocked the loop of its host.
        logs = [log for log in (home / "logs").iterdir() if BLOCKED in log.read_text(errors="replace")]
        assert not logs, "\n".join(log.read_text(errors="replace") for log in logs)
