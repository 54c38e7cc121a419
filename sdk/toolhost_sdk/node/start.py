"""Starting a warden that belongs to nobody.

Rules of this file: synchronous and bounded; idempotent; the warden inherits neither environment nor descriptors.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import toolhost_sdk
from toolhost_sdk.errors import StartupTimeoutError, UnavailableError
from toolhost_sdk.node import environment

_LEAST = 0.5  # seconds a started warden gets, however late it is
_SOURCES = Path(toolhost_sdk.__file__).resolve().parents[1]


def warden_answers(path: Path) -> bool:
    """Whether something listens at *path*."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def ensure_warden(
    home: Path,
    runtime_dir: Path,
    instance: str,
    *,
    ttl: float = 60.0,
    sweep_every: float = 30.0,
    retention: float = 86400.0,
    log_quota: int = 16 << 30,
    cwd: str | None = None,
    hide: Path | None = None,
    timeout: float = 20.0,
) -> Path:
    """The socket of the warden of *home*, started if none answers. Blocking: call it in a worker thread.

    Args:
        home: where it keeps records and logs; one warden per home.
        runtime_dir: for the socket; short, 0700.
        instance: the label of everything it starts.
        ttl: seconds the warden lives until somebody holds it (`WardenClient.hold`).
        hide: a directory that read-only commands do not see, beside *home* and *runtime_dir*.

    Raises:
        StartupTimeoutError: none answered within *timeout*.
        UnavailableError: it could not start; the message holds what it said.
    """
    path = runtime_dir / "warden.sock"
    if warden_answers(path):
        return path
    until = time.monotonic() + timeout
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(home / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(lock, until, home)
        said = ""
        while not warden_answers(path):
            if time.monotonic() > until:
                raise StartupTimeoutError(f"no warden answered at {str(path)!r} within {timeout:g} s; {said}")
            named = {"home": home.resolve(), "socket": path.absolute(), "instance": instance, "ttl": ttl}
            named |= {"sweep-every": sweep_every, "retention": retention, "log-quota": log_quota}
            named |= {"cwd": cwd} if cwd else {}
            named |= {"hide": hide} if hide else {}
            said = _start(
                [part for name, value in named.items() for part in (f"--{name}", str(value))], until
            )
    finally:
        os.close(lock)
    return path


def _lock(fd: int, until: float, home: Path) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise StartupTimeoutError(
                    f"another process starts the warden of {str(home)!r} and does not end"
                ) from None
            time.sleep(0.02)


def _start(arguments: list[str], until: float) -> str:
    """Start a warden. Returns what it said when another stands in its way, which may be on its way out."""
    launcher = subprocess.Popen(
        [sys.executable, "-m", "toolhost_sdk.node.warden", "--detach", *arguments],
        env={"PATH": environment.PATH, "LANG": "C.UTF-8", "PYTHONPATH": str(_SOURCES)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        close_fds=True,
        cwd="/",
    )
    try:
        output, _ = launcher.communicate(timeout=max(_LEAST, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        launcher.kill()
        launcher.communicate()
        raise StartupTimeoutError(
            "a warden was started and not ready in time; its log is in its home"
        ) from None
    said = output.decode("utf-8", "replace").strip()[-2000:]
    if "another warden" in said:
        time.sleep(0.1)  # try until time is up
    elif launcher.returncode != 0:
        raise UnavailableError(f"the warden could not start: {said}")
    return said


def wait_until_gone(home: Path, *, timeout: float = 5.0) -> bool:
    """Whether the warden of *home* has ended within *timeout* seconds: its lock is free and it writes no more.
    Blocking."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        try:
            with (home / "warden.lock").open("r+", encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return True
        except FileNotFoundError:
            return True
        except BlockingIOError:
            time.sleep(0.01)
    return False
