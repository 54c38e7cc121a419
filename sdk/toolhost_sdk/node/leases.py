"""Leases: who keeps what alive, until when.

Rules of this file: expiry is read again in the same step that ends a lease, so a renewal that was accepted is never
followed by that eviction; every expiry is in the database, timers only look there.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from toolhost_sdk.errors import NoSpaceError, NotFoundError, UsageError
from toolhost_sdk.node import clock
from toolhost_sdk.node.port import Cause, Lease
from toolhost_sdk.node.records import LeaseRow, Records

log = logging.getLogger(__name__)

MAX_TTL = 30 * 86400.0


class Leases:
    """The leases of one node.

    Args:
        on_end: ends everything the lease holds.
    """

    def __init__(self, records: Records, on_end: Callable[[str, Cause], Coroutine[Any, Any, None]]) -> None:
        self._records = records
        self._on_end = on_end
        self._rows = {row.id: row for row in records.leases() if row.boot == clock.BOOT_ID}
        self._changed = asyncio.Event()

    def open(self, owner: str, *, ttl: float, max_life: float | None, holds: bool = False) -> Lease:
        """See `Executor.open_lease`. A lease that *holds* keeps the warden itself alive."""
        checked = clock.seconds(ttl, "ttl")
        latest = clock.seconds(max_life, "max_life")
        if checked is None or checked > MAX_TTL:
            raise UsageError(f"ttl={ttl!r} must be at most {MAX_TTL:.0f} seconds")
        now = clock.now()
        row = LeaseRow(
            id=secrets.token_hex(16),
            owner=owner,
            ttl=checked,
            expires=min(now + checked, now + latest) if latest is not None else now + checked,
            latest=None if latest is None else now + latest,
            boot=clock.BOOT_ID,
            holds=holds,
            max_life=latest,
        )
        self._put(row)
        return self._lease(row)

    def renew(self, lease: str) -> Lease:
        """See `Executor.renew`."""
        row = self._rows.get(lease)
        now = clock.now()
        if row is None or row.expires <= now:
            raise NotFoundError(f"lease {lease!r} is unknown or has ended; open another")
        expires = now + row.ttl
        row = replace(row, expires=expires if row.latest is None else min(expires, row.latest))
        self._put(row)
        return self._lease(row)

    def check(self, lease: str) -> None:
        """Raises NotFoundError unless the lease runs."""
        if not self.runs(lease):
            raise NotFoundError(f"lease {lease!r} is unknown or has ended; open another")

    def runs(self, lease: str) -> bool:
        row = self._rows.get(lease)
        return row is not None and row.expires > clock.now()

    async def release(self, lease: str, cause: Cause) -> None:
        if self._rows.pop(lease, None) is not None:
            self._drop(lease)
            self._changed.set()
        await self._on_end(lease, cause)

    def holders(self) -> list[Lease]:
        """The leases that keep the warden alive."""
        return [self._lease(row) for row in self._rows.values() if row.holds]

    async def watch(self, at_most: float) -> None:
        """End what expired, forever; looks at least every *at_most* seconds."""
        ending: set[asyncio.Task[None]] = set()
        while True:
            self._changed.clear()
            for lease in self._expired():
                task = asyncio.create_task(self._on_end(lease, "lease_ended"))
                ending.add(task)
                task.add_done_callback(ending.discard)
            first = min((row.expires for row in self._rows.values()), default=clock.now() + at_most)
            try:
                await asyncio.wait_for(self._changed.wait(), max(0.001, min(first - clock.now(), at_most)))
            except TimeoutError:
                continue

    def _expired(self) -> list[str]:
        """Leases past their expiry, forgotten here in one step: no renewal can slip between."""
        now = clock.now()
        over = [row.id for row in self._rows.values() if row.expires <= now]
        for lease in over:
            row = self._rows.pop(lease)
            log.info("lease %s of %r ended", lease, row.owner)
            self._drop(lease)
        return over

    def _drop(self, lease: str) -> None:
        try:
            self._records.drop_lease(lease)
        except (
            NoSpaceError
        ):  # what it holds ends all the same; a row that stays expires again after a restart
            log.exception("the end of lease %s could not be written down", lease)

    def _put(self, row: LeaseRow) -> None:
        self._records.put_lease(row)
        self._rows[row.id] = row
        self._changed.set()

    def _lease(self, row: LeaseRow) -> Lease:
        return Lease(
            id=row.id,
            owner=row.owner,
            ttl=row.ttl,
            expires_in=row.expires - clock.now(),
            max_life=row.max_life,
        )
