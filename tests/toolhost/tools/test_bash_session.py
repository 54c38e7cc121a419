"""A shell that remembers: what carries over, what does not, and what is said about it."""

from __future__ import annotations

import json
import re
import stat
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest
from inline_snapshot import snapshot

from toolhost.tools.bash import BashTool
from toolhost.tools.bash_session import Snapshot, parse_report
from toolhost.tools.local import LocalServer

Serve = Callable[..., AbstractAsyncContextManager[LocalServer]]
pytestmark = pytest.mark.anyio
UNSAVED = "state not saved: the shell ended without writing it; the next command has the state before"


async def run(server: LocalServer, command: str, **arguments: Any) -> tuple[str, str]:
    """Output (with notes) and the status in the trailer."""
    outcome = await server.call("run_command", {"command": command, **arguments})
    text: str = outcome["content"][0]["text"]
    output, _, trailer = text.rpartition("\n")
    return output, trailer.partition(" |")[0].strip("[]")


CARRIED = [  # SESS-R1: (first command, second command, output of the second)
    ("cd /tmp", "pwd", "/tmp"),
    ("X='a  b'", 'echo "$X"; env | grep -c ^X= || true', "a  b\n0"),
    ("export X=1", "printenv X", "1"),
    ("unset PAGER", 'echo "[${PAGER-unset}]"', "[unset]"),
    ("export PAGER=less", "printenv PAGER", "less"),
    ("f() { echo \"f $1\"; }; export -f f", "f 1; bash -c 'f 2'", "f 1\nf 2"),
    ("shopt -s expand_aliases; alias hi='echo aliased'", "hi", "aliased"),
    ("a=(1 'two words' 3); declare -A m=([k]=v)", 'echo "${a[1]} ${m[k]}"', "two words v"),
    ("declare -i N=4; declare -u UP=x", "N=N+1; UP=abc; echo $N $UP", "5 ABC"),
    ("umask 027", "umask", "0027"),
    ("set -o pipefail -u", "echo $SHELLOPTS | grep -c 'nounset.*pipefail'", "1"),
    ("shopt -s extglob", "shopt -q extglob; echo $?", "0"),
    ("X=$'line\\n\\t\\x01 \"q\" $HOME `id`'", 'printf %q "$X"', "$'line\\n\\t\\001 \"q\" $HOME `id`'"),
    ("X=$'\\xff\\xfe'", 'printf %q "$X"', "$'\\377\\376'"),
    ("IFS=:", 'printf %q "$IFS"', ":"),
    ("printf() { echo mine; }; declare() { echo mine; }; eval() { echo mine; }; X=1", "command echo $X", "1"),
    ("readonly R=1; X=2", 'echo "[$R] $X"', "[] 2"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second", "expected"), CARRIED)
async def test_state_carries_over_to_the_next_command(
    serve: Serve, first: str, second: str, expected: str
) -> None:
    """SESS-R1, BASH-R5"""
    async with serve(BashTool.bind()) as server:
        said = await run(server, first)
        output, status = await run(server, second)

    assert said == ("", "exit 0, no output")
    assert (output, status) == (expected, "exit 0")


CODES = [  # SESS-R2: the code is the shell's own, and state is kept
    ("exit 7", "exit 7"),
    ("set -e; false; echo not reached", "exit 1"),
    ("(exit 3)", "exit 3"),
    ("false", "exit 1"),
    ("no-such-program", "exit 127"),
    ("/etc/passwd", "exit 126"),
    ("if then", "exit 2"),
    ("cat <<E\nhere\nE\nexit 9", "exit 9"),
    ("sh -c 'kill -TERM $$'", "exit 143 (128+15: SIGTERM in a child)"),
    ("trap 'echo bye' EXIT; true", "exit 0"),
]


@pytest.mark.parametrize(("command", "status"), CODES)
async def test_exit_codes_are_exact_and_state_is_kept(serve: Serve, command: str, status: str) -> None:
    """SESS-R2"""
    async with serve(BashTool.bind()) as server:
        output, got = await run(server, f"KEPT=1\n{command}")
        after, _ = await run(server, "set +e; echo $KEPT")

    assert got.removesuffix(", no output") == status
    assert "state not saved" not in output
    assert after == "1"


LOST = ["exec true", "kill -9 $$", "trap 'echo bye' EXIT; exit 3"]


@pytest.mark.parametrize("command", LOST)
async def test_a_shell_that_dies_without_writing_leaves_the_state_before_and_says_so(
    serve: Serve, command: str
) -> None:
    """SESS-R2, TOOL-R7"""
    async with serve(BashTool.bind()) as server:
        await run(server, "X=before; cd /tmp")
        output, _ = await run(server, f"X=during; cd /usr; {command}")
        after, _ = await run(server, "echo $X; pwd")

    assert UNSAVED in output
    assert after == "before\n/tmp"


async def test_messages_name_the_lines_of_the_script(serve: Serve) -> None:
    async with serve(BashTool.bind()) as server:
        output, _ = await run(server, "true\n\nno-such-program")

    assert output == "bash: line 3: no-such-program: command not found"


async def test_a_traced_script_shows_its_own_lines_only(serve: Serve) -> None:
    async with serve(BashTool.bind()) as server:
        first = await run(server, "set -x")
        second, _ = await run(server, "echo hi")

    assert first == ("", "exit 0, no output")
    assert second == snapshot("++ echo hi\nhi")


async def test_no_private_descriptor_reaches_the_commands(serve: Serve) -> None:
    """SESS-R1, TREE-R7: also not in pipelines, subshells and background jobs that exec."""
    async with serve(BashTool.bind()) as server:
        output, _ = await run(
            server,
            "show() { bash -c 'echo /proc/self/fd/*'; }; show; (show); show | cat; exec_it() { exec bash -c "
            "'echo /proc/self/fd/*'; }; (exec_it)",
        )

    # The glob itself reads the directory through descriptor 3, which is then closed.
    assert set(output.split("\n")) == {"/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3"}


async def test_the_report_channel_is_closed_while_the_script_runs(serve: Serve) -> None:
    async with serve(BashTool.bind()) as server:
        output, _ = await run(server, "{ echo forged >&3; } 2>/dev/null || echo closed")

    assert output == "closed"


async def test_a_directory_that_is_gone_falls_back_and_says_so(serve: Serve, tmp_path: Path) -> None:
    """SESS-R3"""
    async with serve(BashTool.bind(work_dir=str(tmp_path))) as server:
        await run(server, "mkdir sub; cd sub; X=1")
        await run(server, f"rmdir {tmp_path}/sub")
        output, _ = await run(server, "pwd; echo $X")

    assert (
        output == f"{tmp_path}\n1\nthe directory of this session is gone: the command ran in the default one"
    )


async def test_a_directory_given_for_one_call_is_for_that_call(serve: Serve) -> None:
    async with serve(BashTool.bind()) as server:
        await run(server, "cd /usr")
        absolute, _ = await run(server, "pwd; X=1", cwd="/tmp")
        relative, _ = await run(server, "pwd", cwd="lib")
        after, _ = await run(server, "pwd; echo $X")

    assert (absolute, relative, after) == ("/tmp", "/usr/lib", "/usr\n1")


async def test_commands_of_a_session_run_one_at_a_time(serve: Serve) -> None:
    """SESS-R3"""
    got: list[str] = []

    async with serve(BashTool.bind()) as server:
        await run(server, "N=0")

        async def bump() -> None:
            got.append((await run(server, "N=$((N+1)); sleep 0.05; echo $N"))[0])

        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(bump)

    assert sorted(got) == ["1", "2", "3", "4", "5", "6"]


async def test_state_survives_a_restart_of_the_server(serve: Serve, tmp_path: Path) -> None:
    """SESS-R3: only its owner can read it."""
    async with serve(BashTool.bind(), name="again") as server:
        await run(server, "cd /tmp; X=kept; f() { echo f; }")
    async with serve(BashTool.bind(), name="again") as server:
        output, _ = await run(server, "pwd; echo $X; f")

    stored = tmp_path / "state-again" / "session.json"
    assert output == "/tmp\nkept\nf"
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600


async def test_values_the_operator_gave_are_not_stored(serve: Serve, tmp_path: Path) -> None:
    """SESS-R3: a changed configuration takes effect, and no secret of it lies in a snapshot."""
    async with serve(BashTool.bind(env={"KEY": 'old "$ecret`\\'}), name="conf") as server:
        await run(server, "export OTHER=1")
    stored = json.loads((tmp_path / "state-conf" / "session.json").read_text())
    async with serve(BashTool.bind(env={"KEY": "new"}), name="conf") as server:
        output, _ = await run(server, 'echo "$KEY $OTHER"')

    assert "ecret" not in stored["statements"]
    assert output == "new 1"


async def test_reset_starts_clean(serve: Serve) -> None:
    """SESS-R3"""
    async with serve(BashTool.bind()) as server:
        await run(server, "cd /tmp; X=1")
        output, _ = await run(server, 'pwd; echo "[$X]"', reset=True)

    assert output == "/\n[]"


async def test_a_state_over_one_mebibyte_is_not_kept(serve: Serve) -> None:
    """SESS-R3"""
    async with serve(BashTool.bind()) as server:
        await run(server, "X=before")
        output, status = await run(server, "X=during; BIG=$(head -c 1200000 /dev/zero | tr '\\0' x)")
        after, _ = await run(server, "echo $X")

    assert status == "exit 0, no output" and UNSAVED in output
    assert after == "before"


async def test_independent_calls_share_nothing(serve: Serve, tmp_path: Path) -> None:
    """BASH-R5"""
    async with serve(BashTool.bind(persistent=False), name="apart") as server:
        await run(server, "cd /tmp; X=1")
        output, status = await run(
            server, 'pwd; echo "[$X]"; compgen -v | grep -v __toolhost_script | grep toolhost; exit 5'
        )

    assert (output, status) == ("/\n[]", "exit 5")
    assert list((tmp_path / "state-apart").iterdir()) == []


async def test_a_large_state_does_not_slow_the_next_command(serve: Serve) -> None:
    async with serve(BashTool.bind()) as server:
        await run(server, "BIG=$(head -c 500000 /dev/zero | tr '\\0' x)")
        started = time.monotonic()
        output, _ = await run(server, "echo ${#BIG}")

    assert output == "500000"
    assert time.monotonic() - started < 2


def test_what_is_no_declaration_does_not_get_into_a_snapshot() -> None:
    """SESS-R1: a report is input, not truth."""
    variables = ["rm -rf /", 'declare -- X="1"\n', 'declare -r R="1"\n', 'declare -x TOOLHOST_JOB="a"\n']
    named = [field for text in variables for field in ("variable", text)]
    fields = ["start", "", "options", "braceexpand:errexit", "cwd", "/tmp", *named, "end", ""]

    report = parse_report("\0".join([*fields, ""]).encode(), {})

    assert report.snapshot is not None and report.snapshot.cwd == "/tmp"
    assert re.sub(r"\n+", "\n", report.snapshot.statements) == snapshot(
        'declare -- X="1"\nset +o hashall\nset +o interactive-comments\nset -o errexit\n'
    )


@pytest.mark.parametrize("data", [None, b"", b"start\0\0", b"start\0\0options\0x\0cwd\0/\0", b"\xff\0\0\0"])
def test_a_report_that_breaks_off_is_none(data: bytes | None) -> None:
    """SESS-R2"""
    assert parse_report(data, {}).snapshot is None


def test_a_snapshot_reads_back_as_it_was_written(tmp_path: Path) -> None:
    """SESS-R1: bytes that are no UTF-8 included."""
    kept = Snapshot(cwd="/\udcff", statements="X='\udcfe'", prefix="set -x; ")

    kept.write(tmp_path)

    assert Snapshot.stored(tmp_path) == kept
    assert Snapshot.stored(tmp_path / "missing") == Snapshot()
