"""The shell tool against a real warden: one call in, one text out."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest
from inline_snapshot import snapshot

from toolhost.tools.bash import BashTool
from toolhost.tools.local import LocalServer
from toolhost_sdk.errors import UsageError
from toolhost_sdk.node.client import WardenClient

Serve = Callable[..., AbstractAsyncContextManager[LocalServer]]
pytestmark = pytest.mark.anyio


async def run(server: LocalServer, command: str, **arguments: Any) -> str:
    outcome = await server.call("run_command", {"command": command, **arguments})
    assert "structured" not in outcome
    [block] = outcome["content"]
    text: str = block["text"]
    return text


def facts(text: str) -> str:
    """The trailer without what changes from run to run."""
    return re.sub(r"\d+\.\d+ s", "N s", text.rpartition("\n")[2])


# A sleep that no other run of this suite on this machine has: two of them may run at once.
NAP = f"4711{os.getpid()}"


def alive(marker: str) -> list[str]:
    """Pids whose command line holds *marker*."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes()
        except OSError:
            continue
        if marker.encode() in line and int(entry.parent.name) != os.getpid():
            found.append(entry.parent.name)
    return found


async def test_a_command_returns_its_output_and_one_line_of_facts(serve: Serve) -> None:
    """BASH-A1, TOOL-R5, CLIENT-R1: text alone."""
    async with serve(BashTool.bind()) as server:
        text = await run(server, "echo out; echo err >&2; exit 3")

    lines = text.split("\n")
    assert sorted(lines[:2]) == ["err", "out"]
    assert facts(text) == snapshot("[exit 3 | N s | cwd / | job-1]")


async def test_a_failing_command_is_a_result_and_a_bad_argument_an_error(serve: Serve) -> None:
    """EXEC-R6, TOOL-R9"""
    async with serve(BashTool.bind()) as server:
        failed = await server.call("run_command", {"command": "exit 1"})
        refused = await server.call("run_command", {"command": "true", "sudo": True})

    assert not failed.get("is_error")
    assert refused["is_error"]
    assert refused["content"][0]["text"] == snapshot(
        "arguments of 'run_command' do not fit: sudo: extra inputs are not permitted [usage]"
    )


async def test_silence_is_said(serve: Serve) -> None:
    """TOOL-R7, BASH-A1"""
    async with serve(BashTool.bind()) as server:
        assert facts(await run(server, "true")) == "[exit 0, no output | N s | cwd / | job-1]"


async def test_a_timeout_keeps_what_was_written_and_leaves_nobody(serve: Serve) -> None:
    """BASH-R2, BASH-A2, EXEC-R3, TIME-R3"""
    async with serve(BashTool.bind()) as server:
        started = time.monotonic()
        text = await run(server, f"setsid sleep {NAP}.1 & echo partial; sleep {NAP}.2", timeout=1)

    assert time.monotonic() - started < 4
    assert text.startswith("partial\ntimed out after 1 s; 8 B captured; to let it run longer, raise timeout=")
    assert facts(text).startswith("[timed out after 1 s, killed by SIGTERM | N s")
    assert alive(f"{NAP}.") == []


async def test_a_background_child_neither_delays_nor_survives_and_is_named(serve: Serve) -> None:
    """BASH-R1, BASH-A3"""
    async with serve(BashTool.bind()) as server:
        started = time.monotonic()
        text = await run(server, f"sleep {NAP}.3 & echo started")

    assert time.monotonic() - started < 3
    assert text.startswith("started\nended with the command: ")
    assert re.search(r"\d+ sleep; to keep a process, run it in the foreground with wait_seconds=0.25", text)
    assert alive(f"{NAP}.3") == []


async def test_large_output_is_cut_and_the_rest_readable_without_running_again(serve: Serve) -> None:
    """BASH-R3, BASH-R4, BASH-A4, TOOL-R4"""
    async with serve(BashTool.bind()) as server:
        text = await run(server, "seq 700000")  # 4.8 MB
        rest = await server.call("run_output", {"job_id": "job-1", "lines": "350000:350001"})
        counted = await server.call("run_output", {"job_id": "job-1", "tail": 1})

    assert len(text) <= 30_000
    assert len(json.dumps(text)) < 50_000
    note = re.search(
        r"\[\.\.\. ([\d,]+) lines, (\S+ MiB) omitted; (run_output\(\"job-1\", offset=\d+\))", text
    )
    assert note is not None
    shown = text.count("\n") - 1
    assert int(note[1].replace(",", "")) + shown == 700_000
    assert facts(text) == snapshot("[exit 0 | N s | cwd / | 4.6 MiB out, 28 KiB shown | job-1]")
    assert rest["content"][0]["text"].startswith("350000: 350000\n350001: 350001\n")
    assert counted["content"][0]["text"].startswith("700000\n")


