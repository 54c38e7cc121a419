"""The init of one job: starts the leader, reaps everything below it, reports, and takes the tree along when it ends.

One process per job, forked by the zygote, a subreaper, so that whatever the command detaches comes back here. It
obeys one socket. Its end (the warden is gone, or is done with the job) ends the whole tree and then the init.

Messages in: `start` (a plan, descriptors 0-2 or 0-3, then the plan's file when it did not fit), `term`, `kill`,
`signal`. Messages out: `hello`, `started` or `failed`, `exit` (the leader's wait status), `empty` (no process left),
`stuck` (processes the kernel does not end).

Rules of this file: import-light; one thread; never exits while a process of the tree exists.
"""
# pathlib is not loaded in the zygote, hence:
# ruff: noqa: PTH

from __future__ import annotations

import array
import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import time
from typing import Any, NoReturn

from toolhost_sdk.node import cgroups, launch, procfs

MESSAGE_LIMIT = 128 << 10  # a SEQPACKET message must fit the socket's buffer; larger plans travel as a file
STUCK_AFTER = 1.0
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    if _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def receive(sock: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """One message and its descriptors; None at the end of the socket."""
    data, ancillary, _, _ = sock.recvmsg(MESSAGE_LIMIT, socket.CMSG_LEN(8 * 4), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, raw in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
    return (json.loads(data) if data else None), list(fds)


def wakeup_on_children() -> int:
    """A descriptor that becomes readable when a child ended."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    return read


class Init:
    """The loop of one init process."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._leader: int | None = None
        self._error: int | None = None  # read end; until exec or failure
        self._started = False  # the outcome of the start was sent
        self._exited = False
        self._killing_since: float | None = None
        self._stuck: list[int] = []
        self._orphaned = False
        self._groups: list[str] = []
        self._emptied = False

    def run(self) -> NoReturn:
        procfs.set_name("th-init")
        become_subreaper()
        wake = wakeup_on_children()
        self._send({"t": "hello", "pid": os.getpid()})
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(wake, select.POLLIN)
        while True:
            if self._error is not None:
                poll.register(self._error, select.POLLIN)
            waited_on = self._error
            for fd, _ in poll.poll(self._patience()):
                if fd == wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake, 4096)
                elif fd == self._sock.fileno() and not self._orphaned:
                    self._receive()
            if waited_on is not None:
                self._settle_start()
                if self._error is None:
                    poll.unregister(waited_on)
            if self._orphaned:
                with contextlib.suppress(KeyError):
                    poll.unregister(self._sock)
            self._tend()

    def _patience(self) -> int | None:
        if self._killing_since is None or self._emptied:
            return None
        return 5 if time.monotonic() - self._killing_since < STUCK_AFTER else 100

    def _receive(self) -> None:
        try:
            message, fds = receive(self._sock)
        except OSError:
            message, fds = None, []
        if message is None:
            self._orphaned = True
            self._kill()
            return
        match message["op"]:
            case "start":
                self._start(message, fds)
            case "term":
                procfs.signal_below(os.getpid(), signal.SIGTERM)
                procfs.signal_below(os.getpid(), signal.SIGCONT)
            case "kill":
                self._kill()
            case "signal" if self._leader is not None and not self._exited:
                with contextlib.suppress(OSError):
                    os.killpg(self._leader, message["number"])

    def _start(self, plan: dict[str, Any], fds: list[int]) -> None:
        if plan["in_file"]:
            plan = _read_plan(fds.pop())
        self._groups = plan["cgroups"]
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork()
        except OSError as error:
            os.close(read)
            os.close(write)
            self._started = self._exited = True
            self._send({"t": "failed", "error": "other", "message": f"could not fork: {error.strerror}"})
            self._send({"t": "exit", "status": None, "empty": True, "cpu": 0.0, "rss": 0, "oom": 0})
            return
        if pid == 0:
            launch.run(plan, fds, write)
        os.close(write)
        self._leader = pid
        self._error = read
        os.set_blocking(read, False)
        for fd in fds:
            os.close(fd)

    def _settle_start(self) -> None:
        """Say how the start went once exec closed the pipe or the launcher wrote why it could not."""
        if self._error is None:
            return
        try:
            data = os.read(self._error, 65536)
        except BlockingIOError:
            return
        os.close(self._error)
        self._error = None
        self._started = True
        if data:
            self._send({"t": "failed", **json.loads(data)})
        else:
            assert self._leader is not None
            self._send({"t": "started", "pid": self._leader, "start": procfs.start_time(self._leader)})

    def _tend(self) -> None:
        """Kill when asked to, reap what ended, and say what that means."""
        if self._killing_since is not None:
            for group in self._groups:
                cgroups.kill(group)
            procfs.signal_below(os.getpid(), signal.SIGKILL)
        ended: tuple[int, resource.struct_rusage] | None = None
        childless = False
        try:
            while True:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == self._leader and not self._exited:
                    ended = status, usage
        except ChildProcessError:
            childless = True
        empty = childless and all(cgroups.empty(group) for group in self._groups)
        if ended is not None:
            self._settle_start()
            self._exited = True
            self._report("exit", empty, ended[0], ended[1])
        elif empty and self._exited and not self._emptied:
            self._report("empty", empty, None, resource.getrusage(resource.RUSAGE_CHILDREN))
        if empty and (self._exited or self._leader is None):
            self._emptied = True
            if self._orphaned:
                self._leave()
        elif self._killing_since is not None and time.monotonic() - self._killing_since > STUCK_AFTER:
            stuck = procfs.descendants(os.getpid())
            if stuck != self._stuck:
                self._stuck = stuck
                self._send({"t": "stuck", "pids": stuck})

    def _report(self, kind: str, empty: bool, status: int | None, usage: resource.struct_rusage) -> None:
        message = {
            "t": kind, "status": status, "empty": empty, "cpu": usage.ru_utime + usage.ru_stime,
            "rss": usage.ru_maxrss * 1024, "oom": sum(cgroups.oom_kills(group) for group in self._groups),
        }  # fmt: skip
        if empty:
            for group in self._groups:
                cgroups.remove(group)
        self._send(message)

    def _kill(self) -> None:
        if self._killing_since is None:
            self._killing_since = time.monotonic()

    def _leave(self) -> NoReturn:
        for group in self._groups:
            cgroups.remove(group)
        os._exit(0)

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the warden is gone: the end of the socket says so
            self._sock.send(json.dumps(message).encode())


def _read_plan(fd: int) -> dict[str, Any]:
    size = os.fstat(fd).st_size
    plan: dict[str, Any] = json.loads(os.pread(fd, size, 0))
    os.close(fd)
    return plan
