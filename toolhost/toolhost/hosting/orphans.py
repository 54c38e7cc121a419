"""The ingress of a host that was killed may still hold the port for a few seconds. End it, and nothing else."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

from toolhost.hosting.home import Home
from toolhost_sdk.errors import UnavailableError


def end_previous_ingress(home: Home, *, timeout: float = 5.0) -> None:
    """Called with the home's lock held, so no living controller owns what is found here; before a port is bound.

    A pid alone proves nothing (they are reused): the process is ended by a descriptor, and only if its command
    line names this home's control socket.
    """
    try:
        pid = home.read_host_file().ingress_pid
        descriptor = os.pidfd_open(pid)
    except (UnavailableError, OSError):
        return
    try:
        if not _is_ours(pid, home):
            return
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        select.select([descriptor], [], [], timeout)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def _is_ours(pid: int, home: Home) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(home.control_socket) in words and b"toolhost.ingress" in words
