"""Jobs against a real warden: shell commands, and work of the server's own process."""

from __future__ import annotations

import base64
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream
from inline_snapshot import snapshot

from toolhost.tools import tool
from toolhost.tools.job_book import tool_state
from toolhost.tools.jobs import AsyncBashTool, AsyncJobTool, JobContext, JobInfo, job_tool
from toolhost.tools.local import LocalServer
from toolhost_sdk.errors import ConflictError, UsageError
from toolhost_sdk.node.client import WardenClient
from toolhost_sdk.node.port import CommandSpec, JobRecord

Serve = Callable[..., AbstractAsyncContextManager[LocalServer]]
pytestmark = pytest.mark.anyio


class Worker(AsyncJobTool):
    """Work of every kind, held at gates that the test opens."""

    def __init__(self, max_running: int = 4) -> None:
        super().__init__(max_running=max_running)
        self.gate = threading.Event()
        self.started: list[str] = []

    @job_tool
    def count(self, to: int, fail: bool = False) -> JobInfo:
        """Count.

        Args:
            to: how far.
        """

        def work(job: JobContext) -> dict[str, Any]:
            for number in range(to):
                job.write(b"%d\n" % number)
                job.progress(number + 1, to, "counting")
            if fail:
                raise ConflictError("counted wrong")
            return {"counted": to}

        return self.jobs.submit(work, label=f"count to {to}")  # type: ignore[return-value]  # awaited by the platform

    @tool
    async def hold(self, name: str, timeout: float | None = None) -> str:
        """Submit work that waits for the gate in a thread."""

        def work(job: JobContext) -> dict[str, Any]:
            self.started.append(name)
            job.write(f"{name} began\n".encode())
            while not (self.gate.wait(0.02) or job.cancelled):
                pass
            return {"name": name}

        return (await self.jobs.submit(work, label=name, timeout=timeout)).handle

    @tool
    async def wait_async(self, timeout: float | None = None) -> str:
        """Submit async work that never ends by itself."""

        async def work(job: JobContext) -> dict[str, Any]:
            job.write(b"partial\n")
            await anyio.sleep_forever()
            return {}

        return (await self.jobs.submit(work, timeout=timeout)).handle

    @tool
    async def crash(self) -> str:
        """Submit work with a bug."""

        def work(job: JobContext) -> dict[str, Any]:
            raise RuntimeError("/secret/path")

        return (await self.jobs.submit(work)).handle

    @tool
    def open_gate(self) -> list[str]:
        """Let held work end."""
        self.gate.set()
        return self.started


class Grandchild(Worker):
    """Two levels below AsyncJobTool."""

    def __init__(self, prefix: str) -> None:
        super().__init__(max_running=1)
        self.prefix = prefix

    @tool
    def who(self) -> str:
        """Prove that both initialisers ran."""
        return f"{self.prefix} {self.max_running} {self.gate.is_set()}"


async def call(server: LocalServer, function: str, /, **arguments: Any) -> Any:
    outcome = await server.call(function, arguments)
    assert not outcome.get("is_error"), outcome
    if (structured := outcome.get("structured")) is None:
        return outcome["content"][0]["text"]
    return structured["result"] if set(structured) == {"result"} else structured


async def test_a_fast_command_completes_inside_run(serve: Serve) -> None:
    """JOB-A1, JOB-R2, JOB-R3"""
    async with serve(AsyncBashTool.bind()) as server:
        status = await call(server, "run", command="echo out; exit 0")

    assert {**status, "seconds": 0} == snapshot(
        {
            "job_id": "job-1",
            "state": "succeeded",
            "done": True,
            "label": "echo out; exit 0",
            "seconds": 0,
            "output": "out",
            "next_offset": 4,
            "result": {"exit_code": 0, "signal": None},
            "error": None,
            "progress": None,
            "hint": "exit 0",
            "running": [],
        }
    )


async def test_a_long_command_polls_to_its_end(serve: Serve) -> None:
    """JOB-A2, TOOL-R1"""
    async with serve(AsyncBashTool.bind()) as server:
        first = await call(server, "run", command="echo a; sleep 0.6; echo b; exit 4", wait_seconds=0)
        last = await call(server, "run_status", wait_seconds=20)

    assert (first["state"], first["done"], first["hint"]) == snapshot(
        ("running", False, "still running; run_status waits for it, run_output reads its output.")
    )
    assert (last["state"], last["result"], last["error"]) == snapshot(
        ("failed", {"exit_code": 4, "signal": None}, {"code": "exit", "message": "exit 4"})
    )
    assert first["output"] + last["output"] in ("a\nb", "ab")


