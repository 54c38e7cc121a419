"""Facts about processes from `/proc`, and signals that cannot hit a stranger.

Rules of this file: import-light (the zygote and every init load it); a pid alone never gets a signal, only a pid
with the start time it had when it was attributed to us, through a pidfd.
"""
# pathlib is not loaded in the zygote, hence:
# ruff: noqa: PTH115, PTH208

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

JOB_LABEL = b"TOOLHOST_JOB="


def read_bytes(path: str) -> bytes:
    """The content of a small kernel file; empty when it or its process is gone or not ours to read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _stat_fields(pid: int) -> list[bytes]:
    data = read_bytes(f"/proc/{pid}/stat")
    return data[data.rfind(b")") + 2 :].split() if data else []


def start_time(pid: int) -> int | None:
    """Start of the process in clock ticks since boot, or None when there is no such process."""
    fields = _stat_fields(pid)
    return int(fields[19]) if len(fields) > 19 else None


def parent(pid: int) -> int | None:
    fields = _stat_fields(pid)
    return int(fields[1]) if len(fields) > 1 else None


def is_zombie(pid: int) -> bool:
    fields = _stat_fields(pid)
    return bool(fields) and fields[0] in (b"Z", b"X")


def name(pid: int) -> str:
    return read_bytes(f"/proc/{pid}/comm").decode("utf-8", "replace").strip() or "?"


def children(pid: int) -> list[int]:
    """Direct children of every thread of *pid*, zombies included."""
    found: list[int] = []
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for task in tasks:
        found.extend(int(part) for part in read_bytes(f"/proc/{pid}/task/{task}/children").split())
    return found


def descendants(pid: int) -> list[int]:
    """Every process below *pid*, parents before children. A snapshot: a forking tree may outrun it."""
    found: list[int] = []
    queue = children(pid)
    while queue:
        current = queue.pop()
        found.append(current)
        queue.extend(children(current))
    return found


def living(pids: list[int]) -> list[int]:
    return [pid for pid in pids if start_time(pid) is not None and not is_zombie(pid)]


def send_signal(pid: int, started: int, number: int) -> bool:
    """Signal *pid* if it still is the process that started at *started*. Returns whether it got the signal."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if start_time(pid) != started:
            return False
        signal.pidfd_send_signal(fd, number)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def signal_below(pid: int, number: int, *, skip: frozenset[int] = frozenset()) -> int:
    """Send *number* to every living process below *pid* but the subtrees of *skip*. Returns how many got it."""
    sent = 0
    queue = [child for child in children(pid) if child not in skip]
    while queue:
        current = queue.pop()
        started = start_time(current)
        if started is None:
            continue
        queue.extend(child for child in children(current) if child not in skip)
        if not is_zombie(current):
            sent += send_signal(current, started, number)
    return sent


def reap_all() -> Iterator[tuple[int, int]]:
    """Reap what has ended; yields (pid, wait status). Raises ChildProcessError when no child is left at all."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        yield pid, status


def labelled(namespace: str) -> Iterator[tuple[int, int, str]]:
    """Processes whose environment names a job of *namespace*: (pid, start time, job id)."""
    marker = JOB_LABEL + namespace.encode() + b"/"
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        started = start_time(int(entry))
        environ = read_bytes(f"/proc/{entry}/environ")
        if started is None or marker not in environ:
            continue
        for item in environ.split(b"\0"):
            if item.startswith(marker):
                yield int(entry), started, item[len(marker) :].decode("utf-8", "replace")
                break


def blocked_reading_stdin(pid: int, pipe: str, read_number: int) -> bool:
    """Whether a thread of *pid* blocks in `read(0, ...)` on the pipe with this link text (`pipe:[123]`)."""
    try:
        if os.readlink(f"/proc/{pid}/fd/0") != pipe:
            return False
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return False
    prefix = f"{read_number} 0x0 ".encode()
    return any(read_bytes(f"/proc/{pid}/task/{task}/syscall").startswith(prefix) for task in tasks)


def boot_id() -> str:
    return read_bytes("/proc/sys/kernel/random/boot_id").decode().strip()


def set_name(text: str) -> None:
    """What `ps` shows for this process."""
    with contextlib.suppress(OSError):
        fd = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode()[:15])
        finally:
            os.close(fd)