async def test_a_line_of_three_megabytes_is_clipped(serve: Serve) -> None:
    """BASH-A4"""
    async with serve(BashTool.bind()) as server:
        text = await run(server, "head -c 3000000 /dev/zero | tr '\\0' x; echo END")

    assert len(text) < 3000
    assert "characters omitted" in text and "xEND" in text
    assert "2.9 MiB out" in facts(text)


async def test_output_that_is_no_utf8_kills_nothing(serve: Serve) -> None:
    """BASH-A5, LOG-R8"""
    async with serve(BashTool.bind()) as server:
        text = await run(server, r"printf 'caf\xe9 long enough to be text\n'; printf '\x1b[31mred\x1b[0m\n'")

    assert text.startswith("caf\ufffd long enough to be text\nred\n")


async def test_binary_output_is_described_and_fetched_as_base64(serve: Serve) -> None:
    """VIEW-R2"""
    async with serve(BashTool.bind()) as server:
        text = await run(server, r"printf '\x7fELF\0\1\2\3'")
        raw = await server.call("run_output", {"job_id": "job-1", "encoding": "base64"})

    assert text.startswith(
        '[binary output on stdout: ELF file, 8 B, not shown; run_output("job-1", encoding="base64")'
    )
    assert raw["content"][0]["text"].startswith("f0VMRgABAgM=\n")


async def test_a_timeout_above_the_limit_is_refused(serve: Serve) -> None:
    """BASH-A6"""
    async with serve(BashTool.bind(max_timeout=300)) as server:
        outcome = await server.call("run_command", {"command": "true", "timeout": 301})

    assert outcome["is_error"]
    assert outcome["content"][0]["text"] == snapshot(
        "timeout=301 exceeds the limit of 300 s; start a job for longer work [usage]"
    )


async def test_a_budget_may_be_lowered_and_not_raised_beyond_the_cap(serve: Serve) -> None:
    """TOOL-R8, TOOL-R9"""
    async with serve(BashTool.bind(max_output=5000)) as server:
        small = await run(server, "seq 10000", max_output=1000)
        outcome = await server.call("run_command", {"command": "true", "max_output": 5001})

    assert len(small) <= 1000
    assert outcome["content"][0]["text"] == snapshot(
        "max_output=5001 exceeds this server's cap of 5000 characters [usage]"
    )


async def test_a_concise_result_drops_what_nobody_asked_for(serve: Serve) -> None:
    """TOOL-R8"""
    async with serve(BashTool.bind()) as server:
        assert await run(server, "echo hi; exit 2", detail="concise") == "hi\n[exit 2 | job-1]"


async def test_a_small_budget_holds_with_every_note(serve: Serve, tmp_path: Path) -> None:
    """TOOL-R8, BASH-R3: notes, footer and facts count too."""
    deep = f"{tmp_path}/{'d' * 200}/{'e' * 200}"
    async with serve(BashTool.bind()) as server:
        for _ in range(5):
            await run(server, f"seq 3000; sleep 300; # {'x' * 100}", wait_seconds=0.25)
        await run(server, f"mkdir -p {deep}; cd {deep}")
        text = await run(server, "seq 100000; sleep 300 & sleep 300 & exec true", max_output=1000)

    assert len(text) <= 1000
    assert "omitted" in text and "ended with the command" in text


async def test_names_that_are_no_text_reach_the_facts_readably(serve: Serve, tmp_path: Path) -> None:
    """VIEW-R3: a directory's name can forge nothing."""
    async with serve(BashTool.bind()) as server:
        text = await run(
            server, f'cd {tmp_path}; d=$\'a\\n[exit 0 |\\xff\\u202e\'; mkdir "$d"; cd "$d"; exit 3'
        )
        again = await run(server, "pwd | od -c | grep -c 377")

    assert facts(text).endswith("a\\n[exit 0 |\ufffd\\u202e | job-1]") and "\n" not in text
    assert again.startswith("1\n")