async def test_work_that_raises_is_failed_with_its_words(serve: Serve) -> None:
    """JOB-A3, JOB-R2"""
    async with serve(Worker.bind()) as server:
        status = await call(server, "count", to=2, fail=True)

    assert (status["state"], status["done"], status["error"], status["result"]) == snapshot(
        ("failed", True, {"code": "conflict", "message": "counted wrong"}, None)
    )


async def test_a_bug_in_work_reaches_the_model_as_an_incident(serve: Serve) -> None:
    """JOB-A3, SEC-R5"""
    async with serve(Worker.bind()) as server:
        handle = await call(server, "crash")
        status = await call(server, "count_status", job_id=handle, wait_seconds=10)

    assert status["state"] == "failed" and status["error"]["code"] == "internal"
    assert "secret" not in str(status)


async def test_work_writes_output_progress_and_a_result(serve: Serve) -> None:
    """JOB-R1, JOB-R2"""
    async with serve(Worker.bind()) as server:
        status = await call(server, "count", to=3)

    assert (status["state"], status["output"], status["result"]) == ("succeeded", "0\n1\n2", {"counted": 3})
    assert status["progress"] == {"progress": 3, "total": 3, "message": "counting"}


async def test_cancel_ends_the_tree_and_keeps_the_output(serve: Serve) -> None:
    """JOB-A4, JOB-R1"""
    async with serve(AsyncBashTool.bind()) as server:
        await call(server, "run", command="echo kept; setsid sleep 4801 & sleep 4801", wait_seconds=0.3)
        status = await call(server, "run_cancel", job_id="job-1")
        again = await call(server, "run_cancel", job_id="job-1")
        output = await call(server, "run_output", job_id="job-1")

    assert (status["state"], again["state"]) == ("cancelled", "cancelled")
    assert output.startswith("kept\n")
    assert (await anyio.run_process(["pgrep", "-f", "sleep 4801"], check=False)).stdout == b""


async def test_cancelled_work_is_told_and_its_output_kept(serve: Serve) -> None:
    """JOB-A4: a thread sees `cancelled`, async work is cancelled."""
    async with serve(Worker.bind()) as server:
        threaded = await call(server, "hold", name="x")
        task = await call(server, "wait_async")
        await call(server, "count_status", job_id=threaded, wait_seconds=0.2)
        states = [(await call(server, "count_cancel", job_id=handle))["state"] for handle in (threaded, task)]
        output = await call(server, "count_output", job_id=threaded)

    assert states == ["cancelled", "cancelled"]
    assert output.startswith("x began\n")


async def test_pollers_wait_without_blocking_anybody(serve: Serve) -> None:
    """JOB-A5, JOB-R3: any number of pollers on one job, and other calls pass."""
    async with serve(AsyncBashTool.bind()) as server:
        for _ in range(4):
            await call(server, "run", command="sleep 60", wait_seconds=0)
        async with anyio.create_task_group() as group:
            for _ in range(40):
                group.start_soon(lambda: call(server, "run_status", job_id="job-1", wait_seconds=30))
            await anyio.wait_all_tasks_blocked()
            started = time.monotonic()
            listed = await call(server, "run_jobs")
            took = time.monotonic() - started
            await call(server, "run_cancel", job_id="job-1")

    assert took < 1
    assert [line["state"] for line in listed] == ["running"] * 4


