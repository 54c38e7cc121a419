"""`toolhost serve`: a real host in a process of its own, used from a second one as a person would."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.waiting import eventually

from toolhost.hosting.home import Home

TOOLHOST = [sys.executable, "-m", "toolhost.cli.app"]


PLANTED = "planted-5d1f3a"


@dataclass
class Terminal:
    """Commands with one home, in an environment that holds a secret."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home.parent),
            "TOOLHOST_HOME": str(self.home),
            "ANTHROPIC_API_KEY": PLANTED,
        }

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*TOOLHOST, *arguments],
            env=self.environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    @contextmanager
    def serving(self, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
        command = [
            *TOOLHOST,
            "serve",
            "--port",
            "0",
            "--json",
            "--work-dir",
            str(self.home.parent),
            *arguments,
        ]
        host = subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert host.stdout is not None
            assert host.stderr is not None
            line = host.stdout.readline()
            assert line, host.stderr.read()
            yield host, json.loads(line)
        finally:
            if host.poll() is None:
                host.send_signal(signal.SIGTERM)
            host.communicate(timeout=30)


def everyone() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def running(words: bytes) -> bool:
    return any(command_line(pid).startswith(words) for pid in everyone())


def processes_of(home: Path) -> list[int]:
    """Living processes other than this one with *home* in an argument."""
    return [pid for pid in everyone() if pid != os.getpid() and os.fsencode(home) in command_line(pid)]


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_host_serves_a_second_terminal_and_ends_cleanly(number: signal.Signals, terminal: Terminal) -> None:
    """ZERO-1: nothing of it is left."""
    with terminal.serving() as (host, facts):
        called = terminal.run("call", "bash", "run_command", "--arg", "command=echo $((6*7))")
        listed = json.loads(terminal.run("list", "--json").stdout)
        second = terminal.run("serve", "--port", "0")
        started = time.monotonic()
        host.send_signal(number)
        code = host.wait(timeout=20)
        took = time.monotonic() - started

    assert (called.returncode, called.stdout.splitlines()[0]) == (0, "42"), called
    assert [(server["name"], server["state"]) for server in listed] == [("bash", "ready"), ("jobs", "ready")]
    assert second.returncode == 1
    assert facts["url"] in second.stderr
    assert second.stderr.endswith("[conflict]\n")
    assert (code, took < 10) == (0, True), took
    assert not (terminal.home / "host.json").exists()
    assert eventually(lambda: not processes_of(terminal.home), what="the end of every process")


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """A home with a path so short that Ray's files, and so its processes' arguments, are below it as well."""
    with tempfile.TemporaryDirectory(prefix="th-cli-") as base:
        yield Terminal(Path(base) / "home")


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Terminal, dict[str, Any]]]:
    """One host for the tests that leave it as it is."""
    with tempfile.TemporaryDirectory(prefix="th-cli-") as base:
        terminal = Terminal(Path(base) / "home")
        with terminal.serving() as (_, facts):
            yield terminal, facts


