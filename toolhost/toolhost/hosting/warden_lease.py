"""The warden as a host holds it: started when missing, kept by a lease, replaced when it dies."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Self

from toolhost.hosting.home import Home
from toolhost_sdk.endpoints.unix_client import UnixChannel
from toolhost_sdk.errors import NotFoundError, ToolhostError, UnavailableError
from toolhost_sdk.node.client import WardenClient
from toolhost_sdk.node.start import ensure_warden, wait_until_gone

logger = logging.getLogger(__name__)


class WardenLease:
    """Async context manager. While it is open, a warden of *home* answers at the same socket.

    When this process dies, the lease ends after *ttl* seconds and the warden ends what it holds. Leaving the
    context ends it at once.
    """

    def __init__(self, home: Home, *, ttl: float) -> None:
        self._home = home
        self._ttl = ttl
        self.executor = WardenClient(UnixChannel(str(home.warden_socket)))
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._take()
        self._keeper = asyncio.get_running_loop().create_task(self._keep())
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
        try:
            async with asyncio.timeout(5.0):
                await self.executor.stop()
        except (UnavailableError, TimeoutError) as error:
            logger.warning("the warden did not confirm its end: %s", error)
        if not await asyncio.to_thread(wait_until_gone, self._home.warden_dir):
            logger.warning("the warden still ends what it holds")
        await self.executor.aclose()

    async def _take(self) -> None:
        await asyncio.to_thread(start_warden, self._home, ttl=self._ttl)
        self._lease = (await self.executor.hold(f"host {self._home.instance}", ttl=self._ttl)).id

    async def _keep(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._ttl / 3):
                    await self.executor.alive()
                logger.warning("the warden died; starting another")
                await self._take()
            except TimeoutError:
                await self._renew()
            except ToolhostError as error:
                logger.error("no warden: %s", error)
                await asyncio.sleep(1.0)

    async def _renew(self) -> None:
        try:
            await self.executor.renew(self._lease)
        except NotFoundError:  # this process was stopped for longer than the lease lasts
            await self._take()
        except UnavailableError:
            return  # `_keep` sees it next


def start_warden(home: Home, *, ttl: float = 60.0) -> str:
    """The socket of this home's warden on this node, started when missing. Blocking."""
    return str(ensure_warden(home.warden_dir, home.runtime_dir, home.instance, ttl=ttl, hide=home.root))