async def test_jobs_over_the_bound_wait_their_turn(serve: Serve) -> None:
    """JOB-R4: and keep their handle when they start."""
    async with serve(AsyncBashTool.bind(max_running=1)) as server:
        first = await call(server, "run", command="echo one; sleep 0.5", wait_seconds=0)
        second = await call(server, "run", command="echo two; exit 3", wait_seconds=0)
        third = await call(server, "run", command="echo three", wait_seconds=0)
        listed = [line["state"] for line in await call(server, "run_jobs")]
        cancelled = await call(server, "run_cancel", job_id=third["job_id"])
        done = await call(server, "run_status", job_id=second["job_id"], wait_seconds=20)
        output = await call(server, "run_output", job_id=second["job_id"])
        names = [(line["job_id"], line["state"]) for line in await call(server, "run_jobs")]

    assert (first["state"], second["state"], second["hint"]) == snapshot(
        ("running", "queued", "waits for a free place; run_status waits with it, run_cancel ends it")
    )
    assert listed == ["running", "queued", "queued"]
    assert cancelled["state"] == "cancelled"
    assert (done["job_id"], done["state"], done["result"]) == (
        "job-2",
        "failed",
        {"exit_code": 3, "signal": None},
    )
    assert output.startswith("two\n[job-2 exit 3 |")
    assert names == [("job-1", "succeeded"), ("job-2", "failed"), ("job-3", "cancelled")]


async def test_work_over_the_bound_waits_its_turn(serve: Serve) -> None:
    """JOB-R4: `max_running=1` is one at a time."""
    async with serve(Worker.bind(max_running=1)) as server:
        handles = [await call(server, "hold", name=name) for name in ("a", "b", "c")]
        states = [
            (await call(server, "count_status", job_id=handle, wait_seconds=0.1))["state"]
            for handle in handles
        ]
        await call(server, "open_gate")
        ends = [
            (await call(server, "count_status", job_id=handle, wait_seconds=10))["result"]
            for handle in handles
        ]
        order = await call(server, "open_gate")

    assert states == ["running", "queued", "queued"]
    assert ends == [{"name": "a"}, {"name": "b"}, {"name": "c"}]
    assert order == ["a", "b", "c"]


async def test_incremental_reads_reassemble_the_exact_bytes(serve: Serve) -> None:
    """JOB-A6, JOB-R5: while running and after."""
    got = b""
    async with serve(AsyncBashTool.bind()) as server:
        await call(
            server,
            "run",
            command="for i in 1 2 3 4; do head -c 30000 /dev/urandom; sleep 0.1; done",
            wait_seconds=0,
        )
        with anyio.fail_after(20):
            while True:
                text = await call(
                    server, "run_output", job_id="job-1", offset=len(got), max_bytes=20_000, encoding="base64"
                )
                encoded, _, facts = text.rpartition("\n")
                got += base64.b64decode(encoded)
                if facts.endswith("| end]"):
                    break
        log = await call(server, "run_output", job_id="job-1", encoding="base64", offset=len(got) - 10)

    assert len(got) == 120_000
    assert base64.b64decode(log.split("\n")[0]) == got[-10:]


async def test_text_read_in_steps_never_tears_a_character_or_a_line(serve: Serve) -> None:
    """LOG-R8, JOB-R5"""
    seen: list[str] = []
    offset = 0
    async with serve(AsyncBashTool.bind()) as server:
        await call(server, "run", command='for i in $(seq 200); do echo "$i grüße 🦀"; done', wait_seconds=10)
        while True:
            text = await call(server, "run_output", job_id="job-1", offset=offset, max_bytes=100)
            body, _, facts = text.rpartition("\n")
            seen += body.split("\n")
            if facts.endswith("| end]"):
                break
            offset = int(facts.partition("offset=")[2].rstrip("]"))

    assert seen == [f"{number} grüße 🦀" for number in range(1, 201)]


async def test_output_is_read_by_tail_lines_and_pattern(serve: Serve) -> None:
    """TOOL-R4"""
    async with serve(AsyncBashTool.bind()) as server:
        await call(server, "run", command="seq 1000; echo oops >&2; seq 1001 1100", wait_seconds=10)
        tail = await call(server, "run_output", job_id="job-1", tail=2)
        lines = await call(server, "run_output", job_id="job-1", lines="400:402")
        grep = await call(server, "run_output", job_id="job-1", grep="^(77|oops|stderr: oops)$", context=1)
        beyond = await call(server, "run_output", job_id="job-1", lines="9000:9001")

    assert tail == "1099\n1100\n[job-1 exit 0 | 2 lines]"
    assert lines == "400: 400\n401: 401\n402: 402\n[job-1 exit 0 | 3 lines]"
    assert re.sub(r"\d+(-|:) (1000|stderr|1001)", r"N\1 \2", grep).startswith("76- 76\n77: 77\n78- 78\n")
    assert "stderr: oops" in grep and grep.endswith("[job-1 exit 0 | 2 matches]")
    assert beyond == "[job-1 exit 0 | there is no line 9000]"


