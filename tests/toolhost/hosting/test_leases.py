"""Servers that live as long as their owner's connection: tool-servers.md section 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from tests.toolhost.hosting.in_process import supervising
from tests.toolhost.hosting.test_supervisor import request, until

from toolhost.hosting.control import ControlService
from toolhost.wire import SpawnRequest
from toolhost_sdk.endpoints.unix_client import UnixChannel
from toolhost_sdk.endpoints.unix_server import serve_unix

pytestmark = pytest.mark.anyio


async def spawn(owner: UnixChannel, wanted: SpawnRequest) -> None:
    await owner.request("control", "servers.spawn", wanted.model_dump())


async def test_an_owner_that_leaves_ends_its_own_server_and_not_the_next_one_of_that_name(
    tmp_path: Path,
) -> None:
    """LIFE-A8, LIFE-A2"""
    async with supervising(tmp_path / "h") as rig:
        control = ControlService(
            routes=rig.routes,
            supervisor=rig.supervisor,
            status=cast("Any", None),
            tokens=cast("Any", None),
            shutdown=lambda: None,
        )
        path = tmp_path / "h" / "run" / "c.sock"
        async with serve_unix(control.dispatch, path):
            first, second = UnixChannel(path), UnixChannel(path)
            await spawn(first, request("shared"))
            await spawn(first, request("own"))
            await rig.supervisor.stop("shared")
            await spawn(second, request("shared"))
            await first.aclose()
            await until(lambda: "own" not in rig.routes)
            await anyio.sleep(0.1)  # for the end that must not come

            assert rig.supervisor.status("shared").state == "ready"
            await second.aclose()
            await until(lambda: "shared" not in rig.routes)
        await control.aclose()
