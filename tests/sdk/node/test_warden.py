"""The warden as a process: how it starts, what it lets through, what it refuses, what it keeps."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import os
import shutil
import signal
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.support.commands import (
    Ran,
    joined,
    marker,
    processes_with,
    read_all,
    run,
    sh,
    until,
    wait_for_output,
)
from tests.support.waiting import alive, eventually
from tests.support.warden import Warden

from toolhost_sdk.endpoints.channel import IncomingCall
from toolhost_sdk.endpoints.unix_client import UnixChannel
from toolhost_sdk.endpoints.unix_server import serve_unix
from toolhost_sdk.errors import (
    CapacityError,
    GoneError,
    NoSpaceError,
    NotFoundError,
    StartupTimeoutError,
    UnavailableError,
)
from toolhost_sdk.node import procfs
from toolhost_sdk.node.client import WardenClient
from toolhost_sdk.node.port import CommandSpec
from toolhost_sdk.node.start import ensure_warden

pytestmark = pytest.mark.anyio
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
START = (
    "import sys; from pathlib import Path; from toolhost_sdk.node.start import ensure_warden;"
    "ensure_warden(Path(sys.argv[1])/'home', Path(sys.argv[1])/'run', 'test', ttl=60)"
)
CANARY = "canary-b7e151628aed2a6a"


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="th-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def shared() -> Iterator[Warden]:
    with tempfile.TemporaryDirectory(prefix="th-") as name, Warden.started(Path(name)) as warden:
        yield warden


@pytest.fixture
async def client(shared: Warden) -> AsyncIterator[WardenClient]:
    client = shared.client()
    yield client
    for job in await client.jobs(live=True):
        await client.terminate(job.id, grace=0)
    await client.aclose()


def test_starting_twice_or_at_once_gives_one_warden(place: Path) -> None:
    """ZERO-5"""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        starts = [pool.submit(ensure_warden, place / "home", place / "run", "test", ttl=60) for _ in range(4)]
        paths = {start.result(timeout=30) for start in starts}
    with Warden.started(place) as warden:
        assert paths == {warden.socket}
        named = [pid for pid in processes_with(str(place / "home")) if procfs.name(pid) == "th-warden"]
        assert named == [warden.pid]


def test_the_warden_is_nobodys_child_and_its_files_are_private(place: Path) -> None:
    """TREE-R6 LOG-R1"""
    with Warden.started(place) as warden:
        assert procfs.parent(warden.pid) != os.getpid()
        assert os.getsid(warden.pid) != os.getsid(0)
        for path in [warden.home, *warden.home.rglob("*")]:
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        assert stat.S_IMODE(warden.runtime.stat().st_mode) == 0o700


def test_a_warden_comes_back_after_its_death_and_never_gives_a_handle_twice(place: Path) -> None:
    """TOOL-R3 SURV-R2"""

    async def start(warden: Warden, key: str) -> tuple[str, str]:
        client = warden.client()
        record = await client.start(sh("sleep 30"), key=key)
        await client.aclose()
        return record.id, record.handle

    first = Warden.start(place)
    one = anyio.run(start, first, "one")
    first.kill()
    with Warden.started(place) as second:
        assert second.pid != first.pid
        assert anyio.run(start, second, "two")[1] == "job-2"
        assert anyio.run(start, second, "one") == one


def test_a_warden_that_cannot_start_says_why(place: Path) -> None:
    place.joinpath("home").write_text("a file in the way")

    with pytest.raises((UnavailableError, FileExistsError), match=r"home|exists"):
        ensure_warden(place / "home", place / "run", "test", timeout=10)


def test_a_socket_that_cannot_be_made_is_named_by_who_wanted_the_warden(place: Path) -> None:
    with pytest.raises(UnavailableError, match=r"too long.*107 bytes"):
        ensure_warden(place / "home", place / ("r" * 120), "test", timeout=10)


def test_a_warden_at_another_socket_is_named(place: Path) -> None:
    with Warden.started(place), pytest.raises(StartupTimeoutError, match=r"another warden holds .*home"):
        ensure_warden(place / "home", place / "elsewhere", "test", timeout=1)


def test_no_variable_of_the_host_reaches_warden_zygote_init_or_command(place: Path) -> None:
    """CMD-R3: a canary in the environment of whoever starts the warden."""
    env = {**os.environ, "RAY_ADDRESS": CANARY, "AWS_SECRET_ACCESS_KEY": CANARY, "HOME": f"/{CANARY}"}
    subprocess.run([sys.executable, "-c", START, str(place)], env=env, check=True, timeout=30)

    async def look(warden: Warden) -> tuple[bytes, list[str], list[str]]:
        client = warden.client()
        job = await client.start(sh("env; sleep 60"))
        printed = await wait_for_output(client, job.id, b"PATH=")
        assert job.pid is not None
        pids = [warden.pid, warden.zygote(), warden.init_of(job.pid), job.pid]
        leaks = [
            procfs.name(pid) for pid in pids if CANARY.encode() in procfs.read_bytes(f"/proc/{pid}/environ")
        ]
        wide = [procfs.name(pid) for pid in pids[1:3] if procfs.read_bytes(f"/proc/{pid}/environ")]
        await client.aclose()
        return printed, leaks, wide

    with Warden.started(place) as warden:
        printed, leaks, wide = anyio.run(look, warden)

    assert CANARY.encode() not in printed
    assert (leaks, wide) == ([], [])


@root_only
async def test_a_command_runs_as_the_user_asked_for(client: WardenClient) -> None:
    """CMD-R4 END-R3"""
    script = "id -un; id -u; id -g; id -G; echo $HOME $USER"
    named = await run(client, sh(script, user="nobody", cwd="/"))
    numbered = await run(client, sh(script, user="12345:54321", cwd="/"))
    files = await run(client, sh("echo x > /root/forbidden", user="nobody", cwd="/"))

    assert named.stdout.decode().split()[:4] == ["nobody", "65534", "65534", "65534"]
    assert (
        numbered.stdout.decode().split()[-4:-2] == ["54321", "/"]
        or b"12345\n54321\n54321\n" in numbered.stdout
    )
    assert files.record.exit_code != 0 and b"ermission denied" in files.stderr
    assert named.record.user == "nobody"


@root_only
async def test_killing_reaches_a_command_of_another_user(client: WardenClient) -> None:
    """ZERO-1"""
    mark = marker()
    job = await client.start(sh(f"setsid sleep {mark} & sleep {mark}", user="nobody", cwd="/"))

    await client.terminate(job.id, grace=0)

    assert processes_with(mark) == []


async def test_read_only_shows_everything_and_changes_nothing(client: WardenClient, tmp_path: Path) -> None:
    """TOOL-R9"""
    if not (await client.manifest())["read_only"]:
        ran = await run(client, sh("true", read_only=True))
        assert (ran.record.state, ran.record.start_error) == ("start_failed", "isolation")
        return
    tmp_path.joinpath("seen").write_text("visible")
    script = (
        "cat seen; echo a > new; echo b > /etc/new-file; echo c > /tmp/private && cat /tmp/private; "
        "mount -o remount,rw / ; echo d > /etc/new-file; echo gone > /dev/null && echo null"
    )

    ran = await run(client, sh(script, read_only=True, cwd=str(tmp_path)))

    assert ran.stdout == b"visiblec\nnull\n"
    assert ran.stderr.lower().count(b"read-only") >= 3
    assert not tmp_path.joinpath("new").exists() and not os.path.exists("/etc/new-file")
    assert not os.path.exists("/tmp/private")


async def test_a_fork_bomb_meets_the_limit_of_processes_and_leaves_nothing(client: WardenClient) -> None:
    """CMD-R7 ZERO-1"""
    if not (await client.manifest())["limits"]["pids"]:
        pytest.skip("this node has no pids controller")
    mark = marker()
    script = (
        "import os,subprocess,sys\n"
        "n=0\n"
        "try:\n"
        "    while n<200: subprocess.Popen(['sleep',sys.argv[1]],start_new_session=True); n+=1\n"
        "except OSError as e: print(n<30, e.errno)\n"
    )
    spec = CommandSpec(argv=["python3", "-I", "-S", "-c", script, mark], pids_limit=20)

    ran = await run(client, spec)

    assert ran.stdout == b"True 11\n"
    assert processes_with(mark) == []


async def test_a_limit_the_node_cannot_hold_is_refused_in_words(client: WardenClient) -> None:
    """CMD-R7 TREE-R1"""
    if (await client.manifest())["limits"]["memory"]:
        pytest.skip("this node has the memory controller")

    ran = await run(client, sh("true", memory_limit=1 << 30))

    assert (ran.record.state, ran.record.start_error, ran.record.exit_code) == (
        "start_failed",
        "isolation",
        126,
    )
    assert b"memory" in ran.stderr


async def test_limits_of_files_and_cores_are_set(client: WardenClient) -> None:
    """CMD-R7"""
    ran = await run(client, sh("ulimit -c; ulimit -n"))

    assert ran.stdout.split()[0] == b"0"
    assert int(ran.stdout.split()[1]) > 0


async def test_the_record_names_how_its_tree_was_held(client: WardenClient) -> None:
    """TREE-R1"""
    manifest = await client.manifest()
    record = (await run(client, sh("cat /proc/self/cgroup"))).record

    assert record.containment == "+".join(manifest["containment"])
    assert "subreaper" in manifest["containment"]


def _generation(manifest: dict[str, Any]) -> Path:
    """The cgroup above those of the jobs."""
    if manifest["cgroup_root"] is None:
        pytest.skip("this node gives no cgroups")
    return Path(manifest["cgroup_root"], f"toolhost-{manifest['namespace']}.{manifest['generation']}")


async def test_a_command_that_was_ended_before_its_first_instruction_never_runs(place: Path) -> None:
    """TREE-R5 TIME-R3: a frozen cgroup holds what is forked into it before it can ready itself for signals."""
    with Warden.started(place) as warden:
        client = warden.client()
        frozen = _generation(await client.manifest()) / "cgroup.freeze"
        warden.waiting_leaders()  # these are ready
        ran: list[Ran] = []

        async def start() -> None:
            ran.append(await run(client, sh("echo ran; sleep 60", timeout=0.1, grace=30.0)))

        async def caught() -> bool:
            return [job.state for job in await client.jobs(live=True)].count("killing") >= 2

        frozen.write_text("1")
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(start)
            await until(caught)
            frozen.write_text("0")
        await client.aclose()

    assert [(one.record.signal, one.record.timed_out, one.stdout) for one in ran] == [(15, True, b"")] * 4


async def test_a_cgroup_that_could_not_be_made_is_not_claimed(place: Path) -> None:
    """TREE-R1: the kernel takes no more of them, and commands are held by the subreaper alone."""
    with Warden.started(place) as warden:
        client = warden.client()
        manifest = await client.manifest()
        warden.waiting_leaders()
        group = _generation(manifest)
        (group / "cgroup.max.descendants").write_text("0")

        ran = [await run(client, sh("grep ^0: /proc/self/cgroup")) for _ in range(4)]
        await client.aclose()

    held = [(group.name.encode() in one.stdout, "cgroup" in one.record.containment) for one in ran]
    assert held[0] == (True, True) and held[-1] == (False, False)
    assert all(really == said for really, said in held)


async def test_secrets_of_the_environment_are_not_kept_with_the_job(
    client: WardenClient, shared: Warden
) -> None:
    """LOG-R1"""
    job = await client.start(sh("true", env={"TOKEN": CANARY}))
    await client.wait(job.id)

    kept = shared.home / "jobs" / job.id
    assert {"spec", "state", "log", "index"} <= {path.name for path in kept.iterdir()}
    assert json.loads((kept / "spec").read_text())["env_names"] == ["TOKEN"]
    assert json.loads((kept / "state").read_text())["state"] == "exited"
    found = [
        path for path in shared.home.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()
    ]
    assert found == []


async def test_a_flood_hurts_nobody(client: WardenClient, shared: Warden) -> None:
    """ZERO-4 LOG-R5: 5 MiB/s, a reader that stalls, and others that must not notice."""
    pacing = "import os,time\nwhile 1: os.write(1,b'x'*65535+b'\\n'); time.sleep(0.0125)"
    job = await client.start(CommandSpec(argv=["python3", "-I", "-S", "-c", pacing], log_limit=8 << 20))
    await wait_for_output(client, job.id, b"\n")
    other = shared.client()
    before = _resident(shared.pid)

    spent = []
    for _ in range(100):
        began = time.perf_counter()
        await other.record(job.id)
        spent.append(time.perf_counter() - began)
        await anyio.sleep(0.01)
    ended = await client.terminate(job.id, grace=0)
    await other.aclose()

    assert ended.size > 1 << 20
    assert statistics.quantiles(spent, n=20)[18] < 0.05
    assert _resident(shared.pid) - before < 16 << 20


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_many_jobs_leave_no_descriptor_process_or_cgroup(client: WardenClient, shared: Warden) -> None:
    """ZERO-1 ZERO-5"""
    await run(client, sh("true"))
    manifest = await client.manifest()
    shared.waiting_leaders()  # those hold descriptors too
    descriptors = shared.descriptors()

    async with anyio.create_task_group() as group:
        for _ in range(60):
            group.start_soon(run, client, sh("echo $$; cat", stdin=b"x" * 100_000, state_file=True))

    eventually(lambda: shared.descriptors() <= descriptors + 6, what="no descriptor left open")
    eventually(lambda: len(procfs.descendants(shared.zygote())) <= 2 * 3, what="only inits in stock")
    if manifest["cgroup_root"] is not None:
        parent = Path(manifest["cgroup_root"]) / f"toolhost-{manifest['namespace']}.{manifest['generation']}"
        eventually(lambda: sum(path.is_dir() for path in parent.iterdir()) <= 3, what="only cgroups in stock")


async def test_logs_are_gone_after_their_retention_and_say_so(place: Path) -> None:
    """LOG-R7"""
    with Warden.started(place, retention=0.5, sweep_every=0.3) as warden:
        client = warden.client()
        job = await client.start(sh("echo kept"))
        await client.wait(job.id)

        async def gone() -> bool:
            try:
                await client.read(job.id)
            except GoneError:
                return True
            return False

        await until(gone)
        with pytest.raises(GoneError, match="kept that long"):
            await client.read(job.id)
        with pytest.raises(NotFoundError, match="no job"):
            await client.read("0123456789abcdef")
        assert not (warden.home / "jobs" / job.id).exists()
        assert (await client.start(sh("true"))).handle == "job-2"
        await client.aclose()


async def test_over_the_quota_of_all_logs_nothing_is_started(place: Path) -> None:
    """LOG-R7"""
    with Warden.started(place, log_quota=1 << 20, sweep_every=0.2) as warden:
        client = warden.client()
        await run(client, sh("head -c 3000000 /dev/zero"))

        async def refused() -> bool:
            try:
                await client.start(sh("true"))
            except NoSpaceError as error:
                return "quota" in error.message
            return False

        await until(refused)
        await client.aclose()


@root_only
async def test_a_full_disk_stops_starts_but_neither_jobs_nor_their_endings(place: Path) -> None:
    """LOG-R6 ZERO-1 ZERO-2"""
    disk = place / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if (await anyio.run_process(mount, check=False)).returncode != 0:
        pytest.skip("this machine does not let us mount")
    try:
        with Warden.started(disk) as warden:
            client = warden.client()
            with pytest.raises(NoSpaceError):
                await client.start(CommandSpec(argv=["cat"], stdin=b"x" * 4_000_000))
            job = await client.start(sh("read line; head -c 4000000 /dev/zero; exit 9", stdin="pipe"))
            await client.write_stdin(job.id, b"\n")
            record = await client.wait(job.id, timeout=20)
            chunks = await read_all(client, job.id)

            assert (record.exit_code, record.size) == (9, 4_000_000)
            assert [gap.reason for gap in record.gaps] == ["no_space"]
            assert (
                sum(len(chunk.data) for chunk in chunks) + sum(gap.end - gap.start for gap in record.gaps)
                == 4_000_000
            )
            with pytest.raises(NoSpaceError):
                for _ in range(20):
                    await client.start(sh("true"))
            shutil.rmtree(warden.home / "jobs" / job.id)
            assert (await run(client, sh("echo again"))).stdout == b"again\n"
            await client.aclose()
    finally:
        await anyio.run_process(["umount", "-l", str(disk)])


async def test_a_full_table_of_descriptors_refuses_starts_and_does_no_lasting_harm(place: Path) -> None:
    """SURV-R3 ZERO-2: whatever was about to be opened when the last one went."""
    few = ["sh", "-c", 'ulimit -n 80; exec "$0" "$@"', sys.executable, "-c", START, str(place)]
    await anyio.run_process(few)
    warden = Warden.start(place)
    client = warden.client()
    running = []
    with pytest.raises(CapacityError, match="descriptors"):
        while len(running) < 40:
            running.append(await client.start(sh("sleep 60")))
    for _ in range(20):
        with pytest.raises(CapacityError, match=r"descriptors|fork"):
            await client.start(sh("sleep 60"))
    os.kill(warden.zygote(), signal.SIGKILL)
    for job in running:
        assert (await client.terminate(job.id, grace=0)).signal == 9

    again = await run(client, sh("exit 3"))
    live = await client.jobs(live=True)
    await client.aclose()
    warden.stop()

    assert (again.record.state, again.record.exit_code, live) == ("exited", 3, [])


async def test_a_cancelled_start_gives_its_caller_nothing_but_the_cancellation(tmp_path: Path) -> None:
    """SURV-R1: also when the warden cannot be asked to end what may have started."""

    async def unwilling(call: IncomingCall) -> Any:
        if call.method == "start":
            await anyio.sleep_forever()
        raise UnavailableError("on its way out")

    async with serve_unix(unwilling, tmp_path / "s.sock"):
        client = WardenClient(UnixChannel(tmp_path / "s.sock"))
        with anyio.move_on_after(0.1) as scope:
            await client.start(sh("true"))
        await client.aclose()

    assert scope.cancelled_caught


async def test_a_cancelled_start_that_nobody_can_name_leaves_nothing(
    client: WardenClient, place: Path
) -> None:
    """SURV-R1"""
    mark = marker()
    for delay in (0.0, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008):
        job = None
        with anyio.move_on_after(delay):
            job = await client.start(sh(f"sleep {mark}"))
        if job is not None:
            await client.terminate(job.id, grace=0)

    async def nothing() -> bool:
        return not await client.jobs(live=True) and not processes_with(mark)

    await until(nothing)


def _python_for_everyone(library: Path) -> str:
    """An interpreter that every user can run, with copies of what the warden imports."""
    python = "/usr/bin/python3"
    version = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    if (
        not os.path.exists(python)
        or subprocess.run([python, "-c", version], check=False, timeout=30).returncode != 0
    ):
        pytest.skip("no interpreter of this version that an ordinary user can run")
    for name in ("toolhost_sdk", "anyio", "msgpack", "typing_extensions", "idna", "sniffio"):
        found = importlib.util.find_spec(name)
        if found is not None and found.submodule_search_locations:
            shutil.copytree(found.submodule_search_locations[0], library / name)
        elif found is not None and found.origin is not None:
            shutil.copy(found.origin, library)
    return python


async def test_a_termination_goes_on_when_its_caller_goes_away(client: WardenClient) -> None:
    """TREE-R5 ZERO-1"""
    mark = marker()
    job = await client.start(sh(f"trap '' TERM; echo ready; sleep {mark}; sleep {mark}"))
    hosted = await client.open_hosted("s")
    await wait_for_output(client, job.id, b"ready")

    for name in (job.id, hosted.id):
        with anyio.move_on_after(0.2):
            await client.terminate(name, grace=0.6)

    assert (await client.wait(job.id, timeout=3)).signal == 9
    assert (await client.wait(hosted.id, timeout=3)).state == "killed"
    assert processes_with(mark) == []


@root_only
def test_an_ordinary_user_has_a_warden_too(place: Path) -> None:
    """TREE-R1 CMD-R4: no cgroup, but the subreaper; other users are refused in words."""
    home = place / "own"
    home.mkdir()
    os.chown(home, 65534, 65534)
    place.chmod(0o755)
    script = (
        "import anyio, json, sys, time\n"
        "from pathlib import Path\n"
        "from toolhost_sdk.node.start import ensure_warden\n"
        "from toolhost_sdk.node.client import WardenClient\n"
        "from toolhost_sdk.node.port import CommandSpec\n"
        "from toolhost_sdk.endpoints.unix_client import UnixChannel\n"
        "home=Path(sys.argv[1])\n"
        "async def main(path):\n"
        "    c=WardenClient(UnixChannel(path)); out={}\n"
        "    m=await c.manifest(); out['ranks']=m['containment']\n"
        "    a=await c.start(CommandSpec(argv=['sh','-c','id -un; setsid sleep '+sys.argv[2]+' & exit 4']))\n"
        "    a=await c.wait(a.id); out['plain']=[a.state,a.exit_code,len(a.leftovers)]\n"
        "    b=await c.start(CommandSpec(argv=['true'],user='root')); b=await c.wait(b.id)\n"
        "    out['root']=[b.state,b.message]\n"
        "    d=await c.start(CommandSpec(argv=['sh','-c','touch /tmp/x && ! touch /var/x'],read_only=True))\n"
        "    d=await c.wait(d.id); out['ro']=[d.state,d.exit_code,m['read_only']]\n"
        "    await c.stop(); await c.aclose(); print(json.dumps(out))\n"
        "anyio.run(main, ensure_warden(home/'h',home/'r','test'))\n"
    )
    mark = marker()
    python = _python_for_everyone(home / "lib")

    done = subprocess.run(
        [python, "-c", script, str(home), mark],
        user=65534, group=65534, extra_groups=[], capture_output=True, text=True, check=False, timeout=40,
        env={"PYTHONPATH": str(home / "lib")}, cwd="/",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out["plain"] == ["exited", 4, 1]
    assert out["root"][0] == "start_failed" and "root" in out["root"][1]
    assert out["ro"][:2] == (["exited", 0] if out["ro"][2] else ["start_failed", 126])
    assert "subreaper" in out["ranks"]
    assert processes_with(mark) == []


@root_only
def test_what_the_kernel_will_not_let_us_end_keeps_its_job_in_killing(place: Path) -> None:
    """ZERO-1: an ordinary user's warden and a process that became root; then somebody who may ends it."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("needs setpriv")
    home = place / "own"
    home.mkdir()
    place.chmod(0o755)
    os.chown(home, 65534, 65534)
    shutil.copy(setpriv, place / "raise")
    (place / "raise").chmod(0o4755)
    script = (
        "import anyio, json, sys\n"
        "from pathlib import Path\n"
        "from toolhost_sdk.node.start import ensure_warden\n"
        "from toolhost_sdk.node.client import WardenClient\n"
        "from toolhost_sdk.node.port import CommandSpec\n"
        "from toolhost_sdk.endpoints.unix_client import UnixChannel\n"
        "async def main(path):\n"
        "    c=WardenClient(UnixChannel(path))\n"
        "    a=await c.start(CommandSpec(argv=[sys.argv[2],'--reuid','0','sleep',sys.argv[3]]))\n"
        "    await anyio.sleep(0.3)\n"
        "    b=await c.terminate(a.id,grace=0); print(json.dumps([b.state,list(b.pids),b.exit_code]),flush=True)\n"
        "    b=await c.wait(a.id,timeout=20); print(json.dumps([b.state,b.signal,list(b.pids)]),flush=True)\n"
        "    await c.stop(); await c.aclose()\n"
        "anyio.run(main, ensure_warden(Path(sys.argv[1])/'h',Path(sys.argv[1])/'r','test'))\n"
    )
    mark = marker()
    with subprocess.Popen(
        [_python_for_everyone(home / "lib"), "-c", script, str(home), str(place / "raise"), mark],
        user=65534, group=65534, extra_groups=[], stdout=subprocess.PIPE, cwd="/",
        env={"PYTHONPATH": str(home / "lib")},
    ) as inner:  # fmt: skip
        assert inner.stdout is not None
        stuck = json.loads(inner.stdout.readline())
        (pid,) = [pid for pid in processes_with(mark) if procfs.name(pid) == "sleep"]
        os.kill(pid, 9)
        done = json.loads(inner.stdout.readline())

    assert stuck == ["killing", [pid], None]
    assert done == ["killed", 9, []]


