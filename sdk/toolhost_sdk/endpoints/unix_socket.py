"""Unix sockets only their own user can reach, and who is at the other end of one."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import sys
from pathlib import Path

from toolhost_sdk.endpoints.channel import Peer
from toolhost_sdk.errors import ConflictError, UsageError


def bind_unix(path: Path) -> socket.socket:
    """A bound socket of mode 0600 in a directory of mode 0700. Raises as `serve_unix` does."""
    _check_directory(path.parent)
    if path.is_socket():
        _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(0o600)
    except OSError as exc:
        sock.close()
        if exc.errno is None:  # the interpreter refuses before the kernel is asked
            raise UsageError(
                f"socket path {str(path)!r} is too long: the kernel allows 107 bytes; use a shorter directory"
            ) from exc
        if exc.errno == errno.EADDRINUSE:
            raise ConflictError(f"{str(path)!r} exists and is no socket") from exc
        raise
    return sock


def _check_directory(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.stat()
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise UsageError(
            f"directory {str(directory)!r} is not private (uid {status.st_uid}, mode "
            f"{stat.S_IMODE(status.st_mode):04o}); a socket needs one of this user with mode 0700"
        )


def _remove_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
        else:
            raise ConflictError(f"a live server listens at {str(path)!r}")


def peer_of(sock: socket.socket) -> Peer:
    """Who is connected, as the kernel says."""
    if sys.platform == "darwin":
        # SOL_LOCAL with LOCAL_PEERCRED (a struct xucred: version, uid, ...) and LOCAL_PEERPID.
        _, uid = struct.unpack_from("II", sock.getsockopt(0, 1, 76))
        return Peer(pid=sock.getsockopt(0, 2), uid=uid)
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    return Peer(pid=pid, uid=uid)
