"""The executor contract against the warden: commands as processes of this machine, through its unix socket."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.contracts import executor_contract as contract
from tests.support.waiting import eventually
from tests.support.warden import Warden

from toolhost_sdk.node.client import WardenClient

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def warden() -> Iterator[Warden]:
    with tempfile.TemporaryDirectory(prefix="th-") as place, Warden.started(Path(place)) as running:
        running.waiting_leaders()  # what is in stock holds descriptors too, three each
        descriptors = running.descriptors()
        yield running
        # One descriptor left open by each job would be hundreds by now; the stock alone goes up and down.
        eventually(lambda: running.descriptors() <= descriptors + 8, what="no descriptor left open")


@pytest.fixture
async def executor(warden: Warden) -> AsyncIterator[WardenClient]:
    client = warden.client()
    before = await client.manifest()
    yield client
    for job in await client.jobs(live=True):
        await client.terminate(job.id, grace=0)
    await client.aclose()
    assert before["pid"] == warden.pid


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
