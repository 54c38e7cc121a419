"""A private mount namespace in which everything is read-only but fresh temporary directories.

Rules of this file: import-light; runs between fork and exec; raises OSError where the node cannot do it. It stops
mistakes, and what an ordinary user could try; against a hostile root a sandbox is needed (raw devices stay reachable).
"""
# pathlib is not loaded in the zygote, hence:
# ruff: noqa: PTH103, PTH112

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Sequence

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY = 1
_SYS_MOUNT_SETATTR = 442  # one number on every architecture since 5.12
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_DROPPED = (
    16,
    17,
    19,
    21,
    22,
    27,
)  # sys_module, sys_rawio, sys_ptrace, sys_admin, sys_boot, mknod: ways around it
_FRESH = ("/tmp", "/var/tmp", "/dev/shm")


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    parts = [None if part is None else os.fsencode(part) for part in (source, target, kind, data)]
    _check(_LIBC.mount(parts[0], parts[1], parts[2], ctypes.c_ulong(flags), parts[3]), f"mount {target}")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _own_namespaces() -> None:
    if os.geteuid() == 0:
        _check(_LIBC.unshare(_CLONE_NEWNS), "unshare mount namespace")
        return
    uid, gid = os.getuid(), os.getgid()
    _check(_LIBC.unshare(_CLONE_NEWNS | _CLONE_NEWUSER), "unshare user namespace")
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{uid} {uid} 1")
    _write("/proc/self/gid_map", f"{gid} {gid} 1")


def enter(cwd: str, *, hidden: Sequence[str] = (), other_user: bool = False) -> None:
    """Make this process's view of the file system read-only, keeping *cwd* visible when it lies in a fresh mount.

    Args:
        hidden: directories whose content is out of sight: the sockets and tokens in them lead to what can write.
        other_user: this is root, and it will become somebody else.

    Raises:
        OSError: the kernel or the caller's rights do not allow it.
    """
    secession = _Secession() if other_user else None
    _own_namespaces()
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    try:
        kept = os.open(cwd, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        kept = -1  # the change of directory says what is wrong with it
    attributes = struct.pack("QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    _check(
        _LIBC.syscall(
            _SYS_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, attributes, ctypes.c_size_t(len(attributes))
        ),
        "mount_setattr",
    )
    for path in _FRESH:
        if os.path.isdir(path):
            _mount("tmpfs", path, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777,size=256m")
    for path in hidden:
        if os.path.isdir(path):
            _mount("tmpfs", path, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0700,size=64k")
    real = os.path.realpath(cwd)
    if kept >= 0 and any(real.startswith(f"{path}/") for path in _FRESH):
        os.makedirs(real, exist_ok=True)
        _mount(f"/proc/self/fd/{kept}", real, None, _MS_BIND | _MS_REC)
    if os.geteuid() == 0:
        for capability in _DROPPED:
            _check(_LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), "drop capability")
    if secession is not None:
        secession.complete()
    with contextlib.suppress(OSError):
        os.close(kept)


class _Secession:
    """Leaves root's user namespace for a new one with the same ids, before root becomes another user.

    Else any process of that user outside would be a door: `/proc/N/root` is that process's writable view, and the
    kernel opens it to whoever has the same user, the same user namespace and no fewer capabilities.

    Constructed while `/proc` can still be written: ids other than one's own are mapped by a process outside.
    """

    def __init__(self) -> None:
        own = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        ready, self._go = os.pipe()
        self._writer = os.fork()
        if self._writer == 0:
            code = 1
            try:
                os.close(self._go)
                if os.read(ready, 1):
                    for name in ("uid_map", "gid_map"):
                        os.write(os.open(name, os.O_WRONLY, dir_fd=own), b"0 0 4294967295")
                    code = 0
            finally:
                os._exit(code)
        os.close(ready)
        os.close(own)

    def complete(self) -> None:
        try:
            _check(_LIBC.unshare(_CLONE_NEWUSER), "unshare user namespace")
            os.write(self._go, b"x")
        finally:
            os.close(self._go)
            status = os.waitpid(self._writer, 0)[1]
        if status:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), "map user ids")


def no_new_privileges() -> None:
    """No program run from here on gains rights by set-uid bits or file capabilities."""
    _check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def possible() -> bool:
    """Whether `enter` works here, tried in a child of this single-threaded process."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            enter("/")
            code = 0
        except OSError:
            code = 1
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0
