"""The executor over a channel: endpoint `executor` has the port's methods, endpoint `warden` the process's own.

    warden / hold   {"owner", "ttl"}   -> lease; the warden lives while one such lease does
    warden / sweep  {}                 -> what one sweep ended
    warden / stop   {}                 -> {} and ends everything

Rules of this file: it translates and ties lives to connections, it decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from typing import IO, Any

from toolhost_sdk.endpoints.channel import IncomingCall
from toolhost_sdk.errors import NotFoundError, UsageError
from toolhost_sdk.node import clock, records
from toolhost_sdk.node.places import no_room
from toolhost_sdk.node.port import CommandSpec, JobRecord, OutputChunk
from toolhost_sdk.node.supervisor import Supervisor

log = logging.getLogger(__name__)

_SPOOL_LIVES = 120.0
_PORT = frozenset({
    "append_hosted", "close_stdin", "find", "finish_hosted", "jobs", "manifest", "open_lease", "progress_hosted",
    "read_report", "record", "release", "renew", "signal", "terminate", "untie", "wait", "write_stdin",
})  # fmt: skip


def _plain(found: Any) -> Any:
    """The port's values as plain data."""
    if isinstance(found, list):
        return [_plain(part) for part in found]
    if isinstance(found, JobRecord):
        return records.to_doc(found)
    return asdict(found) if is_dataclass(found) and not isinstance(found, type) else found


def chunk_to_wire(chunk: OutputChunk) -> dict[str, Any]:
    return {
        "offset": chunk.offset,
        "spans": [[stream, data] for stream, data in chunk.spans],
        "next_offset": chunk.next_offset,
        "size": chunk.size,
        "state": chunk.state,
        "eof": chunk.eof,
        "gap": None if chunk.gap is None else asdict(chunk.gap),
    }


class Service:
    """A `Dispatcher`.

    Args:
        sweep: one sweep.
        stop: ends the warden.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        sweep: Callable[[], Awaitable[list[dict[str, Any]]]],
        stop: Callable[[], None],
    ) -> None:
        self._supervisor = supervisor
        self._sweep = sweep
        self._stop = stop
        self._spools: dict[str, tuple[IO[bytes], float]] = {}
        self._watches: set[asyncio.Task[None]] = set()
        self._own_handlers: dict[str, Callable[..., Awaitable[Any]]] = {
            "start": self._start, "read": self._read, "spool": self._spool, "abandon": self._abandon,
            "open_hosted": self._open_hosted,
        }  # fmt: skip

    async def __call__(self, call: IncomingCall) -> Any:
        payload: dict[str, Any] = call.payload or {}
        if call.endpoint == "executor":
            return await self._execute(call, payload)
        if call.endpoint == "warden":
            return await self._own(call.method, payload)
        raise NotFoundError(f"the warden has no endpoint {call.endpoint!r}; it has 'executor' and 'warden'")

    async def _own(self, method: str, payload: dict[str, Any]) -> Any:
        match method:
            case "hold":
                return asdict(
                    self._supervisor.leases.open(
                        payload["owner"], ttl=payload["ttl"], max_life=None, holds=True
                    )
                )
            case "alive":
                await asyncio.Event().wait()  # never: the end of this call is the end of the warden
            case "sweep":
                return await self._sweep()
            case "stop":
                self._stop()
                return {}
        raise NotFoundError(f"the warden has no method {method!r}")

    async def _execute(self, call: IncomingCall, payload: dict[str, Any]) -> Any:
        method = call.method
        own = self._own_handlers.get(method)
        if own is None and method not in _PORT:
            raise NotFoundError(f"the executor has no method {method!r}")
        try:
            if own is not None:
                return await own(call, **payload)
            return _plain(await getattr(self._supervisor, method)(**payload))
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is None:
                raise UsageError(f"bad arguments for {method!r}: {error}") from error
            raise

    async def _read(self, call: IncomingCall, **payload: Any) -> dict[str, Any]:
        return chunk_to_wire(await self._supervisor.read(**payload))

    async def _start(
        self, call: IncomingCall, spec: dict[str, Any], key: str | None = None, nameless: bool = False
    ) -> dict[str, Any]:
        described = dict(spec)
        given: int | None = None
        if (token := described.pop("spool", None)) is not None:
            if token not in self._spools:
                raise NotFoundError(
                    f"stdin {token!r} was not handed over, or more than {_SPOOL_LIVES:.0f} s ago"
                )
            file, _ = self._spools.pop(token)
            with file:
                file.seek(0)
                given = os.dup(file.fileno())
        try:
            checked = CommandSpec(**described)
        except TypeError as error:
            if given is not None:
                os.close(given)
            raise UsageError(f"bad command specification: {error}") from error
        record = await self._supervisor.start(checked, key=key, given=given, nameless=nameless)
        if checked.tied and not record.done:
            self._watch(self._watch_owner(call, record.id))
        return records.to_doc(record)

    async def _abandon(self, call: IncomingCall, key: str) -> None:
        await self._supervisor.abandon(key)

    async def _watch_owner(self, call: IncomingCall, job: str) -> None:
        if await self._gone_before_end(call, job):
            await self._supervisor.owner_gone(job)

    async def _spool(self, call: IncomingCall, data: bytes, token: str | None = None) -> str:
        """Keep a piece of a command's stdin until its start. Pieces of one token follow each other."""
        if token is None:
            token = secrets.token_hex(16)
            try:
                self._spools[token] = (tempfile.TemporaryFile(dir=self._supervisor.home), clock.now())  # noqa: SIM115 - lives on
            except OSError as error:
                raise no_room(error) from error
        if token not in self._spools:
            raise NotFoundError(f"stdin {token!r} was not begun, or more than {_SPOOL_LIVES:.0f} s ago")
        file, _ = self._spools.pop(token)
        try:
            file.write(data)
            file.flush()
        except OSError as error:
            with suppress(OSError):  # it tries once more to write what did not fit
                file.close()
            raise no_room(error) from error
        self._spools[token] = (file, clock.now())
        return token

    def drop_old_spools(self) -> None:
        for token, (file, touched) in list(self._spools.items()):
            if clock.now() - touched > _SPOOL_LIVES:
                del self._spools[token]
                file.close()

    async def _open_hosted(self, call: IncomingCall, **payload: Any) -> dict[str, Any]:
        record = await self._supervisor.open_hosted(**payload)
        self._watch(self._watch_host(call, record.id))
        return records.to_doc(record)

    async def _watch_host(self, call: IncomingCall, job: str) -> None:
        if await self._gone_before_end(call, job):
            await self._supervisor.lose_hosted(job)

    async def _gone_before_end(self, call: IncomingCall, job: str) -> bool:
        """Wait for the end of the caller's connection or of the job; whether the connection ended first."""
        gone = asyncio.ensure_future(call.peer_gone())
        done = asyncio.ensure_future(self._supervisor.wait(job))
        try:
            await asyncio.wait({gone, done}, return_when=asyncio.FIRST_COMPLETED)
            return not done.done()
        finally:
            gone.cancel()
            done.cancel()

    def _watch(self, coroutine: Coroutine[Any, Any, None]) -> None:
        watch = asyncio.create_task(coroutine)
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)

    async def aclose(self) -> None:
        for watch in list(self._watches):
            watch.cancel()
        for file, _ in self._spools.values():
            file.close()
        self._spools.clear()
