"""Where a host keeps its state, its sockets and its logs, and the lock that makes it the only one there.

Everything is 0700/0600 whatever the umask. Sockets live in a short directory of their own, because the path of a
Unix socket may have 107 bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from toolhost_sdk.errors import ConflictError, NoSpaceError, UnavailableError, UsageError

_SOCKET_PATH_ROOM = 41  # bytes a runtime directory may take so that Ray's long socket names below it fit too


@dataclass(frozen=True, slots=True)
class HostFile:
    """What a running host tells programs of the same user (`host.json`)."""

    url: str
    pid: int
    ingress_pid: int
    instance: str
    control_socket: str
    started_at: float


@dataclass(frozen=True, slots=True)
class Home:
    """The directory of one host. Nothing is created before `prepare`."""

    root: Path

    @property
    def instance(self) -> str:
        """A stable id of this home: what labels everything the host starts."""
        return hashlib.sha256(f"{os.getuid()}:{self.root}".encode()).hexdigest()[:12]

    @property
    def runtime_dir(self) -> Path:
        own = self.root / "run"
        if len(os.fsencode(own)) <= _SOCKET_PATH_ROOM:
            return own
        return Path(tempfile.gettempdir()) / f"toolhost-{os.getuid()}-{self.instance}"

    @property
    def control_socket(self) -> Path:
        return self.runtime_dir / "control.sock"

    @property
    def warden_dir(self) -> Path:
        return self.root / "node"

    @property
    def warden_socket(self) -> Path:
        return self.runtime_dir / "warden.sock"

    @property
    def host_file(self) -> Path:
        return self.root / "host.json"

    @property
    def operator_token_file(self) -> Path:
        return self.root / "operator.token"

    @property
    def serve_token_file(self) -> Path:
        return self.root / "serve.token"

    @property
    def tokens_file(self) -> Path:
        return self.root / "tokens.db"

    @property
    def specs_dir(self) -> Path:
        return self.root / "servers"

    @property
    def logs_dir(self) -> Path:
        return self.root / "logs"

    @property
    def keys_file(self) -> Path:
        return self.root / "keys"

    def state_dir(self, server: str) -> Path:
        return self.root / "state" / server

    def prepare(self) -> None:
        """Create the directories.

        Raises:
            UsageError: a directory belongs to somebody else, or cannot be made private.
            NoSpaceError: no room on the disk.
        """
        for path in (self.root, self.runtime_dir, self.specs_dir, self.logs_dir, self.root / "state"):
            make_private_dir(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only host in this home.

        Raises:
            ConflictError: another one runs; the message has its URL.
        """
        descriptor = os.open(self.root / "host.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ConflictError(f"a host already runs in {str(self.root)!r}{self._where()}") from None
        self._forget_tool_hosts()  # of a host that was killed
        try:
            yield
        finally:
            self.host_file.unlink(missing_ok=True)
            self._forget_tool_hosts()
            with suppress(OSError):  # a warden that holds jobs keeps its socket there
                self.runtime_dir.rmdir()
            os.close(descriptor)

    def _forget_tool_hosts(self) -> None:
        for path in self.runtime_dir.glob("host-*.sock"):
            path.unlink(missing_ok=True)

    def _where(self) -> str:
        try:
            running = self.read_host_file()
        except UnavailableError:
            return ": wait until it is up, or give this one another home"
        return f" at {running.url} (pid {running.pid}): use it, end it with `toolhost down`, or choose another home"

    def write_host_file(self, running: HostFile) -> None:
        write_private(self.host_file, json.dumps(asdict(running)).encode())

    def read_host_file(self) -> HostFile:
        """Raises UnavailableError when no host runs here."""
        try:
            return HostFile(**json.loads(self.host_file.read_bytes()))
        except (OSError, ValueError, TypeError):
            raise UnavailableError(
                f"no host runs in {str(self.root)!r}: start one with `toolhost serve`", home=str(self.root)
            ) from None


def make_private_dir(path: Path) -> None:
    """Create *path* with mode 0700, or make sure that it is ours and so."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise UsageError(f"{str(path)!r} is not a directory of this user: choose another home")
        if stat.S_IMODE(found.st_mode) != 0o700:
            path.chmod(0o700)
    except OSError as error:
        raise translated(error, path) from None


def write_private(path: Path, data: bytes) -> None:
    """Replace *path* atomically by a file of mode 0600."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise translated(error, path) from None


def translated(error: OSError, path: Path) -> Exception:
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        return NoSpaceError(
            f"no room on the disk for {str(path)!r}: free some, or give the host another home"
        )
    return UsageError(f"cannot use {str(path)!r}: {error.strerror}; give the host another home")
