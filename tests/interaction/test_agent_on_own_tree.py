"""An agent's afternoon on real input: this project's own source tree, through `/bash/mcp`, in both eras.

It searches the tree, breaks a copy, runs the copy's checks and tests as one long job whose output it reads by
offset while they run, finds the failure in the stored log, mends the copy and runs them again.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
from pathlib import Path

import pytest
from mcp import Client
from tests.support.clients import ERAS, call_text, connected
from tests.support.logs import piece

from toolhost import ToolHost
from toolhost.tools.bash import BashTool

pytestmark = [pytest.mark.anyio, pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PYTHON = shlex.quote(sys.executable)
# What a contributor runs before a commit, but for the parts that need Ray or Node.
CHECKS = (
    f"{PYTHON} -m mypy --no-incremental --cache-dir=/dev/null; types=$?; "
    f"{PYTHON} -m pytest -p no:cacheprovider --color=no -q -m 'not ray and not clients and not faults' "
    "tests/sdk tests/contracts tests/toolhost/servers tests/toolhost/tools tests/toolhost/hosting "
    "tests/toolhost/ingress "
    "&& exit $types"
)
# What failed, again after it was mended; long runs on a small machine are for looking, not for a verdict.
AGAIN = (
    f"{PYTHON} -m pytest -p no:cacheprovider --color=no -q -m 'not ray' "
    "tests/toolhost/hosting/test_routes.py tests/toolhost/servers"
)
BREAK = """{python} - <<'EOF'
from pathlib import Path
path = Path("toolhost/toolhost/hosting/routes.py")
path.write_text(path.read_text().replace('"draining", "restarting", "stopped"', '"draining", "stopped"'))
EOF
"""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("era", ERAS)
async def test_an_agent_breaks_and_mends_a_copy_of_this_project(
    host: ToolHost, era: str, tmp_path: Path
) -> None:
    """BASH-R1, BASH-R5, SESS-R1, TOOL-R1, TOOL-R4, JOB-R5, LOG-R4"""
    await work(host, era, tmp_path / "copy")


async def work(host: ToolHost, era: str, copy: Path) -> None:
    name = f"own-tree-{ERAS.index(era)}"  # a shell's state stays with its server's name
    handle = await asyncio.to_thread(host.spawn, BashTool.bind(work_dir=str(ROOT)), name=name)
    try:
        async with connected(handle.url, host.mint_token(scopes=[name]), mode=era) as client:
            await prepare(client, copy)
            code, log = await run_job(client, CHECKS)
            assert code == 1
            assert log.reads_while_running >= 2
            failed = await call_text(client, "run_output", {"job_id": log.job, "grep": "^FAILED"})
            assert "test_each_move_to_ready_is_a_new_generation" in failed, failed
            await call_text(
                client, "run_command", {"command": "cp $COPY.original toolhost/toolhost/hosting/routes.py"}
            )
            code, log = await run_job(client, AGAIN)
            assert code == 0, log.tail
    finally:
        await asyncio.to_thread(handle.stop)


async def prepare(client: Client, copy: Path) -> None:
    """Find the file, copy the tree, break the copy; the shell keeps directory and variables between calls."""
    found = await call_text(
        client, "run_command", {"command": "git ls-files | xargs grep -l '^MOVES: Mapping'"}
    )
    assert found.splitlines()[0] == "toolhost/toolhost/hosting/routes.py"
    copying = (
        f"COPY={shlex.quote(str(copy))}; mkdir -p $COPY && git ls-files -z | xargs -0 cp --parents -t $COPY"
    )
    await call_text(client, "run_command", {"command": copying})
    await call_text(client, "run_command", {"command": "cd $COPY && export PYTHONPATH=sdk:toolhost:agents:."})
    await call_text(
        client, "run_command", {"command": "cp toolhost/toolhost/hosting/routes.py $COPY.original"}
    )
    await call_text(client, "run_command", {"command": BREAK.format(python=PYTHON)})
    where = await call_text(client, "run_command", {"command": 'echo "$COPY $PYTHONPATH"; pwd'})
    assert where.splitlines()[:2] == [f"{copy} sdk:toolhost:agents:.", str(copy)]


class Log:
    """What was read of a job, piece by piece."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.data = b""
        self.reads_while_running = 0

    @property
    def tail(self) -> str:
        return self.data[-3000:].decode(errors="replace")


async def run_job(client: Client, command: str) -> tuple[int, Log]:
    """Start *command*, follow it by offset, and return its exit code with the whole log."""
    started = await call_text(
        client, "run_command", {"command": command, "timeout": 600, "wait_seconds": 0.25}
    )
    handle = re.search(r"\bjob-\d+\b", started)
    assert handle, started
    log = Log(handle[0])
    done = False
    while not done:
        data, done = await piece(client, log.job, len(log.data))
        log.data += data
        if not done and data:
            log.reads_while_running += 1
        if not data:
            await asyncio.sleep(0.5)
    status = await client.call_tool("run_status", {"job_id": log.job})
    assert status.structured_content is not None
    return int(status.structured_content["result"]["exit_code"]), log