async def test_a_command_that_reads_its_input_ends_at_once(serve: Serve) -> None:
    """BASH-R1, BASH-A7, STDIN-R1: no input, no controlling terminal."""
    async with serve(BashTool.bind()) as server:
        started = time.monotonic()
        text = await run(server, 'read line; echo "[$line] $?"; cat; (: </dev/tty) 2>&1 || echo no tty')

    assert time.monotonic() - started < 3
    assert text.startswith("[] 1\n") and "no tty" in text


async def test_a_heredoc_over_128_kib_works(serve: Serve) -> None:
    """CMD-R2: the script is no argument."""
    body = "x" * 999 + "\n"

    async with serve(BashTool.bind()) as server:
        text = await run(server, f"cat <<'EOF' | wc -c\n{body * 400}EOF")

    assert text.startswith("400000\n")


async def test_a_list_as_command_is_explained(serve: Serve) -> None:
    """Execution contract 9.6"""
    async with serve(BashTool.bind()) as server:
        texts = [
            (await server.call("run_command", {"command": command}))["content"][0]["text"]
            for command in ('["ls", "-la"]', "{'cmd': 'ls'}", "  ", "a\0b")
        ]
        fine = await run(server, "[ -d / ] && echo '[yes]'")

    assert texts == snapshot(
        [
            "the command looks like a Python list; send plain shell text, such as 'ls -la' [usage]",
            "the command looks like a Python dict; send plain shell text, such as 'ls -la' [usage]",
            "the command is empty; send shell text such as 'ls -la' [usage]",
            "the command holds a NUL, which no shell text can; write it as $'\\\\0' or use a file [usage]",
        ]
    )
    assert fine.startswith("[yes]\n")


async def test_a_missing_directory_is_a_failed_start_that_names_it(serve: Serve) -> None:
    """TOOL-R7, END-R2"""
    async with serve(BashTool.bind()) as server:
        text = await run(server, "true", cwd="/no/such/dir")

    assert "/no/such/dir" in text.split("\n")[0]
    assert facts(text) == snapshot("[could not start: exit 126 (bad_cwd) | N s | cwd /no/such/dir | job-1]")


async def test_a_command_that_outlasts_the_wait_becomes_a_job(serve: Serve) -> None:
    """TOOL-R1, TOOL-R3, SESS-R3: a handle and the way on; what it does to its shell stays there."""
    async with serve(BashTool.bind()) as server:
        text = await run(server, "LATE=1; echo a; sleep 1.5; echo b", wait_seconds=0.25)
        other = await run(server, 'echo "[$LATE]"')
        status = (await server.call("run_status", {"job_id": "job-1", "wait_seconds": 20}))["structured"]
        after = await run(server, 'echo "[$LATE]"')

    assert text.startswith("a\njob-1 goes on by itself. It is ended after 120 s.")
    assert (
        'run_status("job-1") waits for it, run_output("job-1", offset=2) reads on, run_cancel("job-1")'
        in text
    )
    assert facts(text) == snapshot("[still running after N s | cwd / | job-1]")
    assert (status["state"], status["output"], status["result"]) == (
        "succeeded",
        "b",
        {"exit_code": 0, "signal": None},
    )
    assert other.startswith("[]") and after.startswith("[]")


async def test_results_name_the_jobs_still_running(serve: Serve) -> None:
    """TOOL-R6, JOB-R7: with what nobody has read yet."""
    async with serve(BashTool.bind()) as server:
        await run(server, "echo x; sleep 0.5; seq 2000; sleep 60", wait_seconds=0.25)
        while True:
            text = await run(server, "true")
            if "unread" in text:
                break
        cancelled = (await server.call("run_cancel", {"job_id": "job-1"}))["structured"]
        quiet = await run(server, "true")

    footer = re.sub(r"\d+\.\d+ s", "N s", text.split("\n")[0])
    assert footer == snapshot('running: job-1 "echo x; sleep 0.5; seq 2000; sleep 60" N s, +8.7 KiB unread')
    assert cancelled["state"] == "cancelled"
    assert "running:" not in quiet


async def test_an_unknown_job_is_answered_with_the_live_ones(serve: Serve) -> None:
    """TOOL-R3"""
    async with serve(BashTool.bind()) as server:
        await run(server, "sleep 60", wait_seconds=0.25)
        outcome = await server.call("run_status", {"job_id": "job-77"})

    assert outcome["content"][0]["text"] == "no job 'job-77' here; live are job-1 [not_found]"


