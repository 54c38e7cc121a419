"""The init of a job: starts the leader, reaps everything below it, reports, and takes the tree along when it ends.

One process per job at a time, forked by the zygote, a subreaper, so that whatever the command detaches comes back
here. When nothing is left of a job it may be given the next. It obeys one socket. Its end (the warden is gone, or done
with the init) ends the whole tree and then the init.

Messages in: `groups` (more cgroups of the job), `term`, `kill`, `signal`, `next` (another job). Messages out: `hello`
(the leader's pid, with two descriptors: the socket on which it waits for a plan and descriptors 0-2 or 0-3, and the
pipe on which it says why it could not start; exec closes that one, so a start wakes nobody here), `exit` (the leader's
wait status), `empty` (no process left), `stuck` (processes the kernel does not end).

Rules of this file: import-light; one thread; never exits while a process of the tree exists.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import time
from typing import Any, NoReturn

from toolhost_sdk.node import cgroups, launch, procfs

MESSAGE_LIMIT = 128 << 10  # a SEQPACKET message must fit the socket's buffer; larger plans travel as a file
STUCK_AFTER = 1.0
_PR_SET_CHILD_SUBREAPER = 36
_ALL_SIGNALS = frozenset(range(1, signal.NSIG)) - {32, 33}  # less those of the C library
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

    def __init__(self, sock: socket.socket, group: str | None) -> None:
        self._sock = sock
        self._orphaned = False
        self._reset(group)

    def _reset(self, group: str | None) -> None:
        """Forget the last job; the next one runs in *group*."""
        self._group = group
        self._groups: list[str] = [] if group is None else [group]
        self._leader = 0
        self._status: int | None = None
        self._exited = False  # and said so
        self._emptied = False
        self._lagging = False  # no child is left but a cgroup is not empty
        self._killing_since: float | None = None
        self._stuck: list[int] = []
        self._cpu, self._rss = 0.0, 0

    def run(self) -> NoReturn:
        procfs.set_name("th-init")
        become_subreaper()
        wake = wakeup_on_children()
        self._offer()
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(wake, select.POLLIN)
        while True:
            for fd, _ in poll.poll(self._patience()):
                if fd == wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake, 4096)
                elif fd == self._sock.fileno() and not self._orphaned:
                    self._receive()
            if self._orphaned:
                with contextlib.suppress(KeyError):
                    poll.unregister(self._sock)
            self._tend()

    def _offer(self) -> None:
        """Say hello, with the way to a leader that waits."""
        plans, refusals = self._prepare()
        with plans, contextlib.suppress(OSError):
            hello = {"t": "hello", "pid": os.getpid(), "leader": self._leader}
            socket.send_fds(self._sock, [json.dumps(hello).encode()], [plans.fileno(), refusals])
        os.close(refusals)

    def _patience(self) -> int | None:
        if self._emptied or (self._killing_since is None and not self._lagging):
            return None
        if self._killing_since is None:
            return 5
        return 5 if time.monotonic() - self._killing_since < STUCK_AFTER else 100

    def _receive(self) -> None:
        try:
            message, _ = receive(self._sock)
        except OSError:
            message = None
        if message is None:
            self._orphaned = True
            self._kill()
            return
        match message["op"]:
            case "groups":
                self._groups += message["cgroups"]
            case "next":
                self._reset(message["group"])
                self._offer()
            case "term":
                procfs.signal_below(os.getpid(), signal.SIGTERM)
                procfs.signal_below(os.getpid(), signal.SIGCONT)
            case "kill":
                self._kill()
            case "signal" if self._leader > 0:
                with contextlib.suppress(OSError):
                    os.killpg(self._leader, message["number"])

    def _prepare(self) -> tuple[socket.socket, int]:
        """Fork what will become the leader, so that a start costs no fork. Returns where it waits for its plan, and
        where it will say why it could not start."""
        read, write = os.pipe2(os.O_CLOEXEC)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Blocked, not ignored as they are here: a TERM that comes before the child is ready must wait for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
        try:
            pid = cgroups.fork_into(self._group)
            if pid == 0:
                ours.close()
                os.close(read)
                _wait_for_plan(theirs, write)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.close(write)
        theirs.close()
        os.set_blocking(read, False)
        self._leader = pid
        return ours, read

    def _tend(self) -> None:
        """Kill when asked to, reap what ended, and say what that means."""
        if self._killing_since is not None:
            for group in self._groups:
                cgroups.kill(group)
            procfs.signal_below(os.getpid(), signal.SIGKILL)
        childless = self._reap()
        empty = childless and self._groups_empty()
        self._lagging = childless and not empty
        if self._status is not None and not self._exited:
            self._exited = True
            self._report("exit", empty)
        elif empty and self._exited and not self._emptied:
            self._report("empty", empty)
        if empty and (self._exited or self._orphaned):
            self._emptied = True
            if self._orphaned:
                self._leave()
        elif self._killing_since is not None and time.monotonic() - self._killing_since > STUCK_AFTER:
            stuck = procfs.descendants(os.getpid())
            if stuck != self._stuck:
                self._stuck = stuck
                self._send({"t": "stuck", "pids": stuck})

    def _groups_empty(self) -> bool:
        """Whether the cgroups agree that nobody is left; the kernel tells them a moment after the wait."""
        for _ in range(5):
            if all(cgroups.empty(group) for group in self._groups):
                return True
            time.sleep(0.0003)
        return False

    def _reap(self) -> bool:
        """Reap what ended and add up what it used. Returns whether no child is left."""
        try:
            while True:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                if pid == 0:
                    return False
                self._cpu += usage.ru_utime + usage.ru_stime
                self._rss = max(self._rss, usage.ru_maxrss * 1024)
                if pid == self._leader:
                    self._status, self._leader = status, -1
        except ChildProcessError:
            return True

    def _report(self, kind: str, empty: bool) -> None:
        message = {
            "t": kind, "status": self._status, "empty": empty, "cpu": self._cpu, "rss": self._rss,
            "oom": sum(cgroups.oom_kills(group) for group in self._groups),
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


def _wait_for_plan(plans: socket.socket, error_fd: int) -> NoReturn:
    """The leader before it is one."""
    try:
        launch.prepare()
        launch.rehearse()
        plan, fds = receive(plans)
        if plan is not None and plan["in_file"]:
            file = fds.pop()
            plan = json.loads(os.pread(file, os.fstat(file).st_size, 0))
    except BaseException as error:  # noqa: BLE001 - a forked child: what unwound further would end as a code of the command
        launch.tell(error_fd, "other", f"could not start: {error!r}")
        os._exit(126)
    if plan is None:
        os._exit(0)
    launch.run(plan, fds, error_fd)
