"""The served end of the unix channel.

Rules of this file: who connects is asked of the kernel, and a foreign uid is refused before a byte of it is read;
leaving the server removes its socket, unless a successor made it anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import anyio
from typing_extensions import override

from toolhost_sdk.endpoints.channel import Dispatcher
from toolhost_sdk.endpoints.codec import Limits
from toolhost_sdk.endpoints.serving import ServedLink, close_all
from toolhost_sdk.endpoints.unix_socket import bind_unix, peer_of
from toolhost_sdk.errors import PermissionDeniedError

logger = logging.getLogger(__name__)

_BACKLOG: Final = 512


@asynccontextmanager
async def serve_unix(
    dispatch: Dispatcher,
    path_or_socket: str | os.PathLike[str] | socket.socket,
    *,
    allowed_uids: Collection[int] | None = None,
    limits: Limits | None = None,
) -> AsyncIterator[None]:
    """Serve *dispatch* while the block runs; leaving it cancels running calls and removes the socket.

    Args:
        path_or_socket: where to listen, in a directory of mode 0700 (made when missing), or a listening or bound
            unix socket, which is closed on leaving.
        allowed_uids: who may connect; default: only the uid of this process.
        limits: what this side accepts.

    Raises:
        UsageError: the path is too long, or its directory is open to other users.
        ConflictError: a live server listens there.
    """
    uids = frozenset({os.geteuid()} if allowed_uids is None else allowed_uids)
    own = not isinstance(path_or_socket, socket.socket)
    sock = path_or_socket if isinstance(path_or_socket, socket.socket) else bind_unix(Path(path_or_socket))
    path = Path(sock.getsockname())
    inode = path.stat().st_ino if own else None
    links: set[ServedLink] = set()
    server = await asyncio.get_running_loop().create_unix_server(
        lambda: _SocketLink(dispatch, limits or Limits(), uids, links), sock=sock, backlog=_BACKLOG
    )
    try:
        yield
    finally:
        server.close()
        with suppress(FileNotFoundError):
            # A successor may already listen at this path.
            if own and path.stat().st_ino == inode:
                path.unlink()
        with anyio.CancelScope(shield=True):
            await close_all(links)


class _SocketLink(ServedLink):
    def __init__(
        self, dispatch: Dispatcher, limits: Limits, uids: frozenset[int], links: set[ServedLink]
    ) -> None:
        super().__init__(dispatch, limits, links)
        self._uids = uids

    @override
    def welcome(self, transport: asyncio.BaseTransport) -> None:
        self.peer = peer_of(transport.get_extra_info("socket"))
        if self.peer.uid in self._uids:
            self.greet()
            return
        logger.warning("refused the connection of %s", self.describe())
        self.close(PermissionDeniedError(f"uid {self.peer.uid} may not use this socket", uid=self.peer.uid))
