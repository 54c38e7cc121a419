"""Kill each part at seeded random points of a numbered stream: bytes, status and an empty tree are what is left."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import pytest
from tests.support.commands import joined, marker, processes_with, read_all, sh, until, wait_for_output
from tests.support.waiting import alive, eventually
from tests.support.warden import Warden

from toolhost_sdk.errors import ToolhostError, UnavailableError
from toolhost_sdk.node import cgroups, procfs
from toolhost_sdk.node.client import WardenClient
from toolhost_sdk.node.port import CommandSpec, JobRecord

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

LINES = 8 << 17  # of 64 bytes: 64 MiB
STREAM = (
    "import os,subprocess,sys\n"
    "subprocess.Popen(['sleep',sys.argv[1]],start_new_session=True)\n"
    "i=0\n"
    f"while i<{LINES}:\n"
    "    os.write(1,b''.join(b'%063d\\n'%n for n in range(i,i+256))); i+=256\n"
)
SEEDS = [1, 2, 3]


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="th-") as name:
        yield Path(name)


def streaming(mark: str) -> CommandSpec:
    return CommandSpec(argv=["python3", "-I", "-S", "-c", STREAM, mark], leftovers="kill")


def assert_prefix(data: bytes) -> None:
    """LOG-R2 ZERO-3: an exact beginning of the stream, whatever its length."""
    whole = len(data) // 64
    assert data[: whole * 64] == b"".join(b"%063d\n" % n for n in range(whole))
    assert (b"%063d\n" % whole).startswith(data[whole * 64 :])


async def read_until_death(client: WardenClient, job: str, into: list[bytes]) -> None:
    """A reader that keeps what it got when its warden goes."""
    offset = 0
    try:
        while True:
            chunk = await client.read(job, offset=offset, limit=1 << 18, wait=5.0)
            into.append(chunk.data)
            offset = chunk.next_offset
            if chunk.eof:
                return
    except UnavailableError:
        return


async def stream_until(
    warden: Warden, client: WardenClient, job: JobRecord, seed: int, strike: Callable[[], Awaitable[None]]
) -> list[bytes]:
    """Read with several readers, strike at a random point, and return what each of them saw."""
    draw = random.Random(seed)
    seen: list[list[bytes]] = [[] for _ in range(4)]
    readers = [warden.client() for _ in seen]
    async with anyio.create_task_group() as group:
        for reader, into in zip(readers, seen, strict=True):
            group.start_soon(read_until_death, reader, job.id, into)
        point = draw.randrange(1 << 16, 24 << 20)
        with anyio.fail_after(30):
            while (await client.record(job.id)).size < point:
                await client.read(job.id, offset=(await client.record(job.id)).size, wait=1.0)
        await strike()
    for reader in readers:
        await reader.aclose()
    return [b"".join(parts) for parts in seen]


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_killed_warden_leaves_no_process_and_every_appended_byte(place: Path, seed: int) -> None:
    """SURV-R3 ZERO-1 ZERO-2 LOG-R2 LEASE-R3 TREE-R3"""
    warden = Warden.start(place)
    zygote = warden.zygote()
    mark = marker()
    client = warden.client()
    job = await client.start(streaming(mark))

    async def strike() -> None:
        warden.kill()

    began = time.monotonic()
    seen = await stream_until(warden, client, job, seed, strike)
    eventually(lambda: not processes_with(mark) and not alive(zygote), within=5, what="an empty tree")
    await client.aclose()
    with Warden.started(place) as again:
        client = again.client()
        record = await client.record(job.id)
        data = joined(chunks := await read_all(client, job.id), "stdout")
        data += joined(chunks, "unknown")
        await client.aclose()

    assert time.monotonic() - began < 60
    assert (record.state, record.reason, record.exit_code, record.signal) == (
        "lost",
        "supervisor_exited",
        None,
        None,
    )
    assert_prefix(data)
    assert record.size == len(data)
    for part in seen:
        assert data.startswith(part)


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_killed_zygote_costs_nothing(place: Path, seed: int) -> None:
    """SURV-R3 ZERO-3"""
    with Warden.started(place) as warden:
        mark = marker()
        client = warden.client()
        job = await client.start(streaming(mark))

        async def strike() -> None:
            os.kill(warden.zygote(), signal.SIGKILL)

        seen = await stream_until(warden, client, job, seed, strike)
        record = await client.wait(job.id, timeout=30)
        later = await client.wait((await client.start(sh("exit 3"))).id, timeout=10)
        await client.aclose()

    assert (record.state, record.exit_code, record.size) == ("exited", 0, LINES * 64)
    assert len(set(seen)) == 1 and len(seen[0]) == LINES * 64
    assert_prefix(seen[0])
    assert later.exit_code == 3
    assert processes_with(mark) == []


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_killed_init_makes_its_job_lost_and_takes_the_tree_along(place: Path, seed: int) -> None:
    """SURV-R3 ZERO-1 ZERO-2"""
    with Warden.started(place) as warden:
        mark = marker()
        client = warden.client()
        job = await client.start(streaming(mark))
        assert job.pid is not None
        init = warden.init_of(job.pid)

        async def strike() -> None:
            os.kill(init, signal.SIGKILL)

        seen = await stream_until(warden, client, job, seed, strike)
        with anyio.fail_after(5):
            record = await client.wait(job.id)
        data = joined(await read_all(client, job.id), "stdout")
        left = processes_with(mark)
        later = await client.wait((await client.start(sh("exit 3"))).id, timeout=10)
        await client.aclose()

    assert (record.state, record.reason, record.exit_code, record.signal) == (
        "lost",
        "supervisor_exited",
        None,
        None,
    )
    assert left == [] and later.exit_code == 3
    assert seen == [data] * len(seen) and record.size == len(data)
    assert_prefix(data)


async def test_the_zygote_alone_ends_everything(place: Path) -> None:
    """LEASE-R3 ZERO-1: SIGKILL everything but the zygote."""
    warden = Warden.start(place)
    client = warden.client()
    mark = marker()
    zygote = warden.zygote()
    for limit in (None, None, 50):
        await client.start(
            sh(f"trap '' TERM; setsid sh -c 'sleep {mark} & sleep {mark}' & sleep {mark}", pids_limit=limit)
        )
    group = cgroups_of(await client.manifest())
    eventually(lambda: len(processes_with(mark)) >= 9, what="three trees")
    await client.aclose()

    for pid in [warden.pid, *(pid for pid in procfs.children(zygote) if procfs.name(pid) == "th-init")]:
        os.kill(pid, signal.SIGKILL)

    eventually(lambda: not processes_with(mark) and not alive(zygote), within=5, what="an empty node")
    assert all(not os.path.exists(path) for path in group)


def cgroups_of(manifest: dict[str, object]) -> list[str]:
    root = manifest["cgroup_root"]
    return (
        [] if root is None else [f"{root}/{cgroups.PREFIX}{manifest['namespace']}.{manifest['generation']}"]
    )


async def test_one_sweep_ends_what_outlived_everybody(place: Path) -> None:
    """LEASE-R2 LEASE-R3 ZERO-7: SIGKILL everything of ours at once, start one sweeper, count."""
    warden = Warden.start(place)
    client = warden.client()
    mark = marker()
    job = await client.start(sh(f"setsid sleep {mark} & sleep {mark}"))
    group = cgroups_of(await client.manifest())
    stranger = await anyio.open_process(["sleep", mark], env={"TOOLHOST_JOB": "another-instance/0000"})
    zygote = warden.zygote()
    await client.aclose()
    eventually(lambda: len(processes_with(mark)) >= 3, what="a tree")
    ours = [zygote, warden.pid, *(pid for pid in procfs.children(zygote) if procfs.name(pid) == "th-init")]
    for pid in ours:
        os.kill(pid, signal.SIGSTOP)
    for pid in ours:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(alive(pid) for pid in ours), what="everybody's death")

    with anyio.fail_after(30):
        swept = await anyio.run_process(
            [sys.executable, "-m", "toolhost_sdk.node.sweep", "--home", str(warden.home)]
        )
    left = [pid for pid in processes_with(mark) if pid != stranger.pid]
    spared = alive(stranger.pid)
    stranger.kill()
    await stranger.wait()

    assert {thing["job"] for thing in json.loads(swept.stdout)} >= {job.id}
    assert left == [] and spared
    assert all(not os.path.exists(path) for path in group)
    with Warden.started(place) as again:
        client = again.client()
        assert (await client.record(job.id)).state == "lost"
        await client.aclose()


async def test_a_warden_that_nobody_holds_ends_with_everything_it_holds(place: Path) -> None:
    """LEASE-R1 LEASE-R3"""
    warden = Warden.start(place, ttl=1.0, sweep_every=1.0)
    client = warden.client()
    lease = await client.hold("test", ttl=1.0)
    mark = marker()
    await client.start(sh(f"setsid sleep {mark} & sleep {mark}"))
    for _ in range(8):
        await anyio.sleep(0.25)
        await client.renew(lease.id)
    assert alive(warden.pid)

    eventually(lambda: not alive(warden.pid), within=6, what="the warden's end")

    with pytest.raises(ToolhostError):
        await client.manifest()
    await client.aclose()
    eventually(lambda: not processes_with(mark), within=3, what="an empty tree")


@pytest.mark.parametrize("victim", ["leader", "init"])
async def test_what_dies_between_plan_and_exec_is_told_as_it_was(place: Path, victim: str) -> None:
    """ZERO-2 ZERO-1: a leader that is held before its exec, and then it or its init is killed."""
    with Warden.started(place) as warden:
        leaders = warden.waiting_leaders()
        for pid in leaders:
            os.kill(pid, signal.SIGSTOP)
        client, other = warden.client(), warden.client()
        started: list[JobRecord] = []

        async def start() -> None:
            started.append(await client.start(sh("exit 5")))

        async with anyio.create_task_group() as group:
            group.start_soon(start)
            [job] = await until(lambda: other.jobs(live=True), what="the job's record")
            for pid in leaders:
                os.kill(pid if victim == "leader" else warden.init_of(pid), signal.SIGKILL)
        record = await other.wait(job.id, timeout=5)
        for one in (client, other):
            await one.aclose()

    assert job.state == "starting" and started[0].id == job.id
    expected = ("killed", None, 9, None) if victim == "leader" else ("lost", None, None, "supervisor_exited")
    assert (record.state, record.exit_code, record.signal, record.reason) == expected


async def test_a_tied_start_whose_connection_closes_before_its_answer_is_ended(place: Path) -> None:
    """SURV-R1: also one that a key names, for its caller was never told."""
    mark = marker()
    with Warden.started(place) as warden:
        leaders = warden.waiting_leaders()
        for pid in leaders:
            os.kill(pid, signal.SIGSTOP)
        client, other = warden.client(), warden.client()

        async def start() -> None:
            with pytest.raises(UnavailableError):
                await client.start(sh(f"sleep {mark}", tied=True), key="named")

        async with anyio.create_task_group() as group:
            group.start_soon(start)
            [job] = await until(lambda: other.jobs(live=True), what="the job's record")
            await client.aclose()
        for pid in leaders:
            if alive(pid):
                os.kill(pid, signal.SIGCONT)
        record = await other.wait(job.id, timeout=5)
        await other.aclose()

    assert (record.state, record.cause) == ("killed", "cancelled") and processes_with(mark) == []


async def test_a_host_that_dies_loses_its_hosted_and_its_tied_jobs_only(place: Path) -> None:
    """SURV-R1 ZERO-5"""
    with Warden.started(place) as warden:
        host, other = warden.client(), warden.client()
        hosted = await host.open_hosted("s")
        finished = await host.open_hosted("s")
        await host.finish_hosted(finished.id, result=1)
        tied = await host.start(sh("sleep 60", tied=True))
        untied = await host.start(sh("sleep 60", tied=True))
        free = await host.start(sh("echo ready; sleep 60"))
        await host.untie(untied.id)
        await wait_for_output(other, free.id, b"ready")

        await host.aclose()

        lost = await other.wait(hosted.id, timeout=5)
        gone = await other.wait(tied.id, timeout=5)
        states = [(await other.record(job.id)).state for job in (finished, untied, free)]
        await other.aclose()

    assert (lost.state, lost.reason, lost.exit_code) == ("lost", "host_lost", None)
    assert (gone.state, gone.cause, gone.reason) == ("killed", "cancelled", "owner_gone")
    assert states == ["exited", "running", "running"]
