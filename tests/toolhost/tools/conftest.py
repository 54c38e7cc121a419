"""A real warden for the tests of the tool servers."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
import pytest

from toolhost.tools import ToolSpec
from toolhost.tools.local import LocalServer
from toolhost_sdk.endpoints.unix_client import UnixChannel
from toolhost_sdk.node.client import WardenClient
from toolhost_sdk.node.start import ensure_warden

Serve = Callable[..., AbstractAsyncContextManager[LocalServer]]


@pytest.fixture(scope="session")
def warden_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a warden that ends with this session."""
    runtime = Path(tempfile.mkdtemp(prefix="th-", dir="/tmp"))
    home = tmp_path_factory.mktemp("warden")
    path = ensure_warden(home, runtime, "tools-tests", ttl=120.0)

    async def stop() -> None:
        client = WardenClient(UnixChannel(path))
        await client.stop()
        await client.aclose()

    anyio.run(_hold, path)
    yield path
    anyio.run(stop)
    shutil.rmtree(runtime, ignore_errors=True)


async def _hold(path: Path) -> None:
    client = WardenClient(UnixChannel(path))
    await client.hold("tests", ttl=1800.0)
    await client.aclose()


@pytest.fixture
async def executor(warden_socket: Path) -> AsyncIterator[WardenClient]:
    client = WardenClient(UnixChannel(warden_socket))
    yield client
    await client.aclose()


@pytest.fixture
def serve(executor: WardenClient, tmp_path: Path, request: pytest.FixtureRequest) -> Serve:
    """`async with serve(spec) as server`: a server of this test's own name, with this test's state directory."""
    own = f"t{abs(hash(request.node.nodeid)):x}"[:16]

    @asynccontextmanager
    async def start(spec: ToolSpec, *, name: str = own) -> AsyncIterator[LocalServer]:
        state = tmp_path / f"state-{name}"
        state.mkdir(mode=0o700, exist_ok=True)
        async with LocalServer(spec, name=name, executor=executor, state_dir=state) as server:
            yield server

    return start
