"""Tokens: minted once, hashed at rest, scoped, expiring, revocable."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

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
