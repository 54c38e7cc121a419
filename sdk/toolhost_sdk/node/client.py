"""The executor as everyone but the warden sees it: the port over a channel.

Rules of this file: no state but the channel; what the warden says is rebuilt into the port's values and nothing is
guessed when it says nothing.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

import anyio
from typing_extensions import override

from toolhost_sdk.endpoints.channel import Channel
from toolhost_sdk.errors import ToolhostError, UnavailableError
from toolhost_sdk.node import checks, records
from toolhost_sdk.node.port import (
    Cause,
    CommandSpec,
    Executor,
    Gap,
    JobRecord,
    Lease,
    OutputChunk,
    Stream,
)

_PIECE = 1 << 20
_ABANDON_WITHIN = 2.0
_SPOOL_OVER = 64 << 10
_SPEC_FIELDS = tuple(part.name for part in fields(CommandSpec))


def chunk_from_wire(wire: dict[str, Any]) -> OutputChunk:
    return OutputChunk(
        offset=wire["offset"],
        spans=tuple((stream, data) for stream, data in wire["spans"]),
        next_offset=wire["next_offset"],
        size=wire["size"],
        state=wire["state"],
        eof=wire["eof"],
        gap=None if wire["gap"] is None else Gap(**wire["gap"]),
    )


class WardenClient(Executor):
    """The executor behind *channel*, which is closed with it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def _ask(self, method: str, **payload: Any) -> Any:
        return await self._channel.request("executor", method, payload)

    @override
    async def start(self, spec: CommandSpec, *, key: str | None = None) -> JobRecord:
        checks.check_argv(spec.argv)
        described: dict[str, Any] = {name: getattr(spec, name) for name in _SPEC_FIELDS}
        described["argv"] = list(spec.argv)
        described["env"] = dict(spec.env)
        if isinstance(spec.stdin, bytes) and len(spec.stdin) > _SPOOL_OVER:
            described["stdin"] = None
            described["spool"] = await self._spool(spec.stdin)
        nameless = key is None
        key = key or f"once-{secrets.token_hex(16)}"
        try:
            return records.from_doc(await self._ask("start", spec=described, key=key, nameless=nameless))
        except asyncio.CancelledError:
            if nameless:  # its answer may be on the way, and then nobody could name the job
                with (
                    anyio.CancelScope(shield=True),
                    anyio.move_on_after(_ABANDON_WITHIN),
                    suppress(ToolhostError),  # a cancelled caller gets its cancellation and nothing else
                ):
                    await self._ask("abandon", key=key)
            raise

    async def _spool(self, data: bytes) -> str:
        token: str | None = None
        for at in range(0, len(data), _PIECE):
            token = await self._ask("spool", data=data[at : at + _PIECE], token=token)
        assert token is not None
        return token

    @override
    async def read(
        self,
        job: str,
        *,
        offset: int = 0,
        limit: int = 65536,
        stream: Stream | None = None,
        wait: float = 0.0,
    ) -> OutputChunk:
        return chunk_from_wire(
            await self._ask("read", job=job, offset=offset, limit=limit, stream=stream, wait=wait)
        )

    @override
    async def record(self, job: str) -> JobRecord:
        return records.from_doc(await self._ask("record", job=job))

    @override
    async def wait(self, job: str, *, timeout: float | None = None) -> JobRecord:
        return records.from_doc(await self._ask("wait", job=job, timeout=timeout))

    @override
    async def signal(self, job: str, signal: int) -> None:
        await self._ask("signal", job=job, signal=int(signal))

    @override
    async def terminate(
        self, job: str, *, grace: float | None = None, cause: Cause = "cancelled"
    ) -> JobRecord:
        return records.from_doc(await self._ask("terminate", job=job, grace=grace, cause=cause))

    @override
    async def untie(self, job: str) -> None:
        await self._ask("untie", job=job)

    @override
    async def write_stdin(self, job: str, data: bytes, *, offset: int | None = None) -> int:
        taken = 0
        for at in range(0, max(1, len(data)), _PIECE):
            piece = data[at : at + _PIECE]
            place = None if offset is None else offset + at
            taken = int(await self._ask("write_stdin", job=job, data=piece, offset=place))
        return taken

    @override
    async def close_stdin(self, job: str) -> None:
        await self._ask("close_stdin", job=job)

    @override
    async def read_report(self, job: str) -> bytes | None:
        report = await self._ask("read_report", job=job)
        return None if report is None else bytes(report)

    @override
    async def find(self, session: str, handle: str) -> JobRecord:
        return records.from_doc(await self._ask("find", session=session, handle=handle))

    @override
    async def jobs(
        self, *, session: str | None = None, live: bool = False, limit: int | None = None
    ) -> list[JobRecord]:
        docs = await self._ask("jobs", session=session, live=live, limit=limit)
        return [records.from_doc(doc) for doc in docs]

    @override
    async def open_hosted(self, session: str, *, label: str = "", timeout: float | None = None) -> JobRecord:
        return records.from_doc(await self._ask("open_hosted", session=session, label=label, timeout=timeout))

    @override
    async def append_hosted(self, job: str, data: bytes, *, stream: Stream = "stdout") -> None:
        await self._ask("append_hosted", job=job, data=data, stream=stream)

    @override
    async def progress_hosted(self, job: str, progress: Mapping[str, Any]) -> None:
        await self._ask("progress_hosted", job=job, progress=dict(progress))

    @override
    async def finish_hosted(
        self,
        job: str,
        *,
        result: Any = None,
        error: Mapping[str, Any] | None = None,
        cause: Cause | None = None,
    ) -> JobRecord:
        plain = None if error is None else dict(error)
        return records.from_doc(
            await self._ask("finish_hosted", job=job, result=result, error=plain, cause=cause)
        )

    @override
    async def open_lease(self, owner: str, *, ttl: float = 60.0, max_life: float | None = None) -> Lease:
        return Lease(**await self._ask("open_lease", owner=owner, ttl=ttl, max_life=max_life))

    @override
    async def renew(self, lease: str) -> Lease:
        return Lease(**await self._ask("renew", lease=lease))

    @override
    async def release(self, lease: str, *, cause: Cause = "lease_ended") -> None:
        await self._ask("release", lease=lease, cause=cause)

    @override
    async def manifest(self) -> dict[str, Any]:
        return dict(await self._ask("manifest"))

    async def hold(self, owner: str, *, ttl: float = 60.0) -> Lease:
        """A lease that keeps the warden itself alive. Without one it ends everything it holds, then itself."""
        return Lease(**await self._channel.request("warden", "hold", {"owner": owner, "ttl": ttl}))

    async def alive(self) -> None:
        """Return when the warden died or cannot be reached."""
        with suppress(UnavailableError):
            await self._channel.request("warden", "alive", {})

    async def sweep(self) -> list[dict[str, Any]]:
        """One sweep now; returns what it ended."""
        return list(await self._channel.request("warden", "sweep", {}))

    async def stop(self) -> None:
        """End the warden with everything it holds."""
        await self._channel.request("warden", "stop", {})

    @override
    async def aclose(self) -> None:
        await self._channel.aclose()