async def test_a_secret_written_in_two_halves_is_never_shown(serve: Serve) -> None:
    """Execution contract 9.4: not by polls either, whose borders fall where the job happens to be."""
    spec = AsyncBashTool.bind(env={"KEY": "sk-12345-secret"}, secrets=("KEY",))
    command = 'printf %s "key=${KEY:0:8}"; sleep 1; echo "${KEY:8} end"'

    async with serve(spec) as server:
        first = await call(server, "run", command=command, wait_seconds=0.4)
        middle = await call(server, "run_output", job_id="job-1")
        raw = await call(server, "run_output", job_id="job-1", encoding="base64")
        last = await call(server, "run_status", job_id="job-1", wait_seconds=20)

    assert (first["output"], last["output"]) == ("key=", "[masked] end")
    assert middle.startswith("key=\n") and base64.b64decode(raw.split("\n")[0]) == b"key="


async def test_a_gap_in_a_log_is_declared(serve: Serve, executor: WardenClient) -> None:
    """TOOL-R7, LOG-R6"""
    argv = ["bash", "-c", "yes 0123456789abcde | head -c 40000000"]
    job = await executor.start(CommandSpec(argv=argv, session="gaps", log_limit=20 << 20))
    record = await executor.wait(job.id, timeout=60)
    [gap] = record.gaps

    async with serve(AsyncBashTool.bind(), name="gaps") as server:
        status = await call(server, "run_status", job_id="job-1")
        inside = await call(server, "run_output", job_id="job-1", offset=gap.start + 5)
        before = await call(server, "run_output", job_id="job-1", offset=gap.start - 160)
        tail = await call(server, "run_output", job_id="job-1", tail=1)

    assert f"{gap.end - gap.start} bytes of output were not kept (log_limit)" in status["hint"]
    assert (
        inside == f"[job-1 | bytes {gap.start}-{gap.end} were not kept (log_limit) | next: offset={gap.end}]"
    )
    assert f"bytes {gap.start - 160}-{gap.start} of 40000000 | next: offset={gap.start}]" in before
    assert tail.startswith("0123456789abcde\n")


