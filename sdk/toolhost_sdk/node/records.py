"""Job records and leases in SQLite (WAL), and the `state` file of each job.

The database answers questions; the `state` file in a job's directory is what is made durable when the job ends, and
wins when the two differ (the disk may have been full). Deadlines are boot-clock times with their boot id.

Rules of this file: one connection, one thread; every method is one transaction; a handle is never given twice.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from toolhost_sdk.errors import NoSpaceError
from toolhost_sdk.node.port import TERMINAL, Gap, JobRecord

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, session TEXT NOT NULL,
    handle TEXT NOT NULL, key TEXT UNIQUE, state TEXT NOT NULL, lease TEXT, boot TEXT NOT NULL,
    ended REAL, gone INTEGER NOT NULL DEFAULT 0, doc TEXT NOT NULL, UNIQUE (session, handle));
CREATE INDEX IF NOT EXISTS jobs_state ON jobs (state);
CREATE INDEX IF NOT EXISTS jobs_ended ON jobs (ended) WHERE gone = 0;
CREATE TABLE IF NOT EXISTS sessions (name TEXT PRIMARY KEY, last INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS leases (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, ttl REAL NOT NULL, expires REAL NOT NULL, latest REAL,
    boot TEXT NOT NULL, holds INTEGER NOT NULL, max_life REAL);
"""
_UNFINISHED = f"state NOT IN ({', '.join(repr(state) for state in sorted(TERMINAL))})"
_NAMES = tuple(part.name for part in fields(JobRecord))
_FIELDS = frozenset(_NAMES)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRow:
    id: str
    owner: str
    ttl: float
    expires: float  # boot clock
    latest: float | None  # boot clock; no renewal goes past it
    boot: str
    holds: bool  # whether it keeps the warden alive
    max_life: float | None


def to_doc(record: JobRecord) -> dict[str, Any]:
    """Plain data of a record."""
    doc = {name: getattr(record, name) for name in _NAMES}
    doc["gaps"] = [asdict(gap) for gap in record.gaps]
    return doc


def from_doc(doc: dict[str, Any]) -> JobRecord:
    """The record of plain data; words of a newer release are left out."""
    known = {name: value for name, value in doc.items() if name in _FIELDS}
    known["gaps"] = tuple(Gap(**gap) for gap in known.get("gaps", ()))
    for name in ("leftovers", "pids"):
        known[name] = tuple(known.get(name, ()))
    return JobRecord(**known)


class Records:
    """The database below *home*. Close it with `close`."""

    def __init__(self, home: Path) -> None:
        path = home / "jobs.sqlite3"
        path.touch(mode=0o600)
        self._db = sqlite3.connect(path, isolation_level=None, timeout=5.0)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise NoSpaceError(f"the job database could not be written: {error}") from error
        except BaseException:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def insert(self, record: JobRecord, *, key: str | None, lease: str | None, boot: str) -> JobRecord:
        """Keep a new record and return it with its handle, the next of its session.

        Raises:
            NoSpaceError: the database cannot be written.
        """
        with self._change() as db:
            (last,) = db.execute(
                "INSERT INTO sessions VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET last = last + 1 RETURNING last",
                (record.session,),
            ).fetchone()
            record = replace(record, handle=f"job-{last}")
            doc = json.dumps(to_doc(record))
            db.execute(
                "INSERT INTO jobs (id, session, handle, key, state, lease, boot, doc) VALUES (?,?,?,?,?,?,?,?)",
                (record.id, record.session, record.handle, key, record.state, lease, boot, doc),
            )
        return record

    def update(self, record: JobRecord) -> None:
        """Raises NoSpaceError when the database cannot be written."""
        ended = record.ended_at if record.state in TERMINAL else None
        with self._change() as db:
            db.execute(
                "UPDATE jobs SET state = ?, ended = ?, doc = ? WHERE id = ?",
                (record.state, ended, json.dumps(to_doc(record)), record.id),
            )

    def delete(self, job: str) -> None:
        with self._change() as db:
            db.execute("DELETE FROM jobs WHERE id = ?", (job,))

    def get(self, job: str) -> tuple[JobRecord, bool] | None:
        """The record and whether its log is gone."""
        row = self._db.execute("SELECT doc, gone FROM jobs WHERE id = ?", (job,)).fetchone()
        return None if row is None else (from_doc(json.loads(row[0])), bool(row[1]))

    def by_key(self, key: str) -> str | None:
        row = self._db.execute("SELECT id FROM jobs WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def by_handle(self, session: str, handle: str) -> str | None:
        row = self._db.execute(
            "SELECT id FROM jobs WHERE session = ? AND handle = ?", (session, handle)
        ).fetchone()
        return None if row is None else str(row[0])

    def listed(self, *, session: str | None, live: bool, limit: int | None = None) -> list[JobRecord]:
        """Records with a log, oldest first; the newest *limit* of them."""
        where = "gone = 0"
        values: list[Any] = []
        if session is not None:
            where += " AND session = ?"
            values.append(session)
        if live:
            where += f" AND {_UNFINISHED}"
        rows = self._db.execute(
            f"SELECT doc FROM jobs WHERE {where} ORDER BY number DESC LIMIT ?",
            [*values, -1 if limit is None else limit],
        ).fetchall()
        return [from_doc(json.loads(doc)) for (doc,) in reversed(rows)]

    def unfinished(self) -> list[tuple[JobRecord, str]]:
        """Records not ended, with the id of the boot they belong to."""
        rows = self._db.execute(f"SELECT doc, boot FROM jobs WHERE {_UNFINISHED}")
        return [(from_doc(json.loads(doc)), boot) for doc, boot in rows]

    def ended_before(self, wall: float) -> list[str]:
        return [
            job for (job,) in self._db.execute("SELECT id FROM jobs WHERE ended < ? AND gone = 0", (wall,))
        ]

    def mark_gone(self, job: str) -> None:
        with self._change() as db:
            db.execute("UPDATE jobs SET gone = 1 WHERE id = ?", (job,))

    def put_lease(self, lease: LeaseRow) -> None:
        """Raises NoSpaceError when the database cannot be written."""
        with self._change() as db:
            db.execute(
                "INSERT OR REPLACE INTO leases VALUES (:id, :owner, :ttl, :expires, :latest, :boot, :holds, :max_life)",
                asdict(lease),
            )

    def drop_lease(self, lease: str) -> None:
        with self._change() as db:
            db.execute("DELETE FROM leases WHERE id = ?", (lease,))

    def leases(self) -> list[LeaseRow]:
        columns = "id, owner, ttl, expires, latest, boot, holds, max_life"
        return [
            LeaseRow(
                id=row[0], owner=row[1], ttl=row[2], expires=row[3], latest=row[4], boot=row[5],
                holds=bool(row[6]), max_life=row[7],
            )
            for row in self._db.execute(f"SELECT {columns} FROM leases")
        ]  # fmt: skip


def write_state(directory: Path, record: JobRecord) -> None:
    """Replace the job's `state` and make it durable. Raises OSError when the disk refuses.

    One fsync after the rename makes both last: the journals of ext4, xfs and btrfs carry the file's new name with it. A
    power cut in between leaves no `state` or a torn one, which reads as none; nobody was told of the ending by then.
    """
    data = json.dumps(to_doc(record)).encode()
    fd = os.open(directory / "state.next", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, len(data))
        (directory / "state.next").rename(directory / "state")
        os.fsync(fd)
    finally:
        os.close(fd)


def read_state(directory: Path) -> JobRecord | None:
    try:
        return from_doc(json.loads((directory / "state").read_bytes()))
    except (OSError, ValueError):
        return None