@pytest.mark.ray
def test_the_announced_token_opens_the_two_servers_and_nothing_else(
    served: tuple[Terminal, dict[str, Any]],
) -> None:
    """SEC-A1"""
    terminal, facts = served
    outside = {**terminal.environment, "TOOLHOST_URL": facts["url"], "TOOLHOST_TOKEN": facts["token"]}

    refused = subprocess.run(
        [*TOOLHOST, "token", "mint", "more"],
        env=outside, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert facts["claude"][0] == (
        f"claude mcp add --transport http bash {facts['url']}/bash/mcp "
        f"--header 'Authorization: Bearer {facts['token']}'"
    )
    assert (refused.returncode, refused.stdout) == (1, "")
    assert re.search(r"\[(permission_denied|unauthenticated)\]\n$", refused.stderr), refused.stderr


@pytest.mark.ray
def test_commands_see_nothing_of_the_hosts_environment(served: tuple[Terminal, dict[str, Any]]) -> None:
    """SEC-R3, SEC-A3, CMD-R3: neither in the environment, nor in `/proc`, nor in a log."""
    terminal, facts = served
    look = "env; tr '\\0' '\\n' < /proc/self/environ; tr '\\0' '\\n' < /proc/$PPID/environ 2>&1"

    shown = terminal.run("call", "bash", "run_command", "--arg", f"command={look}").stdout

    assert "TERM=dumb" in shown
    assert [line for line in shown.splitlines() if PLANTED in line or "RAY_" in line or "th_" in line] == []
    logs = [path for path in (terminal.home / "logs").rglob("*") if path.is_file()]
    assert [path.name for path in logs if PLANTED in path.read_text(errors="replace")] == []
    assert [path.name for path in logs if facts["token"] in path.read_text(errors="replace")] == []


@pytest.mark.ray
def test_an_unknown_server_and_an_unknown_function_are_told_apart(
    served: tuple[Terminal, dict[str, Any]],
) -> None:
    """EXEC-A6"""
    terminal, _ = served

    no_server = terminal.run("call", "nobody", "run_command")
    no_function = terminal.run("call", "bash", "no_such_function")
    bad_argument = terminal.run("call", "bash", "run_command", "--arg", "command:=7")

    assert [done.returncode for done in (no_server, no_function, bad_argument)] == [1, 1, 1]
    assert no_server.stderr.endswith("[not_found]\n")
    assert "no_such_function" in no_function.stdout + no_function.stderr
    assert "command" in bad_argument.stdout + bad_argument.stderr


@pytest.mark.ray
def test_an_interrupted_call_ends_what_it_ran(served: tuple[Terminal, dict[str, Any]]) -> None:
    """SURV-R1: nobody has a handle of it yet."""
    terminal, _ = served
    calling = subprocess.Popen(
        [*TOOLHOST, "call", "bash", "run_command", "--arg", "command=sleep 61235"],
        env=terminal.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    eventually(lambda: running(b"sleep\x0061235"), what="the start of the command")

    calling.send_signal(signal.SIGINT)
    shown = calling.communicate(timeout=20)

    assert (calling.returncode, shown) == (130, ("", ""))
    assert eventually(lambda: not running(b"sleep\x0061235"), what="the end of the command")


@pytest.mark.ray
def test_a_call_of_seconds_shows_on_a_terminal_that_it_goes_on(
    served: tuple[Terminal, dict[str, Any]],
) -> None:
    terminal, _ = served
    screen, other_end = pty.openpty()
    with open(screen, "rb", buffering=0) as master:
        calling = subprocess.Popen(
            [*TOOLHOST, "call", "bash", "run_command", "--arg", "command=sleep 2; echo done"],
            env={**terminal.environment, "TERM": "xterm"}, stdout=subprocess.PIPE, stderr=other_end,
        )  # fmt: skip
        os.close(other_end)
        shown = b""
        with suppress(OSError):  # EIO is how a terminal says that its other side is closed
            while piece := master.read(4096):
                shown += piece
        out, _ = calling.communicate(timeout=20)

    assert b"bash run_command" in shown
    assert out.startswith(b"done\n")


@pytest.mark.ray
def test_a_class_of_the_users_is_spawned_from_its_own_directory(
    served: tuple[Terminal, dict[str, Any]], tmp_path: Path
) -> None:
    """DEF-R1: it travels by value, since the tool host cannot import it."""
    terminal, _ = served
    (tmp_path / "mine.py").write_text(
        "from toolhost import ToolServer, tool\n\n\n"
        "class Mine(ToolServer):\n"
        "    def __init__(self, word: str) -> None:\n"
        "        self.word = word\n\n"
        "    @tool\n"
        "    def say(self) -> str:\n"
        '        """Say the word."""\n'
        "        return self.word\n",
        "utf-8",
    )

    spawned = subprocess.run(
        [*TOOLHOST, "spawn", "mine:Mine", "--arg", "word=ahoy"],
        cwd=tmp_path, env=terminal.environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    said = terminal.run("call", "mine", "say")
    taken = subprocess.run(
        [*TOOLHOST, "spawn", "mine:Mine", "--arg", "word=again"],
        cwd=tmp_path, env=terminal.environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    stopped = terminal.run("stop", "mine")

    assert (spawned.returncode, said.stdout) == (0, "ahoy\n"), spawned
    assert (taken.returncode, taken.stderr.endswith("[conflict]\n")) == (1, True), taken
    assert stopped.stdout == "mine is stopped\n"


@pytest.mark.ray
@pytest.mark.faults
def test_after_everything_was_killed_a_sweep_leaves_nothing_and_the_home_serves_again(
    terminal: Terminal,
) -> None:
    """LEASE-R3, ZERO-1, ZERO-2: the job's record says `lost`, with no exit code."""
    with terminal.serving() as (host, _):
        terminal.run("call", "jobs", "run", "--arg", "command=setsid sleep 54321 & sleep 54321")
        for pid in [host.pid, *processes_of(terminal.home)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        host.wait(timeout=20)

    swept = terminal.run("sweep", "--json")
    assert swept.returncode == 0, swept
    assert eventually(lambda: not processes_of(terminal.home), what="the end of every process")
    assert not running(b"sleep\x0054321")

    with terminal.serving():
        found = terminal.run("call", "jobs", "run_status", "--arg", "job_id=job-1")

    assert json.loads(found.stdout)["state"] == "failed", found
    assert "lost" in found.stdout


@pytest.mark.ray
@pytest.mark.faults
def test_a_host_that_was_killed_serves_again_at_its_port_at_once(terminal: Terminal) -> None:
    """LIFE-R4: the ingress that it left, itself a replacement, does not hold the port."""
    host_file = Home(terminal.home).read_host_file
    with terminal.serving() as (host, facts):
        first = host_file().ingress_pid
        os.kill(first, signal.SIGKILL)
        eventually(lambda: host_file().ingress_pid != first, what="another ingress")
        os.kill(host.pid, signal.SIGKILL)
        host.wait(timeout=20)

    port = facts["url"].rpartition(":")[2]
    with terminal.serving("--port", port) as (_, again):
        called = terminal.run("call", "bash", "run_command", "--arg", "command=echo up")

    assert (again["url"], again["token"], called.returncode) == (facts["url"], facts["token"], 0), called


@pytest.mark.ray
def test_a_host_that_is_interrupted_while_it_starts_leaves_nothing(terminal: Terminal) -> None:
    """ZERO-1"""
    command = [*TOOLHOST, "serve", "--port", "0"]
    starting = subprocess.Popen(command, env=terminal.environment, stdout=subprocess.PIPE, text=True)
    eventually(lambda: processes_of(terminal.home), within=30, what="the start of Ray")

    starting.send_signal(signal.SIGTERM)
    shown, _ = starting.communicate(timeout=40)

    assert (starting.returncode, shown) == (130, "")
    assert not (terminal.home / "host.json").exists()
    assert eventually(lambda: not processes_of(terminal.home), what="the end of every process")


@contextmanager
def occupied(ports: range) -> Iterator[None]:
    with ExitStack() as stack:
        for port in ports:
            with suppress(OSError):  # somebody else has it already, which is as good
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
        yield


@pytest.mark.ray
def test_down_stops_a_host_that_no_occupied_port_kept_from_starting(terminal: Terminal) -> None:
    """HOST-R1, HOST-A5"""
    with occupied(range(8000, 8100)), terminal.serving("--no-default-servers") as (host, facts):
        done = terminal.run("down")
        code = host.wait(timeout=20)

    assert (done.returncode, done.stdout) == (0, f"the host at {facts['url']} is stopped\n"), done
    assert code == 0


def test_a_port_in_use_is_one_error_that_names_it_and_the_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = Terminal(tmp_path / "home").run("serve", "--port", str(port))

    assert done.returncode == 1
    assert done.stderr == (
        f"error: port {port} of 127.0.0.1 is in use: stop what listens there, or choose another with --port "
        "(--port 0 lets the system choose) [conflict]\n"
    )
    assert processes_of(tmp_path) == []


def test_without_ray_the_error_says_how_to_install_it(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['ray'] = None; from toolhost.cli.app import run; "
        f"sys.exit(run(['serve', '--home', {str(tmp_path / 'home')!r}]))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: Ray is not installed, and tool servers run in it; run: make install [unavailable]\n"
    )


def test_a_work_directory_that_is_none_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = Terminal(tmp_path / "home").run("serve", "--work-dir", str(tmp_path / "nowhere"))

    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert not (tmp_path / "home").exists()
