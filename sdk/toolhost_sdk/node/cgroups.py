"""Cgroups of jobs: where they can be made, how they are killed, and the proof that they are empty.

Names: `<v2 root>/toolhost-<namespace>.<generation>/<job>`; the namespace says whose they are, the generation which
life of the warden made them. Rules of this file: import-light; a controller is used only where the kernel offers
it, never pretended.
"""
# pathlib is not loaded in the zygote, hence:
# ruff: noqa: PTH102, PTH103, PTH106

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct

from toolhost_sdk.node import procfs

PREFIX = "toolhost-"
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_INTO_CGROUP = 0x200000000
_SYS_CLONE3 = 435  # one number on every architecture


def _mounts() -> list[tuple[str, str, str]]:
    found = []
    for line in procfs.read_bytes("/proc/self/mounts").decode("utf-8", "replace").splitlines():
        parts = line.split()
        if len(parts) > 3 and parts[2].startswith("cgroup"):
            found.append((parts[2], parts[1], parts[3]))
    return found


def _own_path(controller: str) -> str:
    """Our path in the hierarchy of a v1 *controller*, or in v2 for an empty name."""
    for line in procfs.read_bytes("/proc/self/cgroup").decode("utf-8", "replace").splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return path
    return "/"


def _works(parent: str) -> bool:
    """Whether a cgroup can be made, killed and read below *parent*."""
    trial = f"{parent}/{PREFIX}probe-{os.getpid()}"
    try:
        os.mkdir(trial)
    except OSError:
        return False
    try:
        return os.access(f"{trial}/cgroup.kill", os.W_OK) and os.access(f"{trial}/cgroup.procs", os.W_OK)
    finally:
        os.rmdir(trial)


def probe() -> str | None:
    """The directory below which jobs may have cgroups v2 of their own, or None."""
    for kind, point, _ in _mounts():
        if kind != "cgroup2":
            continue
        own = point + _own_path("").rstrip("/")
        for parent in (
            point,
            own,
        ):  # root uses the top: our own group may hold processes, which forbids controllers
            if os.access(parent, os.W_OK) and _works(parent):
                return parent
    return None


def probe_pids_v1() -> str | None:
    """The directory of the v1 `pids` controller where groups may be made, or None."""
    for kind, point, options in _mounts():
        if kind == "cgroup" and "pids" in options.split(","):
            own = point + _own_path("pids").rstrip("/")
            if os.access(own, os.W_OK):
                return own
    return None


def controllers(parent: str | None) -> frozenset[str]:
    """Controllers of v2 that children of *parent* can be given."""
    if parent is None:
        return frozenset()
    return frozenset(procfs.read_bytes(f"{parent}/cgroup.controllers").decode().split())


def write(path: str, value: str) -> bool:
    """Write one kernel value. Returns whether the kernel took it."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, value.encode())
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def make(path: str, limits: dict[str, int]) -> bool:
    """Make the cgroup and set its limits (`pids.max`, `memory.max`, ...). Returns whether all of it held."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError:
        return False
    return all(write(f"{path}/{name}", str(value)) for name, value in limits.items())


def fork_into(path: str | None) -> int:
    """Fork a child that begins its life in the cgroup.

    Writing a pid to `cgroup.procs` instead waits for the kernel's readers of it, some 6 ms, and holds up every fork of
    the machine meanwhile. The child skips what Python does after a fork; it has one thread and soon becomes a program.

    Raises:
        OSError: no process could be made.
    """
    if path is None:
        return os.fork()
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        arguments = struct.pack("11Q", _CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, directory)
        pid = int(_LIBC.syscall(_SYS_CLONE3, arguments, ctypes.c_size_t(len(arguments))))
        number = ctypes.get_errno()
    finally:
        os.close(directory)
    if pid >= 0:
        return pid
    if number in (errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP):  # a filter or an old kernel: the slow way
        return _fork_then_enter(path)
    raise OSError(number, os.strerror(number))


def _fork_then_enter(path: str) -> int:
    pid = os.fork()
    if pid == 0 and not write(f"{path}/cgroup.procs", "0"):
        os._exit(126)
    return pid


def kill(path: str) -> None:
    write(f"{path}/cgroup.kill", "1")


def empty(path: str) -> bool:
    """Whether no process is in the cgroup or below it; a missing cgroup is empty."""
    return b"populated 1" not in procfs.read_bytes(f"{path}/cgroup.events")


def members(path: str) -> list[int]:
    """Processes in the cgroup and below it."""
    found = [int(part) for part in procfs.read_bytes(f"{path}/cgroup.procs").split()]
    for name in subgroups(path):
        found.extend(members(f"{path}/{name}"))
    return found


def subgroups(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def remove(path: str) -> bool:
    """Remove an empty cgroup with everything a command made below it. Returns whether it is gone."""
    for name in subgroups(path):
        remove(f"{path}/{name}")
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def oom_kills(path: str) -> int:
    """The kernel's count of processes it ended here for want of memory."""
    for line in procfs.read_bytes(f"{path}/memory.events").splitlines():
        if line.startswith(b"oom_kill "):
            return int(line.split()[1])
    return 0
