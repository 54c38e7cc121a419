"""Commands about access: tokens, and what to tell MCP clients."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import quote

import typer

from toolhost.cli import options
from toolhost.cli.arguments import parse_duration
from toolhost.cli.client import HostClient, connect
from toolhost.cli.output import ago, in_words, note, table, write, write_json
from toolhost.client_config import ServerAccess, claude_commands, codex_toml, mcp_json, server_url
from toolhost_sdk.errors import NotFoundError

token_app = typer.Typer(name="token", help="Mint, list and revoke access tokens.", no_args_is_help=True)
_TOKEN_VARIABLE = "TOOLHOST_TOKEN"


class ConfigTarget(StrEnum):
    CLAUDE = "claude"
    CODEX = "codex"
    JSON = "json"


@token_app.command("mint")
def mint(
    label: Annotated[str, typer.Argument(help="Who will use it; shown in lists.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope", help="A server it may use, or `control`; repeat for more [default: all servers]."
        ),
    ] = None,
    ttl: Annotated[str, typer.Option("--ttl", help="How long it is valid: 90s, 15m, 12h, 30d.")] = "30d",
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Mint a token. It is shown once; the host keeps a hash only."""
    minted = mint_token(connect(home), label, scope, ttl=ttl)
    if json:
        write_json(minted)
    else:
        write(str(minted["token"]))


@token_app.command("list")
def list_tokens(home: options.Home = None, json: options.Json = False) -> None:
    """List tokens: label, scopes, age and expiry; never the token itself."""
    tokens = connect(home).get("/tokens")
    if json:
        write_json(tokens)
        return
    table(("ID", "LABEL", "SCOPES", "AGE", "VALID"), (_token_row(token) for token in tokens))


@token_app.command("revoke")
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="From `toolhost token list`.")],
    home: options.Home = None,
) -> None:
    """Revoke a token at once."""
    connect(home).delete(f"/tokens/{quote(token_id, safe='')}")
    write(f"{token_id} is revoked")


def config(
    client: Annotated[ConfigTarget, typer.Argument(help="Which client's syntax.")],
    name: Annotated[
        list[str] | None, typer.Option("--name", help="A server to include; repeat for more [default: all].")
    ] = None,
    token_env: Annotated[
        str | None,
        typer.Option(
            "--token-env",
            callback=options.variable,
            help="Refer to this variable instead of minting a token into the text.",
        ),
    ] = None,
    home: options.Home = None,
) -> None:
    """Write what an MCP client needs to reach the servers. Mints a token for them unless --token-env is given."""
    control = connect(home)
    names = _chosen(control, name)
    token = None
    if client is ConfigTarget.CODEX:
        token_env = token_env or _TOKEN_VARIABLE  # Codex takes a token from a variable only
        note(f"Codex reads ${token_env}; set it with: export {token_env}=$(toolhost token mint codex)")
    elif token_env is None:
        token = str(mint_token(control, client.value, names, ttl="30d")["token"])
        note("a token for these servers is in the text below; it is valid for 30 days")
    access = [
        ServerAccess(name=each, url=server_url(control.address.url, each), token=token, token_env=token_env)
        for each in names
    ]
    match client:
        case ConfigTarget.CLAUDE:
            for line in claude_commands(access):
                write(line)
        case ConfigTarget.CODEX:
            write(codex_toml(access))
        case ConfigTarget.JSON:
            write_json(mcp_json(access))


def mint_token(client: HostClient, label: str, scopes: list[str] | None, *, ttl: str) -> dict[str, Any]:
    """Mint through the control API. The answer holds `token` and what is on record of it."""
    body = {"label": label, "scopes": scopes or ["*"], "ttl": parse_duration(ttl)}
    answer: dict[str, Any] = client.post("/tokens", body)
    return answer


def _chosen(client: HostClient, wanted: list[str] | None) -> list[str]:
    running = [str(server["name"]) for server in client.get("/servers")]
    for name in wanted or ():
        if name not in running:
            raise NotFoundError(f"no server {name!r}; running: {', '.join(running) or 'none'}")
    if not running:
        raise NotFoundError("no server runs; start one with: toolhost spawn bash")
    return wanted or running


def _token_row(token: dict[str, Any]) -> list[str]:
    return [
        str(token["id"]),
        str(token["label"]),
        " ".join(token["scopes"]),
        ago(float(token["created_at"])),
        _validity(token),
    ]


def _validity(token: dict[str, Any]) -> str:
    if token.get("revoked"):
        return "revoked"
    if (expires_at := token.get("expires_at")) is None:
        return "until revoked"
    left = float(expires_at) - time.time()
    return f"for {in_words(left)}" if left > 0 else "expired"
