"""One local Ray for a test session. Import `local_ray` into the conftest of a directory that needs it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before Ray is imported: it asks nobody


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of this session on the loopback address; skips where Ray is not installed."""
    ray = pytest.importorskip("ray")
    mine = not ray.is_initialized()
    if mine:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
            num_cpus=2,
        )
    yield
    if mine:
        ray.shutdown()
