"""A tool host of its own for a test to kill: starts one command job and one hosted job, prints their handles."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anyio

from toolhost.tools import tool
from toolhost.tools.bash import BashTool
from toolhost.tools.jobs import AsyncBashTool, JobContext
from toolhost.tools.local import LocalServer
from toolhost_sdk.endpoints.unix_client import UnixChannel
from toolhost_sdk.node.client import WardenClient


class Host(AsyncBashTool):
    @tool
    async def half(self) -> str:
        """Submit work that writes and then hangs."""

        async def work(job: JobContext) -> dict[str, Any]:
            job.write(b"half\n")
            await anyio.sleep_forever()
            return {}

        return (await self.jobs.submit(work)).handle


async def main(*arguments: str) -> None:
    socket, directory, name = arguments
    state = Path(directory) / "killed"
    state.mkdir(mode=0o700)
    executor = WardenClient(UnixChannel(Path(socket)))
    async with (
        LocalServer(Host.bind(), name=name, executor=executor, state_dir=state) as server,
        LocalServer(BashTool.bind(), name=f"{name}-shell", executor=executor, state_dir=state) as shell,
        anyio.create_task_group() as group,
    ):
        group.start_soon(shell.call, "run_command", {"command": "setsid sleep 4805 & sleep 4805"})
        command = await server.call("run", {"command": "echo begun; sleep 2; echo ended", "wait_seconds": 0})
        hosted = await server.call("half")
        handle = hosted["content"][0]["text"]
        while True:  # the test bounds it
            record = await executor.find(name, handle)
            if record.size and await executor.jobs(session=f"{name}-shell"):
                break
            await anyio.sleep(0.02)
        print(command["structured"]["job_id"], handle, flush=True)
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
