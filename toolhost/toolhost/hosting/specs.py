"""Detached servers on disk, so that they come back with the next host of the same home."""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path

import msgpack

from toolhost.hosting.home import Home, write_private
from toolhost.wire import SpawnRequest

logger = logging.getLogger(__name__)


class SpecStore:
    """One file a server, mode 0600: operational arguments may hold secrets."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def save(self, request: SpawnRequest) -> None:
        write_private(self._path(request.name), msgpack.packb(request.model_dump()))

    def forget(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def saved(self) -> list[SpawnRequest]:
        """What was saved, oldest first. A file that cannot be read is logged and left alone."""
        found = []
        for path in sorted(self._home.specs_dir.glob("*.spec"), key=lambda path: path.stat().st_mtime):
            try:
                found.append(SpawnRequest.model_validate(msgpack.unpackb(path.read_bytes())))
            except (OSError, ValueError) as error:
                logger.error("cannot restore a server from %s: %s", path.name, type(error).__name__)
        return found

    def log(self, name: str, tail: int) -> str:
        try:
            with self.log_path(name).open(errors="replace") as file:
                return "".join(deque(file, maxlen=tail))
        except FileNotFoundError:
            return ""

    def log_path(self, name: str) -> Path:
        return self._home.logs_dir / f"{name}.log"

    def _path(self, name: str) -> Path:
        return self._home.specs_dir / f"{name}.spec"
