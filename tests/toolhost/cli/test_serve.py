"""`toolhost serve`: a real host in a process of its own, used from a second one as a person would."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.waiting import eventually

TOOLHOST = [sys.executable, "-m", "toolhost.cli.app"]


@dataclass
class Terminal:
    """Commands with one home."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.home.parent), "TOOLHOST_HOME": str(self.home)}

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


def processes_of(home: Path) -> list[str]:
    """Command lines of living processes that name *home*, as words of their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(home) in line:
                found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_host_serves_a_second_terminal_and_ends_cleanly(number: signal.Signals, tmp_path: Path) -> None:
    """ZERO-1: nothing of it is left."""
    terminal = Terminal(tmp_path / "home")

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


@pytest.mark.ray
def test_the_announced_token_opens_the_two_servers_and_nothing_else(tmp_path: Path) -> None:
    """SEC-A1"""
    terminal = Terminal(tmp_path / "home")

    with terminal.serving() as (_, facts):
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
def test_down_stops_a_host_from_another_terminal(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path / "home")

    with terminal.serving("--no-default-servers") as (host, facts):
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
