"""The zygote: a small process that forks inits, takes in their orphans, and outlives the warden just long enough.

It is executed (not forked) by the warden, so that its memory and environment hold nothing of anyone's. It is a
subreaper too: what an init that was killed leaves behind comes here and is ended. When the warden's socket closes it
ends everything of this generation, removes the cgroups and exits.

Rules of this file: import-light; one thread; no import of anything but the standard library and its own room.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
from typing import NoReturn

from toolhost_sdk.node import cgroups, init, launch, procfs

INITS_MAY_TAKE = 2.0  # seconds inits have to end their own trees after the warden's death
GIVE_UP_AFTER = 30.0


class Zygote:
    def __init__(self, control: socket.socket, groups: list[str]) -> None:
        self._control = control
        self._groups = groups
        self._inits: set[int] = set()

    def run(self) -> NoReturn:
        procfs.set_name("th-zygote")
        init.become_subreaper()
        wake = init.wakeup_on_children()
        launch.warm()
        gc.collect()
        gc.freeze()
        gc.disable()
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(wake, select.POLLIN)
        orphans = False
        while True:
            for fd, _ in poll.poll(10 if orphans else None):
                if fd == wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake, 4096)
                elif not self._serve(wake):
                    self._finish()
            orphans = self._reap()

    def _serve(self, wake: int) -> bool:
        """Fork one init. False when the warden is gone."""
        try:
            message, fds = init.receive(self._control)
        except OSError:
            return False
        if message is None:
            return False
        sock = socket.socket(fileno=fds[0])
        try:
            pid = os.fork()
        except OSError:
            sock.close()  # the warden sees the end of the socket before a hello
            return True
        if pid == 0:
            try:
                self._control.close()
                os.close(wake)
                init.Init(sock, message["group"]).run()
            finally:
                os._exit(70)
        self._inits.add(pid)
        sock.close()
        return True

    def _reap(self) -> bool:
        """Reap, and end what dead inits left behind. Returns whether some of it still lives."""
        with contextlib.suppress(ChildProcessError):
            for pid, _ in procfs.reap_all():
                self._inits.discard(pid)
        if not set(procfs.children(os.getpid())) - self._inits:
            return False
        procfs.signal_below(os.getpid(), signal.SIGKILL, skip=frozenset(self._inits))
        return True

    def _finish(self) -> NoReturn:
        """The warden is gone: end everything of this generation, remove its cgroups, exit."""
        began = time.monotonic()
        while time.monotonic() - began < GIVE_UP_AFTER:
            late = time.monotonic() - began > INITS_MAY_TAKE
            for group in self._groups:
                for name in cgroups.subgroups(group):
                    cgroups.kill(f"{group}/{name}")
            procfs.signal_below(
                os.getpid(), signal.SIGKILL, skip=frozenset() if late else frozenset(self._inits)
            )
            try:
                for pid, _ in procfs.reap_all():
                    self._inits.discard(pid)
            except ChildProcessError:
                removed = [cgroups.remove(group) for group in self._groups]
                if all(removed):
                    break
            time.sleep(0.005)
        os._exit(0)


def main() -> NoReturn:
    """Arguments: the number of the control socket's descriptor, and the cgroups of the generation."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    os.setsid()
    Zygote(control, sys.argv[2:]).run()
