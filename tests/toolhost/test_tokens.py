"""Tokens: minted once, hashed at rest, scoped, expiring, revocable."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from toolhost.hosting.home import Home
from toolhost.hosting.tokens import TokenService
from toolhost.tokens import TokenStore, functions_in_scope
from toolhost_sdk.errors import UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.db"


def test_a_token_has_256_random_bits_and_is_stored_as_a_hash_only(path: Path) -> None:
    """SEC-R1"""
    store = TokenStore(path)
    minted = store.mint(label="me", scopes=["alpha"])
    record = store.verify(minted.token)
    store.close()

    assert record == minted.record
    assert minted.token.startswith("th_") and len(minted.token) == 3 + 43
    assert minted.token not in repr(minted) + repr(record)
    files = list(path.parent.iterdir())
    assert all(minted.token.encode() not in file.read_bytes() for file in files)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_wrong_expired_and_revoked_tokens_are_one_answer(path: Path) -> None:
    """SEC-A1"""
    store = TokenStore(path)
    good = store.mint(scopes=["*"])
    short = store.mint(scopes=["*"], ttl=1e-6)

    assert store.revoke(good.id) and not store.revoke(good.id) and not store.revoke("tok-none")
    assert [store.verify(t) for t in (good.token, short.token, "th_x", "", "x" * 10_000, "th_\udcff")] == [
        None
    ] * 6


def test_what_one_process_does_the_other_sees_at_once(path: Path) -> None:
    """SEC-R1"""
    one, other = TokenStore(path), TokenStore(path)
    minted = one.mint(scopes=["*"])

    assert other.verify(minted.token) is not None
    assert one.revoke(minted.id)
    assert other.verify(minted.token) is None


def test_lists_show_everything_but_the_token(path: Path) -> None:
    store = TokenStore(path)
    minted = store.mint(label="a", scopes=["alpha:echo", "control"], ttl=60)
    (listed,) = [record.public() for record in store.list()]

    assert listed.keys() == {"id", "label", "scopes", "created_at", "expires_at", "revoked"}
    assert listed["scopes"] == ["alpha:echo", "control"]
    assert minted.record.allows_control() and minted.record.allows_server("alpha")
    assert not minted.record.allows_server("beta")


@pytest.mark.parametrize(
    ("scopes", "server", "functions"),
    [
        (["*"], "alpha", None),
        (["alpha"], "alpha", None),
        (["alpha"], "alphabet", frozenset()),
        (["alpha:echo", "alpha:cat"], "alpha", frozenset({"echo", "cat"})),
        (["alpha:echo", "alpha"], "alpha", None),
        (["control"], "control", frozenset()),
        ([], "alpha", frozenset()),
    ],
)
def test_scopes_name_servers_and_functions(
    scopes: list[str], server: str, functions: frozenset[str] | None
) -> None:
    assert functions_in_scope(scopes, server) == functions


@pytest.mark.parametrize("scopes", [[], ["a b"], ["alpha:"], ["../x"], ["alpha:*"], "alpha", [7]])
def test_a_malformed_scope_mints_nothing(path: Path, scopes: list[str]) -> None:
    store = TokenStore(path)

    with pytest.raises(UsageError):
        store.mint(scopes=scopes)
    assert store.list() == []


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf")])
def test_a_lifetime_is_bounded(path: Path, ttl: float) -> None:
    with pytest.raises(UsageError):
        TokenStore(path).mint(scopes=["*"], ttl=ttl)


def test_a_damaged_file_is_one_error_that_names_it_and_the_way_out(path: Path) -> None:
    path.write_bytes(b"no database at all, but long enough to be looked at as one")
    with pytest.raises(UsageError, match=r"tokens\.db.*damaged: move it away"):
        TokenStore(path).list()


def test_tokens_that_ended_long_ago_are_forgotten(path: Path) -> None:
    store = TokenStore(path)
    old = [store.mint(label=f"old {n}", scopes=["*"], ttl=1.0) for n in range(3)]
    store.revoke(old[0].id)
    kept = store.mint(label="kept", scopes=["*"])
    with sqlite3.connect(path) as other:
        other.execute(
            "UPDATE tokens SET expires_at = 1.0, revoked_at = min(revoked_at, 1.0) WHERE label LIKE 'old%'"
        )
    other.close()
    new = store.mint(label="new", scopes=["*"])

    assert [record.id for record in store.list()] == [kept.id, new.id]


def test_what_serve_announces_stays_the_same_over_restarts_while_it_is_good(tmp_path: Path) -> None:
    """SEC-R1: restarts pile up no tokens, and what clients were told stays true."""
    home = Home(tmp_path / "h")
    home.prepare()

    def announced(*names: str, ttl: float = 30 * 86400.0) -> str:
        tokens = TokenService(home)
        try:
            return tokens.serve_token(names, ttl=ttl)[0]
        finally:
            tokens.close()

    first, again = announced("bash", "jobs"), announced("bash", "jobs")
    other = announced("bash", ttl=3600.0)
    after_short = announced("bash")
    store = TokenStore(home.tokens_file)
    valid = [store.verify(token) is not None for token in (first, other, after_short)]
    store.revoke(store.list()[-1].id)
    after_revoked = announced("bash")

    assert first == again
    assert stat.S_IMODE(home.serve_token_file.stat().st_mode) == 0o600
    assert valid == [False, True, True]  # other servers: revoked; about to expire: left to its end
    assert len({first, other, after_short, after_revoked}) == 4
    store.close()
