"""What every `Executor` promises, whatever it runs commands in.

A provider's test file subclasses these classes and supplies the fixture `executor`; nothing here knows which one it is.
The commands need `sh`, `cat`, `sleep`, `setsid`, `head` and `python3`.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import time
from typing import Any

import anyio
import pytest
from tests.support.commands import joined, marker, processes_with, read_all, run, sh, until, wait_for_output

from toolhost_sdk.errors import ConflictError, NotFoundError, UsageError
from toolhost_sdk.node.decode import StreamDecoder
from toolhost_sdk.node.port import CommandSpec, Executor

PYTHON = "python3"


class Endings:
    async def test_an_exit_code_is_what_the_leader_returned(self, executor: Executor) -> None:
        """ZERO-2 END-R1 END-R3"""
        ran = await run(executor, sh("echo out; echo err >&2; exit 70", label="seventy"))

        record = ran.record
        assert (record.state, record.exit_code, record.signal, record.shell_status) == (
            "exited",
            70,
            None,
            70,
        )
        assert (ran.stdout, ran.stderr) == (b"out\n", b"err\n")
        assert (record.stdout_bytes, record.stderr_bytes, record.size) == (4, 4, 8)
        assert record.pid and record.ended_at and record.started_at and record.duration is not None
        assert record.cpu_seconds is not None and record.max_rss
        assert (record.label, record.cwd is not None, record.user is not None) == ("seventy", True, True)
        assert not record.timed_out and not record.cancelled and record.cause is None

    async def test_a_signal_is_told_as_a_signal_and_never_as_a_code(self, executor: Executor) -> None:
        """ZERO-2 TREE-R2 TIME-R3: it died of its own signal, which is no timeout."""
        record = (await run(executor, sh("kill -TERM $$", timeout=60))).record

        assert (record.state, record.exit_code, record.signal, record.shell_status) == (
            "killed",
            None,
            15,
            143,
        )
        assert not record.timed_out and record.cause is None

    async def test_a_shell_that_reports_its_childs_death_exited(self, executor: Executor) -> None:
        """ZERO-8"""
        record = (await run(executor, sh("sh -c 'kill -TERM $$'; exit $?"))).record

        assert (record.state, record.exit_code, record.signal) == ("exited", 143, None)

    async def test_a_timeout_keeps_output_and_status_and_leaves_an_empty_tree(
        self, executor: Executor
    ) -> None:
        """TIME-R1 TIME-R3 TREE-R4 TREE-R5 ZERO-1: a child, a setsid grandchild, and one that ignores TERM."""
        mark = marker()
        script = (
            f"echo begun; sleep {mark} & setsid sh -c 'sleep {mark} & sleep {mark}' & "
            f"sh -c 'trap \"\" TERM; sleep {mark}; sleep {mark}' & wait"
        )
        began = time.monotonic()

        ran = await run(executor, sh(script, timeout=0.5, grace=0.5))

        assert time.monotonic() - began < 3.5
        assert ran.stdout == b"begun\n"
        assert ran.record.timed_out and ran.record.cause == "timeout"
        assert (ran.record.state, ran.record.signal) == ("killed", 15)
        assert processes_with(mark) == []

    async def test_a_command_that_handles_the_timeouts_signal_keeps_its_own_exit_code(
        self, executor: Executor
    ) -> None:
        """TIME-R3 ZERO-2"""
        script = "trap 'kill $child; exit 5' TERM; sleep 60 & child=$!; echo ready; wait"

        record = (await run(executor, sh(script, timeout=0.5))).record

        assert (record.state, record.exit_code, record.timed_out) == ("exited", 5, True)

    async def test_silence_ends_a_command_with_an_idle_timeout(self, executor: Executor) -> None:
        """TIME-R1"""
        ran = await run(
            executor, sh("for i in 1 2 3; do echo $i; sleep 0.2; done; sleep 60", idle_timeout=0.6)
        )

        assert ran.stdout == b"1\n2\n3\n"
        assert ran.record.cause == "idle_timeout" and ran.record.timed_out

    @pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, True])
    async def test_a_bound_that_bounds_nothing_is_a_usage_error(
        self, executor: Executor, seconds: Any
    ) -> None:
        """TIME-R1"""
        with pytest.raises(UsageError, match="timeout"):
            await executor.start(sh("true", timeout=seconds))

    async def test_the_first_cause_wins(self, executor: Executor) -> None:
        """ZERO-2"""
        job = await executor.start(sh("trap '' TERM; echo ready; sleep 60", grace=0.4))
        await wait_for_output(executor, job.id, b"ready")

        async with anyio.create_task_group() as group:
            group.start_soon(executor.terminate, job.id)
            await until(lambda: _state_is(executor, job.id, "killing"))
            record = await executor.terminate(job.id, cause="timeout")

        assert (record.cause, record.cancelled, record.timed_out) == ("cancelled", True, False)


async def _state_is(executor: Executor, job: str, state: str) -> bool:
    return (await executor.record(job)).state == state


class Trees:
    async def test_the_leaders_exit_ends_the_command_and_its_leftovers(self, executor: Executor) -> None:
        """TREE-R4 ZERO-1: the pipe would reach its end an hour later."""
        mark = marker()
        began = time.monotonic()

        ran = await run(executor, sh(f"echo done; sleep {mark} & setsid sleep {mark} &"))

        assert time.monotonic() - began < 2.5
        assert (ran.record.state, ran.record.exit_code, ran.stdout) == ("exited", 0, b"done\n")
        assert [part.split()[1] for part in ran.record.leftovers] == ["sleep", "sleep"]
        assert processes_with(mark) == []

    async def test_an_ended_command_without_leftovers_does_not_wait_for_quiet(
        self, executor: Executor
    ) -> None:
        """TREE-R4"""
        await run(executor, sh("true"))
        spent = []
        for _ in range(5):
            began = time.monotonic()
            await run(executor, sh("echo x"))
            spent.append(time.monotonic() - began)

        assert min(spent) < 0.09

    async def test_leftovers_may_be_kept_and_are_listed_with_a_growing_log(self, executor: Executor) -> None:
        """TREE-R4"""
        mark = marker()
        ticking = "(while :; do echo tick; sleep 0.05; done) &"
        script = f"{ticking} exec sh -c 'sleep {mark} & exit 3'"

        job = await executor.start(sh(script, leftovers="keep"))
        await until(lambda: _state_is(executor, job.id, "background"))
        record = await executor.record(job.id)
        grown = await executor.read(job.id, offset=record.size, wait=5.0)
        ended = await executor.terminate(job.id, grace=0.2)

        assert (record.exit_code, record.done) == (3, False)
        assert set(processes_with(mark)) <= set(record.pids)
        assert grown.data.startswith(b"tick")
        assert (ended.state, ended.exit_code, ended.cancelled) == ("exited", 3, True)
        assert processes_with(mark) == []

    async def test_a_background_job_ends_when_its_last_process_does(self, executor: Executor) -> None:
        """TREE-R4"""
        job = await executor.start(sh("(sleep 0.4; echo late) & exit 0", leftovers="keep"))

        record = await executor.wait(job.id, timeout=10)

        chunks = await read_all(executor, job.id)
        assert (record.state, joined(chunks, "stdout")) == ("exited", b"late\n")

    async def test_termination_is_a_ladder_and_idempotent(self, executor: Executor) -> None:
        """TREE-R5 ZERO-1"""
        mark = marker()
        job = await executor.start(
            sh(f"trap '' TERM; echo ready; setsid sleep {mark} & sleep {mark}; sleep {mark}")
        )
        await wait_for_output(executor, job.id, b"ready")
        began = time.monotonic()

        record = await executor.terminate(job.id, grace=0.4)
        again = await executor.terminate(job.id, grace=0.4)

        assert 0.4 <= time.monotonic() - began < 1.4
        assert (record.state, record.signal, record.cause) == ("killed", 9, "cancelled")
        assert again == record
        assert processes_with(mark) == []

    async def test_a_signal_reaches_the_leaders_group(self, executor: Executor) -> None:
        job = await executor.start(
            sh("trap 'echo caught; exit 4' INT; echo ready; while :; do sleep 0.05; done")
        )
        await wait_for_output(executor, job.id, b"ready")

        await executor.signal(job.id, signal.SIGINT)
        record = await executor.wait(job.id, timeout=5)
        await executor.signal(job.id, signal.SIGINT)

        assert (record.state, record.exit_code) == ("exited", 4)

    async def test_children_start_clean(self, executor: Executor) -> None:
        """TREE-R7: default handlers and mask, umask 022, descriptors 0-2, a session without a terminal."""
        script = (
            "import json,os\n"
            "status=dict(l.split(':\\t',1) for l in open('/proc/self/status').read().splitlines() if ':\\t' in l)\n"
            "fds=sorted(int(n) for n in os.listdir('/proc/self/fd'))\n"
            "held=[n for n in fds if n>2 and os.path.exists(f'/proc/self/fd/{n}')]\n"
            "mask=os.umask(0)\n"
            "try: tty=os.open('/dev/tty',os.O_RDWR)\n"
            "except OSError: tty=None\n"
            "print(json.dumps([status['SigBlk'],status['SigIgn'],held,mask,os.getsid(0)==os.getpid(),tty]))\n"
        )
        # `sh` in between would hide what the leader got; Python itself ignores SIGPIPE (13) and SIGXFSZ (25).
        ran = await run(executor, CommandSpec(argv=[PYTHON, "-I", "-S", "-c", script]))
        blocked, ignored, held, mask, leads, tty = json.loads(ran.stdout)

        assert int(blocked, 16) == 0
        # 32 and 33 belong to the C library, whose `posix_spawn` (make uses it) leaves them ignored in children.
        assert int(ignored, 16) & ~((1 << 12) | (1 << 24) | (1 << 31) | (1 << 32)) == 0
        assert (held, mask, leads, tty) == ([], 0o022, True, None)

    async def test_a_broken_pipe_ends_the_writer(self, executor: Executor) -> None:
        """TREE-R7"""
        ran = await run(executor, sh("yes | head -n 2"), within=10)

        assert (ran.record.exit_code, ran.stdout, ran.stderr) == (0, b"y\ny\n", b"")

    async def test_a_command_that_stops_what_watches_it_still_meets_its_timeout(
        self, executor: Executor
    ) -> None:
        """TREE-R5 TIME-R3: its parent is the init, which a stop keeps from reaping and from obeying."""
        mark = marker()
        job = await executor.start(sh(f"kill -STOP $PPID; setsid sleep {mark} & sleep {mark}", timeout=0.3))

        record = await executor.wait(job.id, timeout=0.3 + 2.0 + 3.0)

        assert (record.state, record.cause, record.exit_code) == ("killed", "timeout", None)
        assert processes_with(mark) == []


class Logs:
    async def test_every_byte_appears_once_in_its_stream_and_in_order(self, executor: Executor) -> None:
        """ZERO-3 LOG-R3 LOG-R4"""
        script = (
            "import os\n"
            "for i in range(20000): os.write(1, b'o%07d\\n' % i); (i % 50) or os.write(2, b'e%07d\\n' % i)\n"
        )
        ran = await run(executor, CommandSpec(argv=[PYTHON, "-I", "-S", "-c", script]))

        assert ran.stdout == b"".join(b"o%07d\n" % i for i in range(20000))
        assert ran.stderr == b"".join(b"e%07d\n" % i for i in range(0, 20000, 50))
        assert (
            ran.record.size
            == ran.record.stdout_bytes + ran.record.stderr_bytes
            == len(ran.stdout + ran.stderr)
        )

    async def test_one_cursor_serves_every_view(self, executor: Executor) -> None:
        """LOG-R4"""
        job = await executor.start(sh("printf aaa; sleep 0.1; printf bbb >&2; sleep 0.1; printf ccc"))
        await executor.wait(job.id)

        whole = await executor.read(job.id)
        errors = await executor.read(job.id, stream="stderr")
        middle = await executor.read(job.id, offset=2, limit=5)
        end = await executor.read(job.id, offset=9, wait=5.0)

        assert whole.spans == (("stdout", b"aaa"), ("stderr", b"bbb"), ("stdout", b"ccc"))
        assert (errors.spans, errors.next_offset, errors.eof) == ((("stderr", b"bbb"),), 9, True)
        assert middle.spans == (("stdout", b"a"), ("stderr", b"bbb"), ("stdout", b"c"))
        assert (middle.next_offset, middle.eof) == (7, False)
        assert (end.spans, end.eof, end.state) == ((), True, "exited")

    async def test_an_offset_beyond_the_log_is_refused_with_its_size(self, executor: Executor) -> None:
        """LOG-R4"""
        job = await executor.start(sh("printf 12345"))
        await executor.wait(job.id)

        with pytest.raises(UsageError, match="5"):
            await executor.read(job.id, offset=6)
        with pytest.raises(UsageError, match="offset"):
            await executor.read(job.id, offset=-1)
        with pytest.raises(UsageError, match="limit"):
            await executor.read(job.id, limit=0)

    async def test_a_read_waits_for_a_byte_a_change_or_its_time(self, executor: Executor) -> None:
        """LOG-R4"""
        job = await executor.start(sh("echo first; read line; echo second", stdin="pipe"))
        await wait_for_output(executor, job.id, b"first\n")
        began = time.monotonic()
        nothing = await executor.read(job.id, offset=6, wait=0.2)
        waited = time.monotonic() - began

        async with anyio.create_task_group() as group:
            group.start_soon(executor.write_stdin, job.id, b"go\n")
            second = await executor.read(job.id, offset=6, wait=10)
        rest = await read_all(executor, job.id, offset=second.next_offset)

        assert (nothing.spans, nothing.next_offset, nothing.eof) == ((), 6, False) and waited >= 0.15
        assert second.data == b"second\n"
        assert rest[-1].eof

    async def test_state_is_known_before_the_end_of_the_log_is(self, executor: Executor) -> None:
        """LOG-R4 ZERO-2"""
        for _ in range(10):
            job = await executor.start(sh("printf x; exit 9"))
            chunks = await read_all(executor, job.id)
            record = await executor.record(job.id)

            assert chunks[-1].state == record.state == "exited" and record.exit_code == 9

    async def test_readers_neither_delay_nor_end_a_job(self, executor: Executor) -> None:
        """ZERO-4 LOG-R5: many readers, most of which stop looking."""
        lines = 40000
        job = await executor.start(sh(f"i=0; while [ $i -lt {lines} ]; do echo line $i; i=$((i+1)); done"))
        ends: list[bytes] = []

        async def reader() -> None:
            ends.append(joined(await read_all(executor, job.id, limit=20011), "stdout"))

        async def quitter() -> None:
            with anyio.move_on_after(0.1):
                await executor.read(job.id, offset=0, wait=0.0)
                await executor.wait(job.id, timeout=60)

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(reader)
            for _ in range(10):
                group.start_soon(quitter)
        record = await executor.record(job.id)

        expected = b"".join(b"line %d\n" % i for i in range(lines))
        assert ends == [expected] * 3
        assert (record.state, record.exit_code) == ("exited", 0)

    async def test_a_log_over_its_limit_keeps_head_and_tail_and_declares_the_gap(
        self, executor: Executor
    ) -> None:
        """LOG-R6 ZERO-3: 32 MiB on one line, 1 MiB kept."""
        limit = 1 << 20
        script = "import sys\nfor i in range(4096): sys.stdout.buffer.write(b'%08d' % i * 1024)"
        job = await executor.start(CommandSpec(argv=[PYTHON, "-I", "-S", "-c", script], log_limit=limit))
        record = await executor.wait(job.id, timeout=60)

        chunks = await read_all(executor, job.id)

        whole = b"".join(b"%08d" % i * 1024 for i in range(4096))
        gaps = [chunk.gap for chunk in chunks if chunk.gap is not None]
        assert (record.state, record.exit_code, record.size) == ("exited", 0, len(whole))
        assert [(gap.start, gap.end) for gap in gaps] == [(gap.start, gap.end) for gap in record.gaps]
        assert len(gaps) == 1 and gaps[0].reason == "log_limit" and gaps[0].start >= limit // 2
        kept = len(whole) - (gaps[0].end - gaps[0].start)
        assert limit * 0.8 < kept <= limit
        for chunk in chunks:
            assert chunk.data == b"" if chunk.gap else chunk.data == whole[chunk.offset : chunk.next_offset]

    async def test_a_log_over_its_limit_may_end_its_job(self, executor: Executor) -> None:
        """LOG-R6"""
        job = await executor.start(sh("yes", log_limit=1 << 20, on_log_limit="kill", grace=0.2))

        record = await executor.wait(job.id, timeout=20)

        assert (record.state, record.cause) == ("killed", "log_limit")

    async def test_output_is_bytes_and_nothing_is_translated(self, executor: Executor) -> None:
        """LOG-R8"""
        data = b"a\n\nCRLF\r\n\x1b[31mred\x1b[0m" + bytes(range(256)) + b"no newline"

        ran = await run(executor, CommandSpec(argv=["cat"], stdin=data))

        assert ran.stdout == data

    async def test_text_survives_any_cut_on_either_stream(self, executor: Executor) -> None:
        """LOG-R8: four-byte characters at every chunk border, both streams mixed."""
        script = (
            "import os\n"
            "a='😀é'.encode()*40; b='漢字🎉'.encode()*40\n"
            "for i in range(max(len(a),len(b))):\n"
            "    a[i:i+1] and os.write(1,a[i:i+1]); b[i:i+1] and os.write(2,b[i:i+1])\n"
        )
        job = await executor.start(CommandSpec(argv=[PYTHON, "-I", "-S", "-c", script]))
        await executor.wait(job.id)

        for limit in (1, 2, 3, 5, 7, 64, 65536):
            decoder = StreamDecoder()
            texts = {"stdout": "", "stderr": ""}
            for chunk in await read_all(executor, job.id, limit=limit):
                for stream, text in decoder.feed(chunk):
                    texts[stream] += text
            assert texts == {"stdout": "😀é" * 40, "stderr": "漢字🎉" * 40}

    async def test_five_commands_printing_at_once_are_complete_and_unmixed(self, executor: Executor) -> None:
        """ZERO-3"""
        results: dict[str, bytes] = {}

        async def one(letter: str) -> None:
            ran = await run(executor, sh(f"head -c 512000 /dev/zero | tr '\\0' {letter}"))
            results[letter] = ran.stdout

        async with anyio.create_task_group() as group:
            for letter in "abcde":
                group.start_soon(one, letter)

        assert results == {letter: letter.encode() * 512000 for letter in "abcde"}

    async def test_a_command_that_closes_its_output_early_ends_normally(self, executor: Executor) -> None:
        """TREE-R4"""
        record = (await run(executor, sh("exec >&- 2>&-; sleep 0.2; exit 6"))).record

        assert (record.state, record.exit_code) == ("exited", 6)

    async def test_an_unknown_job_is_not_found(self, executor: Executor) -> None:
        for ask in (executor.record, executor.read, executor.wait, executor.terminate):
            with pytest.raises(NotFoundError, match="nothing-like-it"):
                await ask("nothing-like-it")


class Inputs:
    async def test_stdin_is_empty_unless_given(self, executor: Executor) -> None:
        """CMD-R5"""
        assert (await run(executor, CommandSpec(argv=["cat"]), within=5)).stdout == b""
        assert (await run(executor, CommandSpec(argv=["cat"], stdin=b""), within=5)).stdout == b""

    async def test_given_stdin_arrives_verbatim(self, executor: Executor) -> None:
        """CMD-R5"""
        data = b"\"quotes\" '$HOME' `id` \x00\xff\xfe \\ \n" * 3

        assert (await run(executor, CommandSpec(argv=["cat"], stdin=data))).stdout == data

    async def test_fifty_mebibytes_of_stdin_arrive_whole(self, executor: Executor) -> None:
        """CMD-R5"""
        data = hashlib.shake_256(b"stdin").digest(50 << 20)

        ran = await run(executor, CommandSpec(argv=["sha256sum"], stdin=data))

        assert ran.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()

    async def test_a_command_that_never_reads_its_stdin_ends_normally(self, executor: Executor) -> None:
        """CMD-R5"""
        ran = await run(executor, sh("echo unread", stdin=b"x" * (4 << 20)), within=10)

        assert (ran.record.exit_code, ran.stdout) == (0, b"unread\n")

    async def test_open_stdin_takes_writes_until_it_is_closed(self, executor: Executor) -> None:
        """CMD-R5"""
        job = await executor.start(CommandSpec(argv=["cat"], stdin="pipe"))

        assert await executor.write_stdin(job.id, b"one ") == 4
        assert await executor.write_stdin(job.id, b"two") == 7
        await executor.close_stdin(job.id)
        await executor.close_stdin(job.id)
        record = await executor.wait(job.id, timeout=5)

        assert joined(await read_all(executor, job.id), "stdout") == b"one two" and record.exit_code == 0
        with pytest.raises(ConflictError, match="stdin"):
            await executor.write_stdin(job.id, b"late")

    async def test_a_retried_write_does_not_double_input(self, executor: Executor) -> None:
        """SURV-R2"""
        job = await executor.start(CommandSpec(argv=["cat"], stdin="pipe"))

        await executor.write_stdin(job.id, b"hello ", offset=0)
        await executor.write_stdin(job.id, b"hello ", offset=0)
        assert await executor.write_stdin(job.id, b"lo world", offset=3) == 11
        with pytest.raises(UsageError, match="11"):
            await executor.write_stdin(job.id, b"!", offset=12)
        await executor.close_stdin(job.id)
        await executor.wait(job.id, timeout=5)

        assert joined(await read_all(executor, job.id), "stdout") == b"hello world"

    async def test_more_than_a_pipe_holds_waits_for_the_reader(self, executor: Executor) -> None:
        """CMD-R5"""
        data = b"0123456789abcdef" * (1 << 16)
        job = await executor.start(sh("sleep 0.3; exec cat", stdin="pipe"))

        assert await executor.write_stdin(job.id, data) == len(data)
        await executor.close_stdin(job.id)
        await executor.wait(job.id, timeout=10)

        assert joined(await read_all(executor, job.id), "stdout") == data

    async def test_a_write_ends_when_the_command_does(self, executor: Executor) -> None:
        """CMD-R5"""
        job = await executor.start(sh("sleep 0.3", stdin="pipe"))

        with anyio.fail_after(5), pytest.raises(ConflictError, match="closed"):
            await executor.write_stdin(job.id, b"x" * (1 << 20))

        assert (await executor.wait(job.id, timeout=5)).exit_code == 0

    async def test_stdin_that_was_not_opened_takes_nothing(self, executor: Executor) -> None:
        """CMD-R5"""
        job = await executor.start(sh("sleep 5"))

        with pytest.raises(ConflictError, match="pipe"):
            await executor.write_stdin(job.id, b"x")
        await executor.terminate(job.id, grace=0)

    @pytest.mark.parametrize("argv", [["cat"], ["sh", "-c", "read line"], [PYTHON, "-c", "input()"]])
    async def test_a_job_that_waits_for_input_says_so(self, executor: Executor, argv: list[str]) -> None:
        """STDIN-R1"""
        if not (await executor.manifest())["stdin_wait_detection"]:
            pytest.skip("this executor cannot see waits on stdin")
        job = await executor.start(CommandSpec(argv=argv, stdin="pipe"))

        async def waits() -> bool:
            return (await executor.record(job.id)).waiting_on_stdin

        await until(waits)
        await executor.write_stdin(job.id, b"line\n")
        await executor.close_stdin(job.id)

        assert not (await executor.wait(job.id, timeout=10)).waiting_on_stdin

    async def test_a_private_descriptor_reports_beside_the_output(self, executor: Executor) -> None:
        """SESS-R1"""
        job = await executor.start(sh("echo public; printf 'a\\0b' >&3", state_file=True))
        record = await executor.wait(job.id, timeout=5)

        assert await executor.read_report(job.id) == b"a\0b"
        assert record.size == len("public\n")

    async def test_a_report_over_a_mebibyte_or_none_at_all_is_none(self, executor: Executor) -> None:
        """SESS-R3"""
        large = await executor.start(sh("head -c 1100000 /dev/zero >&3", state_file=True))
        silent = await executor.start(sh("true", state_file=True))
        for job in (large, silent):
            await executor.wait(job.id, timeout=10)

            assert await executor.read_report(job.id) is None


class Starts:
    async def test_a_megabyte_of_arguments_arrives(self, executor: Executor) -> None:
        """CMD-R1"""
        arguments = [chr(ord("a") + i) * 65536 for i in range(16)]
        script = "import sys,hashlib; print(hashlib.sha256('|'.join(sys.argv[1:]).encode()).hexdigest())"

        ran = await run(executor, CommandSpec(argv=[PYTHON, "-c", script, *arguments]))

        assert ran.stdout.decode().strip() == hashlib.sha256("|".join(arguments).encode()).hexdigest()

    async def test_arguments_are_not_interpreted(self, executor: Executor) -> None:
        """CMD-R1"""
        odd = ["$HOME", "`id`", "a b", "", "*", "\n", "é😀", "--"]

        ran = await run(executor, CommandSpec(argv=["printf", "%s|", *odd]))

        assert ran.stdout.decode() == "".join(f"{part}|" for part in odd)

    async def test_bytes_that_are_no_text_pass_as_arguments(self, executor: Executor) -> None:
        """CMD-R1"""
        assert (await run(executor, CommandSpec(argv=[b"printf", b"%s", b"\xff\xfe"]))).stdout == b"\xff\xfe"

    async def test_one_argument_too_long_is_named_with_its_size(self, executor: Executor) -> None:
        """CMD-R1"""
        ran = await run(executor, CommandSpec(argv=["true", "x", "y" * 131_072]))

        record = ran.record
        assert (record.state, record.exit_code, record.start_error) == (
            "start_failed",
            126,
            "argument_too_long",
        )
        assert record.message is not None
        assert "argument 2 has 131072 bytes" in record.message and "stdin or a file" in record.message
        assert record.message.encode() in ran.stderr

    async def test_all_arguments_too_long_together_is_a_start_error(self, executor: Executor) -> None:
        """CMD-R1"""
        record = (await run(executor, CommandSpec(argv=["true", *["z" * 131_000] * 32]))).record

        assert (record.state, record.exit_code, record.start_error) == (
            "start_failed",
            126,
            "argument_too_long",
        )

    async def test_start_failures_are_told_apart(self, executor: Executor) -> None:
        """END-R1 ZERO-8 CMD-R8"""
        made = sh(
            "d=$(mktemp -d); cd $d; printf '#!/no/such/interpreter\\n' >script; printf '\\177ELF garbage' >foreign; "
            "printf 'x' >data; chmod 755 script foreign; chmod 644 data; pwd"
        )
        place = (await run(executor, made)).stdout.decode().strip()
        cases: list[tuple[CommandSpec, int, str, str]] = [
            (CommandSpec(argv=["no-such-program-here"]), 127, "not_found", "no-such-program-here"),
            (CommandSpec(argv=["/no/such/path"]), 127, "not_found", "/no/such/path"),
            (CommandSpec(argv=[f"{place}/script"]), 127, "interpreter_not_found", "/no/such/interpreter"),
            (CommandSpec(argv=["/etc/passwd"]), 126, "not_executable", "/etc/passwd"),
            (CommandSpec(argv=[f"{place}/data"]), 126, "not_executable", "data"),
            (CommandSpec(argv=[place]), 126, "not_executable", "directory"),
            (CommandSpec(argv=[f"{place}/foreign"]), 126, "bad_format", "foreign"),
            (CommandSpec(argv=["true"], cwd="/no/such/dir"), 126, "bad_cwd", "/no/such/dir"),
            (CommandSpec(argv=["true"], cwd="/etc/passwd"), 126, "bad_cwd", "/etc/passwd"),
            (
                CommandSpec(argv=["true"], user="nobody-of-that-name"),
                126,
                "unknown_user",
                "nobody-of-that-name",
            ),
            (CommandSpec(argv=["ls -la /"]), 127, "not_found", "ls"),
        ]

        for spec, code, kind, words in cases:
            ran = await run(executor, spec)
            record = ran.record
            assert (record.state, record.exit_code, record.start_error) == ("start_failed", code, kind), (
                record
            )
            assert record.shell_status == code and record.message is not None and words in record.message
            assert words.encode() in ran.stderr, ran.stderr

    @pytest.mark.parametrize(
        ("spec", "kind"),
        [
            ({"argv": ["x" * 100_000]}, "other"),
            ({"argv": ["é" * 30_000]}, "other"),
            ({"argv": ["true"], "cwd": "/" + "x" * 100_000}, "bad_cwd"),
        ],
    )
    async def test_a_refusal_with_a_very_long_name_is_still_a_refusal(
        self, executor: Executor, spec: dict[str, Any], kind: str
    ) -> None:
        """END-R1 ZERO-2: its words once filled the pipe they travel in, and the launcher died of it."""
        record = (await run(executor, CommandSpec(**spec))).record

        assert (record.state, record.exit_code, record.signal) == ("start_failed", 126, None)
        assert record.start_error == kind and record.message is not None and len(record.message) < 1000

    @pytest.mark.parametrize("argv", ["ls -la", [], ["a\0b"], [1], b"true", None, ["a\ud800"]])
    async def test_what_is_no_argument_list_is_a_usage_error(self, executor: Executor, argv: Any) -> None:
        """CMD-R1"""
        with pytest.raises(UsageError):
            await executor.start(CommandSpec(argv=argv))

    async def test_a_relative_directory_or_an_impossible_variable_is_a_usage_error(
        self, executor: Executor
    ) -> None:
        here = f"s{marker()}"
        odd: list[dict[str, Any]] = [
            {"cwd": "tmp"}, {"env": {"A=B": "c"}}, {"env": {"A": 5}}, {"env": {"A": "\ud800"}}, {"user": 5},
            {"stdin": "text"}, {"leftovers": "leave"}, {"on_log_limit": "stop"}, {"lease": ["a"]},
        ]  # fmt: skip

        for spec in odd:
            with pytest.raises(UsageError, match="|".join([*spec, "variable"])):
                await executor.start(CommandSpec(argv=["true"], session=here, **spec))
        for session in ("", "\ud800", "x" * 257):
            with pytest.raises(UsageError, match="session"):
                await executor.start(CommandSpec(argv=["true"], session=session))
            with pytest.raises(UsageError, match="session"):
                await executor.open_hosted(session)

        assert await executor.jobs(session=here) == []

    async def test_the_directory_is_as_asked(self, executor: Executor) -> None:
        """CMD-R8"""
        assert (await run(executor, sh("pwd", cwd="/usr"))).stdout == b"/usr\n"

    async def test_the_environment_is_built_and_overridable(self, executor: Executor) -> None:
        """CMD-R3"""
        plain = _environment((await run(executor, CommandSpec(argv=["env", "-0"]))).stdout)
        changed = _environment(
            (
                await run(
                    executor,
                    CommandSpec(argv=["env", "-0"], env={"TERM": "xterm", "PAGER": None, "X": "é\n"}),
                )
            ).stdout
        )

        wanted = {
            "TERM": "dumb",
            "NO_COLOR": "1",
            "PAGER": "cat",
            "GIT_TERMINAL_PROMPT": "0",
            "CI": "1",
            "LANG": "C.UTF-8",
        }
        assert wanted.items() <= plain.items()
        assert {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR"} <= set(plain)
        assert (changed["TERM"], "PAGER" in changed, changed["X"]) == ("xterm", False, "é\n")

    async def test_a_start_with_a_known_key_starts_nothing(self, executor: Executor) -> None:
        """SURV-R2"""
        key = marker()
        records = []

        async def start() -> None:
            records.append(await executor.start(sh("echo once; sleep 30"), key=key))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(start)
        await executor.terminate(records[0].id, grace=0)
        again = await executor.start(sh("echo twice"), key=key)

        assert len({record.id for record in records}) == 1
        assert (again.id, again.state) == (records[0].id, "killed")

    async def test_handles_count_within_their_session_and_stay_told_apart(self, executor: Executor) -> None:
        """TOOL-R3 ZERO-5"""
        here, there = f"a{marker()}", f"b{marker()}"
        first = await executor.start(sh("sleep 30", session=here))
        second = await executor.start(sh("true", session=here))
        other = await executor.start(sh("true", session=there))
        await executor.wait(second.id)

        found = await executor.find(here, "job-1")
        with pytest.raises(NotFoundError, match="job-1"):
            await executor.find(here, "job-9")
        live = await executor.jobs(session=here, live=True)
        every = await executor.jobs(session=here)
        newest = await executor.jobs(session=here, limit=1)
        with pytest.raises(UsageError, match="limit"):
            await executor.jobs(limit=0)
        await executor.terminate(first.id, grace=0)

        assert [record.handle for record in (first, second, other)] == ["job-1", "job-2", "job-1"]
        assert found.id == first.id
        assert ([record.id for record in live], [record.id for record in every]) == (
            [first.id],
            [first.id, second.id],
        )
        assert [record.id for record in newest] == [second.id]


def _environment(data: bytes) -> dict[str, str]:
    return dict(item.split("=", 1) for item in data.decode().split("\0") if item)


class Lives:
    async def test_a_lease_that_ends_takes_its_jobs_along(self, executor: Executor) -> None:
        """LEASE-R1 LEASE-R3"""
        mark = marker()
        lease = await executor.open_lease("test", ttl=0.6)
        job = await executor.start(sh(f"setsid sleep {mark} & sleep {mark}", lease=lease.id))
        free = await executor.start(sh("sleep 20"))
        for _ in range(4):
            await anyio.sleep(0.25)
            lease = await executor.renew(lease.id)
        still = await executor.record(job.id)

        record = await executor.wait(job.id, timeout=5)

        assert still.state == "running"
        assert (record.state, record.cause) == ("killed", "lease_ended")
        assert processes_with(mark) == []
        assert (await executor.terminate(free.id, grace=0)).cause == "cancelled"
        with pytest.raises(NotFoundError, match="lease"):
            await executor.renew(lease.id)
        with pytest.raises(NotFoundError, match="lease"):
            await executor.start(sh("true", lease=lease.id))

    async def test_a_released_lease_ends_its_jobs_for_the_cause_given(self, executor: Executor) -> None:
        """LEASE-R1"""
        lease = await executor.open_lease("test", ttl=60)
        job = await executor.start(sh("sleep 60", lease=lease.id))

        await executor.release(lease.id, cause="server_stopped")
        await executor.release(lease.id)

        assert (await executor.record(job.id)).cause == "server_stopped"

    async def test_no_renewal_goes_past_the_longest_life(self, executor: Executor) -> None:
        """LEASE-R1"""
        lease = await executor.open_lease("test", ttl=30, max_life=0.5)

        assert lease.expires_in <= 0.5
        assert (await executor.renew(lease.id)).expires_in <= 0.5

    async def test_a_renewal_that_was_accepted_is_not_followed_by_the_eviction(
        self, executor: Executor
    ) -> None:
        """LEASE-R2: renewals race the expiry; whoever renewed in time keeps the job."""
        lease = await executor.open_lease("test", ttl=0.15)
        job = await executor.start(sh("sleep 60", lease=lease.id))
        accepted = time.monotonic()
        with anyio.move_on_after(3):
            while True:
                try:
                    await executor.renew(lease.id)
                except NotFoundError:
                    break
                accepted = time.monotonic()
                assert (await executor.record(job.id)).state == "running"
                await anyio.sleep(0.145)
        record = await executor.wait(job.id, timeout=5)
        if record.done:
            assert time.monotonic() - accepted >= 0.14
        await executor.release(lease.id)

    async def test_a_hosted_job_is_logged_and_ended_by_its_host(self, executor: Executor) -> None:
        """ZERO-5"""
        job = await executor.open_hosted("hosts", label="work")
        await executor.append_hosted(job.id, b"step 1\n")
        await executor.append_hosted(job.id, b"warning\n", stream="stderr")
        await executor.progress_hosted(job.id, {"progress": 0.5})
        running = await executor.record(job.id)

        ended = await executor.finish_hosted(job.id, result={"answer": 42})
        chunks = await read_all(executor, job.id)

        assert (running.state, running.kind, running.progress) == ("running", "hosted", {"progress": 0.5})
        assert (ended.state, ended.exit_code, ended.result) == ("exited", 0, {"answer": 42})
        assert (joined(chunks, "stdout"), joined(chunks, "stderr")) == (b"step 1\n", b"warning\n")

    async def test_a_hosted_job_may_fail_or_be_cancelled(self, executor: Executor) -> None:
        failed = await executor.open_hosted("hosts")
        cancelled = await executor.open_hosted("hosts")

        first = await executor.finish_hosted(failed.id, error={"code": "execution", "message": "no"})
        second = await executor.finish_hosted(cancelled.id, cause="cancelled")

        assert (first.state, first.exit_code, first.error) == (
            "exited",
            1,
            {"code": "execution", "message": "no"},
        )
        assert (second.state, second.exit_code, second.cancelled) == ("killed", None, True)
        assert (await executor.finish_hosted(failed.id, result=1)) == first

    async def test_terminating_a_hosted_job_asks_its_host_first(self, executor: Executor) -> None:
        polite, deaf = await executor.open_hosted("hosts"), await executor.open_hosted("hosts")

        async def obey() -> None:
            await until(lambda: _state_is(executor, polite.id, "killing"))
            await executor.finish_hosted(polite.id, result="partial")

        async with anyio.create_task_group() as group:
            group.start_soon(obey)
            first = await executor.terminate(polite.id, grace=5)
        second = await executor.terminate(deaf.id, grace=0.1)

        assert (first.state, first.cause, first.result) == ("killed", "cancelled", "partial")
        assert (second.state, second.cause, second.exit_code) == ("killed", "cancelled", None)
