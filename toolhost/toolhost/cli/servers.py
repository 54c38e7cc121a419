"""Commands about tool servers: list, spawn, stop, drain, call, logs."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from toolhost.cli import options
from toolhost.cli.arguments import parse_arguments
from toolhost.cli.client import connect
from toolhost.cli.output import (
    SERVER_COLUMNS,
    note,
    outcome_text,
    patience,
    server_rows,
    table,
    write,
    write_json,
)

_SLACK = 15.0  # seconds that a request may take beyond what the host was given for the work itself


def list_servers(home: options.Home = None, json: options.Json = False) -> None:
    """List the servers of the running host."""
    servers = connect(home).get("/servers")
    if json:
        write_json(servers)
    elif servers:
        table(SERVER_COLUMNS, server_rows(servers))
    else:
        note("no servers; start one with: toolhost spawn bash")


def spawn(
    kind: Annotated[
        str, typer.Argument(metavar="KIND|MODULE:CLASS", help="A shipped kind, or a class of yours.")
    ],
    *,
    name: Annotated[str | None, typer.Option("--name", help="The server's name [default: the kind].")] = None,
    arg: options.Arguments = None,
    expose: Annotated[
        list[str] | None, typer.Option("--expose", help="Offer only this function; repeat for more.")
    ] = None,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Start a server. MODULE:CLASS is imported here, and its host must be on this machine."""
    arguments = parse_arguments(arg or ())
    client = connect(home, timeout=60.0)
    with patience(f"starting {name or kind}"):
        if ":" in kind:
            from toolhost.cli.spawning import spawn_class

            status = spawn_class(client.address, kind, arguments, name=name, expose=expose)
        else:
            body = {"name": name or kind, "kind": kind, "arguments": arguments, "expose": expose}
            status = client.post("/servers", body)
    if json:
        write_json(status)
    else:
        write(f"{status['name']} is {status['state']} at {status['url']}")


def stop(
    name: options.ServerName,
    grace: Annotated[
        float, typer.Option("--grace", callback=options.seconds, help="Seconds between SIGTERM and SIGKILL.")
    ] = 5.0,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Stop a server and end what it runs."""
    client = connect(home, timeout=grace + _SLACK)
    with patience(f"stopping {name}"):
        answer = client.delete(_server(name), query={"grace": grace})
    if json:
        write_json(answer)
    elif answer.get("stopped", True):
        write(f"{name} is stopped")
    else:
        note(f"{name} was not running")


def drain(
    name: options.ServerName,
    timeout: Annotated[
        float, typer.Option("--timeout", callback=options.seconds, help="Seconds to wait for running calls.")
    ] = 60.0,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Let a server finish its running calls and refuse new ones. Exit code 1: some still run."""
    client = connect(home, timeout=timeout + _SLACK)
    with patience(f"draining {name}"):
        answer = client.post(f"{_server(name)}/drain", {"timeout": timeout})
    drained = bool(answer.get("drained"))
    if json:
        write_json(answer)
    elif drained:
        write(f"{name} is drained")
    else:
        note(f"{name} still runs calls after {timeout:g} s")
    raise typer.Exit(0 if drained else 1)


def call(
    server: Annotated[str, typer.Argument(metavar="SERVER", help="The server's name.")],
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="The function's name.")],
    *,
    arg: options.Arguments = None,
    timeout: Annotated[
        float,
        typer.Option("--timeout", callback=options.waiting_seconds, help="Seconds to wait for the result."),
    ] = 900.0,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Call a function and write its text. Exit code 1: the result is an error."""
    arguments = parse_arguments(arg or ())
    client = connect(home)
    with patience(f"{server} {tool}"):
        outcome: dict[str, Any] = client.post(
            f"{_server(server)}/call", {"tool": tool, "arguments": arguments}, timeout=timeout
        )
    if json:
        write_json(outcome)
    else:
        write(outcome_text(outcome))
    raise typer.Exit(1 if outcome.get("is_error") else 0)


def logs(
    name: options.ServerName,
    tail: Annotated[int, typer.Option("--tail", min=1, help="Lines from the end.")] = 200,
    home: options.Home = None,
) -> None:
    """Write the end of a server's log."""
    text = str(connect(home).get(f"{_server(name)}/log", query={"tail": tail}).get("text", ""))
    if text:
        write(text)
    else:
        note(f"{name} has written nothing to its log")


def _server(name: str) -> str:
    return f"/servers/{quote(name, safe='')}"
