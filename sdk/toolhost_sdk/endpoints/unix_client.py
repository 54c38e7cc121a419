"""The unix provider, calling end: a channel to a socket of this node."""

from __future__ import annotations

import asyncio
import os

from typing_extensions import override

from toolhost_sdk.endpoints.calling import CallerLink, LinkChannel
from toolhost_sdk.endpoints.codec import Limits
from toolhost_sdk.errors import PermissionDeniedError, UnavailableError


class UnixChannel(LinkChannel):
    """A channel to the server that listens at *path*. One connection, opened by the first call.

    Args:
        path: of the server's socket.
        connect_timeout: seconds until a connection must stand, greeting included.
        limits: what this side accepts.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, connect_timeout: float = 5.0, limits: Limits | None = None
    ) -> None:
        self.path = os.fspath(path)
        super().__init__(f"the server at {self.path!r}", connect_timeout=connect_timeout, limits=limits)

    @override
    async def connect(self, link: CallerLink) -> None:
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: link, self.path)
        except PermissionError as exc:
            raise PermissionDeniedError(f"may not connect to {self.path!r}: {exc.strerror}") from exc
        except OSError as exc:
            raise UnavailableError(f"no server listens at {self.path!r}: {exc.strerror}") from exc
