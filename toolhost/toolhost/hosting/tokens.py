"""Tokens as the control endpoint offers them, and those that stay the same from one host of a home to the next."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from toolhost.hosting.home import Home, write_private
from toolhost.tokens import TokenRecord, TokenStore
from toolhost_sdk.errors import NotFoundError

_LEAST_LEFT = 86400.0  # seconds; a token that ends sooner is left to its end, and another one announced


class TokenService:
    """The tokens of one home. Everything runs in the controller's loop."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._store = TokenStore(home.tokens_file)

    def close(self) -> None:
        self._store.close()

    def ensure_operator_token(self) -> None:
        """Mint the operator's token once a home; it is in a file of mode 0600."""
        self._kept(self._home.operator_token_file, "operator", ("*", "control"), ttl=None)

    def operator_token(self) -> str:
        return self._home.operator_token_file.read_text().strip()

    def serve_token(self, scopes: tuple[str, ...], *, ttl: float) -> tuple[str, TokenRecord]:
        """The token that `serve` announces: the last one while it opens the same servers for a day at least."""
        return self._kept(self._home.serve_token_file, "serve", scopes, ttl=ttl)

    def _kept(
        self, path: Path, label: str, scopes: tuple[str, ...], *, ttl: float | None
    ) -> tuple[str, TokenRecord]:
        token = path.read_text(errors="replace").strip() if path.exists() else ""
        record = self._store.verify(token)
        if record is not None and record.scopes == scopes and _lasts(record):
            return token, record
        minted = self._store.mint(label=label, scopes=scopes, ttl=ttl)
        write_private(path, minted.token.encode())
        if record is not None and record.scopes != scopes:
            self._store.revoke(record.id)
        return minted.token, minted.record

    async def dispatch(self, method: str, payload: dict[str, Any]) -> Any:
        match method:
            case "mint":
                minted = self._store.mint(
                    label=payload.get("label", ""), scopes=payload["scopes"], ttl=payload.get("ttl")
                )
                return {"id": minted.id, "token": minted.token}
            case "list":
                return [token.public() for token in self._store.list()]
            case "revoke":
                return {"revoked": self._store.revoke(payload["id"])}
        raise NotFoundError(f"the control endpoint has no method 'tokens.{method}'")


def _lasts(record: TokenRecord) -> bool:
    return record.expires_at is None or record.expires_at - time.time() > _LEAST_LEFT
