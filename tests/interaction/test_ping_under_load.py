"""A host answers while its servers work."""

from __future__ import annotations

import statistics
import time

import anyio
import psutil
import pytest
from tests.support.clients import connected
from tests.support.waiting import eventually

from toolhost import ToolHost
from toolhost.tools.bash import BashTool

pytestmark = [pytest.mark.ray, pytest.mark.anyio]
COMMANDS = 4
PINGS = 40


def sleeping() -> int:
    return sum(process.info["cmdline"] == ["sleep", "4.321"] for process in psutil.process_iter(["cmdline"]))


async def test_pings_stay_fast_while_commands_run(host: ToolHost) -> None:
    """EXEC-A2: EXEC-R1 through a whole host, measured beside commands that keep every worker of a shell waiting."""
    spec = BashTool.bind(persistent=False, yield_after=45)
    took: list[float] = []
    with host.spawn(spec, name="busy") as handle:

        async def work() -> None:
            async with connected(handle.url, host.operator_token) as client:
                result = await client.call_tool("run_command", {"command": "sleep 4.321"})
                assert not result.is_error

        async with anyio.create_task_group() as group:
            for _ in range(COMMANDS):
                group.start_soon(work)
            await anyio.to_thread.run_sync(lambda: eventually(lambda: sleeping() == COMMANDS, within=20))
            async with connected(handle.url, host.operator_token, mode="legacy") as client:
                for _ in range(PINGS):
                    started = time.perf_counter()
                    await client.send_ping()
                    took.append(time.perf_counter() - started)
            assert sleeping() == COMMANDS

    assert statistics.median(took) < 0.05