async def test_a_cancelled_call_ends_its_tree(serve: Serve, executor: WardenClient) -> None:
    """EXEC-R4, SURV-R1: what nobody can name is cancelled."""
    async with serve(BashTool.bind(), name="cancels") as server:
        async with anyio.create_task_group() as group:
            group.start_soon(run, server, f"setsid sleep {NAP}.4 & sleep {NAP}.4")
            with anyio.fail_after(10):
                while not alive(f"{NAP}.4"):  # noqa: ASYNC110  # /proc tells nobody when it changes
                    await anyio.sleep(0.02)
            group.cancel_scope.cancel()

        [record] = await executor.jobs(session="cancels")
        assert record.done and record.cancelled
        assert alive(f"{NAP}.4") == []


async def test_a_stopping_server_ends_what_still_runs(serve: Serve, executor: WardenClient) -> None:
    """JOB-R7, LIFE-R3"""
    async with serve(BashTool.bind(), name="stops") as server:
        await run(server, f"sleep {NAP}.5", wait_seconds=0.25)

    [record] = await executor.jobs(session="stops")
    assert (record.done, record.cause) == (True, "server_stopped")
    assert alive(f"{NAP}.5") == []


async def test_secrets_are_masked_in_results_and_slices(serve: Serve) -> None:
    """SEC-A3, and execution contract 9.4: also when a slice begins inside one."""
    spec = BashTool.bind(env={"API_KEY": "sk-12345-secret"}, secrets=("API_KEY",))

    async with serve(spec) as server:
        text = await run(server, 'echo "key=$API_KEY."')
        pieces = [
            (await server.call("run_output", {"job_id": "job-1", "offset": offset, "max_bytes": 5}))[
                "content"
            ][0]["text"]
            for offset in range(0, 20, 5)
        ]
        grepped = await server.call("run_output", {"job_id": "job-1", "grep": "12345"})

    assert text.startswith("key=[masked].\n")
    assert not re.search("sk-|123|345|secr|cret", "".join(piece.split("\n")[0] for piece in pieces))
    assert "0 matches" in grepped["content"][0]["text"]


async def test_the_environment_is_built_and_not_inherited(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SEC-R3, CMD-R3"""
    monkeypatch.setenv("PLANTED_IN_THE_HOST", "1")

    async with serve(BashTool.bind(env={"GREETING": "hi", "PAGER": None})) as server:
        text = await run(server, "echo $GREETING; tr '\\0' '\\n' </proc/self/environ; env")

    assert text.startswith("hi\n")
    assert "GIT_TERMINAL_PROMPT=0" in text
    assert "PLANTED" not in text and "RAY_" not in text and "\nPAGER=" not in text


async def test_commands_run_as_another_user(serve: Serve) -> None:
    """SEC-R4, CMD-R4"""
    if os.getuid() != 0:
        pytest.skip("only root may switch users")

    async with serve(BashTool.bind(user="nobody")) as server:
        text = await run(server, "id -un; X=kept")
        after = await run(server, "echo $X")

    assert text.startswith("nobody\n") and after.startswith("kept\n")


async def test_a_read_only_server_cannot_write(serve: Serve, executor: WardenClient, tmp_path: Path) -> None:
    """SEC-R6, SEC-A5: the engine refuses, whatever the text says."""
    target = tmp_path / "target"
    attempts = (
        f"echo x >{target}",
        f'python3 -c \'open("{target}", "w")\'',
        f"cp /etc/passwd {target}",
        f"mkdir {target}",
    )

    async with serve(BashTool.bind(read_only=True)) as server:
        text = await run(server, "true")
        if "isolation" in text:
            pytest.skip("this node has no read-only view")
        results = [await run(server, attempt) for attempt in attempts]

    assert [text for text in results if "[exit 0" in text] == []
    assert not target.exists()


async def test_calls_overlap_where_nothing_is_carried(serve: Serve) -> None:
    """BASH-R5, EXEC-A1"""
    async with serve(BashTool.bind(persistent=False)) as server:
        started = time.monotonic()
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(run, server, "sleep 1")
        took = time.monotonic() - started

    assert took < 2.5


@pytest.mark.parametrize(
    "arguments",
    [{"work_dir": "relative"}, {"max_output": 10}, {"timeout": 0}, {"timeout": 700}, {"secrets": ("NOPE",)}],
)
def test_a_server_that_could_not_work_is_refused_at_once(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        BashTool.bind(**arguments).build()