REFUSED = [
    ({"tail": 1, "grep": "x"}, "'tail' and 'grep' both choose what to read: give one of them [usage]"),
    ({"lines": "5:2"}, "'5:2' is no range of lines: write it as '400:480', counted from 1 [usage]"),
    ({"offset": 9}, "offset 9 lies beyond the output of 'job-1', which has 3 bytes [usage]"),
    (
        {"grep": r"(a)\1"},
        r"'(a)\\1' cannot be searched for: invalid escape sequence: \1 (RE2 syntax: no backreferences, no lookaround)"
        " [usage]",
    ),
    ({"encoding": "base64", "tail": 1}, "'tail' chooses lines, base64 shows bytes: use offset and max_bytes [usage]"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
async def test_a_read_that_cannot_be_meant_is_explained(
    serve: Serve, arguments: dict[str, Any], words: str
) -> None:
    """LOG-R4: nothing is clamped in silence."""
    async with serve(AsyncBashTool.bind()) as server:
        await call(server, "run", command="echo hi", wait_seconds=10)
        outcome = await server.call("run_output", {"job_id": "job-1", **arguments})

    assert outcome["content"][0]["text"] == words


async def test_a_search_with_a_hostile_pattern_takes_linear_time(serve: Serve) -> None:
    """TOOL-R4: safe pattern engine."""
    async with serve(AsyncBashTool.bind()) as server:
        await call(
            server,
            "run",
            command="for i in $(seq 500); do printf 'a%.0s' $(seq 300); echo; done",
            wait_seconds=20,
        )
        started = time.monotonic()
        text = await call(server, "run_output", job_id="job-1", grep="(a+)+(a+)+(a+)+$b")

    assert time.monotonic() - started < 3
    assert "0 matches" in text


async def test_a_timeout_ends_a_job_and_keeps_its_output(serve: Serve) -> None:
    """JOB-A9, JOB-R7"""
    async with serve(AsyncBashTool.bind()) as server:
        status = await call(server, "run", command="echo partial; sleep 60", timeout=0.5)

    assert (status["state"], status["output"], status["error"]) == ("timed_out", "partial", None)
    assert status["hint"] == snapshot("timed out after 0.5 s, killed by SIGTERM")


async def test_a_timeout_ends_hosted_work_and_keeps_its_output(serve: Serve) -> None:
    """JOB-A9"""
    async with serve(Worker.bind()) as server:
        handles = [
            await call(server, "wait_async", timeout=0.3),
            await call(server, "hold", name="x", timeout=0.3),
        ]
        statuses = [await call(server, "count_status", job_id=handle, wait_seconds=10) for handle in handles]

    assert [(status["state"], status["output"]) for status in statuses] == [
        ("timed_out", "partial"), ("timed_out", "x began"),
    ]  # fmt: skip


async def test_a_reader_that_leaves_ends_nothing(serve: Serve) -> None:
    """JOB-R7, ZERO-4: also the caller of `run` itself, once the job has its name."""
    async with serve(AsyncBashTool.bind()) as server:
        with anyio.move_on_after(0.6):
            await call(server, "run", command="sleep 1.2; echo done", wait_seconds=30)
        with anyio.move_on_after(0.1):
            await call(server, "run_status", wait_seconds=30)
        status = await call(server, "run_status", job_id="job-1", wait_seconds=20)

    assert (status["state"], status["output"]) == ("succeeded", "done")


async def test_a_wait_is_capped_at_45_seconds(serve: Serve) -> None:
    """JOB-R3: more is accepted, 45 is what is waited; clients give up at 60."""
    async with serve(AsyncBashTool.bind()) as server:
        await call(server, "run", command="sleep 300", wait_seconds=0)
        outcome = await server.call("run_status", {"wait_seconds": -1})
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: call(server, "run_status", wait_seconds=1e9))
            await anyio.wait_all_tasks_blocked()
            await call(server, "run_cancel", job_id="job-1")

    assert outcome["is_error"]


async def test_a_client_that_comes_back_finds_its_job_after_the_servers_end(
    serve: Serve, executor: WardenClient, warden_socket: Path, tmp_path: Path
) -> None:
    """JOB-A7, JOB-A8, JOB-R5, JOB-R6: a killed host loses its own work, and no command that has a name; SURV-R1: what
    a caller was still waiting for, and nobody could name, ends with it."""
    program = Path(__file__).parent / "job_host.py"
    async with await anyio.open_process(
        [sys.executable, str(program), str(warden_socket), str(tmp_path), "survivors"]
    ) as host:
        assert host.stdout is not None
        with anyio.fail_after(30):
            lines = BufferedByteReceiveStream(host.stdout)
            handles = (await lines.receive_until(b"\n", 200)).decode().split()
        host.kill()

    [waited_for] = await executor.jobs(session="survivors-shell")
    waited_for = await executor.wait(waited_for.id, timeout=20)
    async with serve(AsyncBashTool.bind(), name="survivors") as server:
        command = await call(server, "run_status", job_id=handles[0], wait_seconds=20)
        hosted = await call(server, "run_status", job_id=handles[1], wait_seconds=20)
        output = await call(server, "run_output", job_id=handles[0])

    assert (command["state"], command["result"]) == ("succeeded", {"exit_code": 0, "signal": None})
    assert output.startswith("begun\nended\n")
    assert (waited_for.done, waited_for.cancelled) == (True, True)
    assert (await anyio.run_process(["pgrep", "-f", "sleep 4805"], check=False)).stdout == b""
    assert (hosted["state"], hosted["error"]["code"], hosted["output"]) == (
        "failed",
        "host_lost",
        "half",
    )


async def test_a_stopped_server_cancels_its_jobs(serve: Serve, executor: WardenClient) -> None:
    """JOB-R7: running and waiting ones, and nothing is left running."""
    async with serve(AsyncBashTool.bind(max_running=1), name="halts") as server:
        await call(server, "run", command="sleep 4802", wait_seconds=0)
        await call(server, "run", command="sleep 4803", wait_seconds=0)
    async with serve(Worker.bind(), name="halts-too") as server:
        await call(server, "wait_async")

    records = [*await executor.jobs(session="halts"), *await executor.jobs(session="halts-too")]
    assert [(record.done, record.cause) for record in records] == [(True, "server_stopped")] * 3
    assert [tool_state(record) for record in records] == ["cancelled"] * 3


async def test_results_name_the_other_jobs_with_unread_output(serve: Serve) -> None:
    """JOB-R7, TOOL-R6"""
    async with serve(AsyncBashTool.bind()) as server:
        await call(server, "run", command="sleep 60", wait_seconds=0)
        status = await call(server, "run", command="true", wait_seconds=10)

    assert len(status["running"]) == 1
    assert re.fullmatch(r'job-1 "sleep 60" \d+\.\d+ s', status["running"][0])


async def test_the_footer_says_when_a_job_waits_for_input(serve: Serve, executor: WardenClient) -> None:
    """STDIN-R1, TOOL-R6"""
    await executor.start(CommandSpec(argv=["cat"], stdin="pipe", session="asks", label="cat"))
    async with serve(AsyncBashTool.bind(), name="asks") as server:
        with anyio.fail_after(20):
            while True:
                status = await call(server, "run", command="true", wait_seconds=5)
                if "waiting on stdin" in status["running"][0]:
                    break
        waiting = await call(server, "run_status", job_id="job-1", wait_seconds=0)

    assert waiting["hint"] == snapshot(
        "still running; run_status waits for it, run_output reads its output. It waits for input that will not come: "
        "cancel it."
    )


async def test_no_more_than_64_jobs_live_at_once(serve: Serve) -> None:
    """Execution contract 9.1: warned of from 56 on, refused beyond, with the way out."""
    async with serve(AsyncBashTool.bind(max_running=1)) as server:
        for _ in range(64):
            await call(server, "run", command="sleep 300", wait_seconds=0)
        refused = await server.call("run", {"command": "true"})
        await call(server, "run_cancel", job_id="job-30")
        taken = await server.call("run", {"command": "true", "wait_seconds": 0})

    assert re.sub("'t[0-9a-f]+'", "'x'", refused["content"][0]["text"]) == snapshot(
        "server 'x' already has 64 live jobs, its limit is 64: cancel one first [capacity]"
    )
    assert not taken.get("is_error")


async def test_both_initialisers_of_a_two_level_subclass_run(serve: Serve) -> None:
    """JOB-A10, DEF-A3"""
    async with serve(Grandchild.bind("p")) as server:
        who = await call(server, "who")
        status = await call(server, "count", to=1)

    assert who == "p 1 False"
    assert status["state"] == "succeeded"


async def test_one_method_gives_five_functions() -> None:
    """JOB table of section 9, TOOL-R2: in a fixed order."""
    names = [tool.name for tool in AsyncBashTool.bind().definition().tools]

    assert names == ["run", "run_status", "run_output", "run_cancel", "run_jobs"]


def test_a_queue_of_no_places_is_refused() -> None:
    with pytest.raises(UsageError):
        AsyncBashTool.bind(max_running=0).build()


def _record(**fields: Any) -> JobRecord:
    return JobRecord(
        **{"id": "i", "session": "s", "handle": "job-1", "label": "", "kind": "command", **fields}
    )


STATES = [  # JOB-R1
    ({"state": "starting"}, "running"),
    ({"state": "running"}, "running"),
    ({"state": "background", "exit_code": 0}, "running"),
    ({"state": "killing"}, "running"),
    ({"state": "exited", "exit_code": 0}, "succeeded"),
    ({"state": "exited", "exit_code": 1}, "failed"),
    ({"state": "exited", "exit_code": 0, "timed_out": True}, "timed_out"),
    ({"state": "killed", "signal": 15, "timed_out": True}, "timed_out"),
    ({"state": "killed", "signal": 15, "cancelled": True}, "cancelled"),
    ({"state": "killed", "signal": 15, "cause": "server_stopped"}, "cancelled"),
    ({"state": "killed", "signal": 9}, "failed"),
    ({"state": "start_failed", "exit_code": 127}, "failed"),
    ({"state": "lost"}, "failed"),
]


@pytest.mark.parametrize(("fields", "state"), STATES)
def test_a_tools_state_is_a_view_of_the_record(fields: dict[str, Any], state: str) -> None:
    """JOB-R1"""
    assert tool_state(_record(**fields)) == state