async def test_a_stray_with_our_label_is_swept_and_others_are_not(client: WardenClient) -> None:
    """LEASE-R2 ZERO-7"""
    namespace = (await client.manifest())["namespace"]
    mark = marker()
    stray = await anyio.open_process(["sleep", mark], env={"TOOLHOST_JOB": f"{namespace}/0123456789abcdef"})
    other = await anyio.open_process(["sleep", mark], env={"TOOLHOST_JOB": f"{namespace}x/0123456789abcdef"})
    job = await client.start(sh(f"sleep {mark}"))

    ended = await client.sweep()

    assert [thing["pid"] for thing in ended if thing["kind"] == "process"] == [stray.pid]
    eventually(lambda: not alive(stray.pid), what="the stray's end")
    assert alive(other.pid) and (await client.record(job.id)).state == "running"
    for process in (stray, other):
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_text_of_a_stream_is_whole_whatever_arrived_between(client: WardenClient) -> None:
    """LOG-R3 ZERO-3"""
    ran = await run(client, sh("printf 'one\\n'; printf 'two\\n' >&2; printf 'three\\n'"))

    assert (ran.stdout, ran.stderr) == (b"one\nthree\n", b"two\n")
    assert joined(await read_all(client, ran.record.id, offset=4), "stdout") == b"three\n"
