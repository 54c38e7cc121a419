"""Bearer tokens: minted once, kept as hashes, checked by every ingress of the home.

Rules of this file: the token itself is returned by `mint` and stored nowhere; every other value that leaves here
holds its id only. Several processes may have the same file open: what one revokes, the others refuse at their next
check.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from toolhost_sdk.errors import NoSpaceError, UsageError

PREFIX: Final = "th_"
CONTROL_SCOPE: Final = "control"
ALL_SERVERS: Final = "*"
_SECRET_BYTES: Final = 32
_MAX_TOKEN: Final = 128
_INDEX_BYTES: Final = 16
_KEPT_SECONDS: Final = 90 * 86400.0
_SCOPE: Final = re.compile(r"\*|[A-Za-z0-9][A-Za-z0-9_-]{0,63}(:[A-Za-z0-9][A-Za-z0-9_.-]{0,63})?")
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS tokens (
    id TEXT PRIMARY KEY, hash BLOB NOT NULL UNIQUE, label TEXT NOT NULL, scopes TEXT NOT NULL,
    created_at REAL NOT NULL, expires_at REAL, revoked_at REAL
) STRICT
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """What is on record of a token; never the token.

    Args:
        scopes: server names, `server:function`, `*` for all servers, `control` for the control API.
    """

    id: str
    label: str
    scopes: tuple[str, ...]
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None

    def is_valid(self, now: float) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def allows_control(self) -> bool:
        return CONTROL_SCOPE in self.scopes

    def allows_server(self, server: str) -> bool:
        """Whether any function of *server* may be used."""
        return functions_in_scope(self.scopes, server) != frozenset()

    def public(self) -> dict[str, Any]:
        """Plain data for lists."""
        return {
            "id": self.id,
            "label": self.label,
            "scopes": list(self.scopes),
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "revoked": self.revoked_at is not None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MintedToken:
    """A new token, in clear for the only time."""

    id: str
    token: str = field(repr=False)
    record: TokenRecord


def functions_in_scope(scopes: Sequence[str], server: str) -> frozenset[str] | None:
    """Which functions of *server* the scopes open: None means all of them, an empty set means none."""
    if ALL_SERVERS in scopes or (server in scopes and server != CONTROL_SCOPE):
        return None
    prefix = f"{server}:"
    return frozenset(scope.removeprefix(prefix) for scope in scopes if scope.startswith(prefix))


class TokenStore:
    """The tokens of one home, in one SQLite file of mode 0600. Opened at the first use; for one thread.

    Args:
        path: of the file; its directory exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._by_hash: dict[bytes, tuple[bytes, TokenRecord]] = {}
        self._version = -1  # of the data in `_by_hash`, as SQLite counts other connections' commits

    def mint(self, *, label: str = "", scopes: Sequence[str], ttl: float | None = None) -> MintedToken:
        """Make a token.

        Args:
            ttl: seconds it is valid; None means until it is revoked.

        Raises:
            UsageError: no scope, a malformed one, or a lifetime that is none.
            NoSpaceError: no room on the disk to keep it.
        """
        _check(label, scopes, ttl)
        token = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        now = time.time()
        record = TokenRecord(
            id=f"tok-{secrets.token_hex(8)}",
            label=label,
            scopes=tuple(dict.fromkeys(scopes)),
            created_at=now,
            expires_at=None if ttl is None else now + ttl,
        )
        row = (record.id, _hash(token), label, json.dumps(record.scopes), now, record.expires_at)
        with self._writing() as connection:
            connection.execute(
                "DELETE FROM tokens WHERE coalesce(revoked_at, expires_at) < ?", (now - _KEPT_SECONDS,)
            )
            connection.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, NULL)", row)
        self._version = -1
        return MintedToken(id=record.id, token=token, record=record)

    def list(self) -> list[TokenRecord]:
        """Every token on record, oldest first; revoked and expired ones for three months after their end."""
        rows = self._open().execute("SELECT * FROM tokens ORDER BY created_at, id").fetchall()
        return [_record(row) for row in rows]

    def revoke(self, token_id: str) -> bool:
        """End a token at once. False: it was unknown or revoked before."""
        with self._writing() as connection:
            done = connection.execute(
                "UPDATE tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL",
                (time.time(), token_id),
            )
        self._version = -1
        return done.rowcount == 1

    def verify(self, token: str) -> TokenRecord | None:
        """The record of *token* while it is valid, else None: unknown, expired and revoked are one answer."""
        if not token.startswith(PREFIX) or len(token) > _MAX_TOKEN:
            return None
        self._refresh()
        digest = _hash(token)
        # Looked up by hash, which no caller can steer towards a stored one, and by a part of it only, so that
        # what decides is a comparison that takes the same time whatever matched.
        found = self._by_hash.get(digest[:_INDEX_BYTES])
        if found is None or not hmac.compare_digest(found[0], digest):
            return None
        return found[1] if found[1].is_valid(time.time()) else None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _refresh(self) -> None:
        connection = self._open()
        version = connection.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            rows = connection.execute("SELECT * FROM tokens").fetchall()
            self._by_hash = {row["hash"][:_INDEX_BYTES]: (row["hash"], _record(row)) for row in rows}
            self._version = version

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._open() as connection:
                yield connection
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            raise NoSpaceError(
                f"no room on the disk for {str(self._path)!r}: free some and try again"
            ) from None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(self._path, timeout=5.0, check_same_thread=False)
            try:
                connection.row_factory = sqlite3.Row
                connection.execute("PRAGMA journal_mode = WAL")
                with connection:
                    connection.execute(_SCHEMA)
            except sqlite3.DatabaseError as error:
                connection.close()
                if error.sqlite_errorcode not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                    raise
                raise UsageError(
                    f"{str(self._path)!r} is damaged: move it away and start again; its tokens are lost then, and "
                    "clients need new ones"
                ) from None
            self._connection = connection
        return self._connection


def _hash(token: str) -> bytes:
    # 256 random bits need no slow hash: there is nothing to guess from a dictionary.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _record(row: sqlite3.Row) -> TokenRecord:
    return TokenRecord(
        id=row["id"],
        label=row["label"],
        scopes=tuple(json.loads(row["scopes"])),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
    )


def _check(label: str, scopes: Sequence[str], ttl: float | None) -> None:
    if not label.isprintable() or len(label) > 200:
        raise UsageError("a token's label is printable text of at most 200 characters")
    if isinstance(scopes, str) or not scopes or len(scopes) > 256:
        raise UsageError("a token needs 1 to 256 scopes: server names, 'server:function', '*' or 'control'")
    for scope in scopes:
        if not isinstance(scope, str) or _SCOPE.fullmatch(scope) is None:
            raise UsageError(
                f"{scope!r} is no scope; one is a server name, 'server:function', '*' or 'control'"
            )
    if ttl is not None and not 0 < ttl <= 10 * 366 * 86400:
        raise UsageError(f"a token's lifetime is above 0 s and at most 10 years, not {ttl:g} s", ttl=ttl)
