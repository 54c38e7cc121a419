"""The executor contract against the warden: commands as processes of this machine, through its unix socket."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.contracts import executor_contract as contract
from tests.support.warden import Warden

from toolhost_sdk.node.client import WardenClient

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def warden() -> Iterator[Warden]:
    with tempfile.TemporaryDirectory(prefix="th-") as place, Warden.started(Path(place)) as running:
        yield running


@pytest.fixture
async def executor(warden: Warden) -> AsyncIterator[WardenClient]:
    client = warden.client()
    before = await client.manifest()
    warden.waiting_leaders()  # what is in stock holds descriptors too
    descriptors = warden.descriptors()
    yield client
    for job in await client.jobs(live=True):
        await client.terminate(job.id, grace=0)
    await client.aclose()
    warden.waiting_leaders()
    assert before["pid"] == warden.pid and warden.descriptors() <= descriptors + 2, (
        "descriptors were left open"
    )


class TestEndings(contract.Endings):
    pass


class TestTrees(contract.Trees):
    pass


class TestLogs(contract.Logs):
    pass


class TestInputs(contract.Inputs):
    pass


class TestStarts(contract.Starts):
    pass


class TestLives(contract.Lives):
    pass
