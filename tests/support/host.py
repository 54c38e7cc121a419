"""One real host for the tests of a session: real Ray, warden, tool host actors, ingress."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolhost import ToolHost


@pytest.fixture(scope="session")
def host() -> Iterator[ToolHost]:
    with (
        tempfile.TemporaryDirectory(prefix="th-") as home,
        ToolHost(Path(home) / "h", port=0, num_cpus=4) as running,
    ):
        yield running
