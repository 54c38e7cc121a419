"""Job directories, made ahead of need by the spawner: on a busy disk a new file costs more than a process.

Rules of this file: directories 0700, files 0600; a place has all a job needs to be recorded before the job starts, room
for its last `state` included, so that a disk full of output cannot keep an ending from being written.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from pathlib import Path

from toolhost_sdk.errors import CapacityError, LimitExceededError, NoSpaceError

_RESERVED = 16 << 10
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC


def no_room(error: OSError) -> LimitExceededError:
    """What it means for a start that the kernel would not give a file: descriptors come back, a full disk stays."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return CapacityError(f"the node has no descriptors left for a job: {error.strerror}")
    return NoSpaceError(f"no room for the files of a job: {error}")


class Places:
    """The directories of jobs below *jobs*."""

    def __init__(self, jobs: Path) -> None:
        self._jobs = jobs

    def drop(self, job: str) -> None:
        shutil.rmtree(self._jobs / job, ignore_errors=True)

    def make(self) -> str:
        """The id of a new job, whose directory stands.

        Raises:
            NoSpaceError: the disk has no room for it.
            CapacityError: no descriptor is left.
        """
        job = secrets.token_hex(8)
        directory = self._jobs / job
        try:
            directory.mkdir(mode=0o700)
            fd = os.open(directory / "state.next", _FLAGS, 0o600)
            try:
                os.posix_fallocate(fd, 0, _RESERVED)
            finally:
                os.close(fd)
            for name in ("spec", "log", "index"):
                os.close(os.open(directory / name, _FLAGS, 0o600))
        except OSError as error:
            self.drop(job)
            raise no_room(error) from error
        return job
