"""Sweeps: what lives is compared with what is recorded, both ways; also a command for operators.

    python -m toolhost_sdk.node.sweep --home HOME      one sweep; prints what it ended as JSON

Rules of this file: a record is called lost only after nothing of its tree is left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import logging
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolhost_sdk.endpoints.unix_client import UnixChannel
from toolhost_sdk.errors import NoSpaceError
from toolhost_sdk.node import clock, logstore, records
from toolhost_sdk.node.client import WardenClient
from toolhost_sdk.node.containment import Containment, namespace_of
from toolhost_sdk.node.port import TERMINAL, JobRecord
from toolhost_sdk.node.records import Records
from toolhost_sdk.node.supervisor import Supervisor

log = logging.getLogger(__name__)

GONE_WITHIN = 5.0


def recover(home: Path, stored: Records, containment: Containment) -> list[dict[str, Any]]:
    """At start: end what an earlier life left, then settle its records. Returns what was ended."""
    ended = containment.sweep(frozenset())
    until = time.monotonic() + GONE_WITHIN
    while (left := containment.left(frozenset())) or containment.groups_left():
        if time.monotonic() > until:
            break
        time.sleep(0.02)
        ended += containment.sweep(frozenset())
    for record, boot in stored.unfinished():
        settle(home, stored, record, boot, tuple(left.get(record.id, ())))
    for directory in (home / "jobs").iterdir():
        known = stored.get(directory.name)
        if known is None or known[1]:  # made ahead of need by a warden that died, or past its retention
            shutil.rmtree(directory, ignore_errors=True)
    return ended


def settle(home: Path, stored: Records, record: JobRecord, boot: str, left: tuple[int, ...]) -> None:
    """Record what is known of a job whose supervisor is gone."""
    directory = home / "jobs" / record.id
    known = records.read_state(directory)
    if known is not None and known.state in TERMINAL:
        stored.update(known)
    elif left:
        stored.update(replace(record, state="killing", pids=left))
    else:
        lost = _lost(directory, record, "supervisor_exited" if boot == clock.BOOT_ID else "node_lost")
        with contextlib.suppress(OSError):
            records.write_state(directory, lost)
        stored.update(lost)


def _lost(directory: Path, record: JobRecord, reason: str) -> JobRecord:
    try:
        segments = logstore.stored_segments(directory)
        counts = logstore.stored_counts(directory, segments)
    except OSError:
        segments, counts = [], dict.fromkeys(logstore.CODES, 0)
    try:
        limit = int(json.loads((directory / "spec").read_bytes()).get("log_limit", 0))
    except (OSError, ValueError):
        limit = 0  # it died before the description was written
    size = max((part.end for part in segments), default=0)
    head = segments[0].length if segments else 0
    trimmed = head + 1 if limit and head == min(logstore.HEAD, limit // 2) else 0
    return replace(
        record,
        state="lost",
        reason=reason,
        exit_code=None,
        signal=None,
        shell_status=None,
        pids=(),
        ended_at=time.time(),
        stdout_bytes=counts["stdout"],
        stderr_bytes=counts["stderr"],
        size=size,
        gaps=logstore.find_gaps(segments, size, trimmed),
    )


async def sweep(supervisor: Supervisor) -> list[dict[str, Any]]:
    """One sweep of a running warden: strays, absent jobs, records the disk refused, retention, the quota."""
    ended = await asyncio.to_thread(supervisor.containment.sweep, supervisor.live)
    stored = supervisor.stored
    for record in list(supervisor.unsaved.values()):
        supervisor.save(record)
    unfinished = [(record, boot) for record, boot in stored.unfinished() if record.id not in supervisor.live]
    if unfinished:
        left = await asyncio.to_thread(supervisor.containment.left, supervisor.live)
        for record, boot in unfinished:
            with contextlib.suppress(NoSpaceError):
                settle(supervisor.home, stored, record, boot, tuple(left.get(record.id, ())))
    for job in stored.ended_before(time.time() - supervisor.retention):
        with contextlib.suppress(NoSpaceError):
            stored.mark_gone(job)  # first, so that no read finds half a log
            await asyncio.to_thread(shutil.rmtree, supervisor.directory(job), ignore_errors=True)
    supervisor.used = await asyncio.to_thread(_used, supervisor.home / "jobs")
    return ended


def _used(jobs: Path) -> int:
    total = 0
    for directory in os.scandir(jobs):
        with contextlib.suppress(OSError):
            total += sum(
                entry.stat(follow_symlinks=False).st_blocks * 512 for entry in os.scandir(directory.path)
            )
    return total


async def _ask_warden(socket: str) -> list[dict[str, Any]]:
    client = WardenClient(UnixChannel(socket))
    try:
        return await client.sweep()
    finally:
        await client.aclose()


def sweep_home(home: Path) -> list[dict[str, Any]]:
    """One sweep of *home*, by its warden when one runs, else here.

    Raises:
        FileNotFoundError: no warden ever ran for this home.
    """
    facts = json.loads((home / "warden.json").read_text(encoding="utf-8"))
    with (home / "warden.lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return asyncio.run(_ask_warden(facts["socket"]))
        containment = Containment.probe(namespace_of(facts["instance"], home))
        stored = Records(home)
        try:
            return recover(home, stored, containment)
        finally:
            stored.close()
            containment.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m toolhost_sdk.node.sweep", description="One sweep of a home."
    )
    parser.add_argument("--home", type=Path, required=True)
    options = parser.parse_args(arguments)
    json.dump(sweep_home(options.home), sys.stdout)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
