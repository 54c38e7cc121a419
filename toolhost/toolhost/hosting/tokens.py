"""Tokens as the control endpoint offers them, and the operator's own."""

from __future__ import annotations

from typing import Any

from toolhost.hosting.home import Home, write_private
from toolhost.tokens import TokenStore
from toolhost_sdk.errors import NotFoundError


class TokenService:
    def __init__(self, home: Home) -> None:
        self._home = home
        self._store = TokenStore(home.tokens_file)

    def close(self) -> None:
        self._store.close()

    def ensure_operator_token(self) -> None:
        """Mint the operator's token once a home; it is in a file of mode 0600."""
        path = self._home.operator_token_file
        if path.exists() and self._store.verify(path.read_text().strip()) is not None:
            return
        write_private(path, self._store.mint(label="operator", scopes=["*", "control"]).token.encode())

    def operator_token(self) -> str:
        return self._home.operator_token_file.read_text().strip()

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
