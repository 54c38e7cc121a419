"""`toolhost serve` as a process of its own, for tests that kill parts of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from toolhost.hosting.home import Home

SERVE = [sys.executable, "-m", "toolhost.cli.app", "serve", "--json"]


@dataclass
class Serving:
    """A host in the foreground of another process.

    Args:
        token: opens its default servers.
    """

    home: Home
    process: subprocess.Popen[str]
    url: str
    token: str

    @property
    def ingress_pid(self) -> int:
        return self.home.read_host_file().ingress_pid

    @property
    def warden_pid(self) -> int:
        """Asked of the kernel: who listens on the warden's socket."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(self.home.warden_socket))
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])

    def processes(self) -> dict[int, str]:
        """Living processes whose command line names this home or its sockets, by pid."""
        names = (os.fsencode(self.home.root), os.fsencode(self.home.runtime_dir))
        return {
            pid: line
            for pid, line in command_lines().items()
            if any(name in os.fsencode(line) for name in names)
        }


def command_lines() -> dict[int, str]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                found[int(entry.name)] = os.fsdecode((entry / "cmdline").read_bytes().replace(b"\0", b" "))
    return found


def labelled(instance: str) -> list[int]:
    """Living processes that carry a job's label of *instance* in their environment."""
    wanted = f"TOOLHOST_JOB={instance}-".encode()  # and then which home of it
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if wanted in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


@contextmanager
def serving(
    home: Path,
    *arguments: str,
    work_dir: Path,
    environment: Mapping[str, str] | None = None,
    umask: int = -1,
) -> Iterator[Serving]:
    """Run `toolhost serve`; on exit end it by SIGTERM, if it still runs.

    Args:
        environment: what is there beside `PATH`, `HOME` and `TOOLHOST_HOME`.
    """
    own = {"PATH": os.environ["PATH"], "HOME": str(home.parent), "TOOLHOST_HOME": str(home)}
    with subprocess.Popen(
        [*SERVE, "--work-dir", str(work_dir), *arguments],
        env={**own, **(environment or {})},
        umask=umask,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            assert line, process.stderr.read()
            facts = json.loads(line)
            yield Serving(Home(home), process, facts["url"], facts["token"])
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
