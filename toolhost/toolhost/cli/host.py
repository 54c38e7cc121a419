"""Commands about the host itself: serve, status, down, doctor, sweep."""

from __future__ import annotations

import time
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from toolhost.cli import options
from toolhost.cli.client import HostClient, chosen_settings, connect, is_alive
from toolhost.cli.output import SERVER_COLUMNS, ago, note, patience, server_rows, table, write, write_json
from toolhost.hosting.home import Home
from toolhost_sdk.errors import DeadlineExceededError, NotFoundError

_DOWN_SECONDS = 20.0


def write_version() -> None:
    write(f"toolhost {own_version()}")


def own_version() -> str:
    try:
        return version("toolhost-platform")
    except PackageNotFoundError:  # imported from a source tree that is not installed
        return "unknown"


def serve(
    *,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", min=0, max=65535, help="0 lets the kernel choose [default: $TOOLHOST_PORT or 7420]."
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    home: options.Home = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="A Ray cluster to join [default: $RAY_ADDRESS, else a local Ray]."),
    ] = None,
    work_dir: Annotated[
        Path | None,
        typer.Option("--work-dir", help="Where the shell starts [default: the current directory]."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", help="Another name clients may use for this host; repeat for more."),
    ] = None,
    default_servers: Annotated[
        bool, typer.Option("--default-servers/--no-default-servers", help="Start `bash` and `jobs`.")
    ] = True,
    json: options.Json = False,
) -> None:
    """Run a host in the foreground until Ctrl-C or SIGTERM."""
    from toolhost.cli.serving import ServeOptions, serve_host

    serve_host(
        ServeOptions(
            port=port,
            host=host,
            home=home,
            address=address,
            work_dir=work_dir,
            allowed_hosts=tuple(allowed_host or ()),
            default_servers=default_servers,
            json=json,
        )
    )


def status(home: options.Home = None, json: options.Json = False) -> None:
    """Show the running host and its servers."""
    facts = connect(home).get("/status")
    if json:
        write_json(facts)
        return
    write(f"toolhost {facts['version']} at {facts['url']}, pid {facts['pid']}, up {ago(facts['started_at'])}")
    write(f"home {facts['home']}, Ray {facts.get('ray_address') or 'local'}")
    if servers := facts["servers"]:
        table(SERVER_COLUMNS, server_rows(servers))


def down(home: options.Home = None) -> None:
    """Stop the running host with everything it runs."""
    client = connect(home)
    with patience("stopping the host"):
        client.post("/shutdown")
        _wait_until_gone(client)
    write(f"the host at {client.address.url} is stopped")


def _wait_until_gone(client: HostClient) -> None:
    """Return when a host on this machine has ended: it removes its file last."""
    address = client.address
    deadline = time.monotonic() + _DOWN_SECONDS
    while address.home is not None and address.pid is not None and address.home.host_file.exists():
        if not is_alive(address.pid):
            return
        if time.monotonic() > deadline:
            raise DeadlineExceededError(
                f"the host, process {address.pid}, still runs {_DOWN_SECONDS:g} s after its shutdown"
            )
        time.sleep(0.05)


def doctor(home: options.Home = None, json: options.Json = False) -> None:
    """Say which promises hold on this machine, and what to do about the others. Exit code 1: something fails."""
    from toolhost.cli.doctor import examine, render_checks

    checks = examine(home)
    if json:
        write_json({"version": own_version(), "checks": [check.as_dict() for check in checks]})
    else:
        write(render_checks(checks))
    raise typer.Exit(1 if any(check.state == "fails" for check in checks) else 0)


def sweep(home: options.Home = None, json: options.Json = False) -> None:
    """End what a host of this home left behind, and nothing else. Safe beside a running host."""
    from toolhost_sdk.node.sweep import sweep_home

    files = Home(chosen_settings(home).home)
    try:
        ended = sweep_home(files.warden_dir)
    except FileNotFoundError:
        raise NotFoundError(f"no host ever ran in {str(files.root)!r}, so nothing was left there") from None
    if json:
        write_json(ended)
    elif ended:
        counts = Counter(str(thing["kind"]) for thing in ended)
        write(
            "ended " + ", ".join(f"{count} {_plural(kind, count)}" for kind, count in sorted(counts.items()))
        )
    else:
        note("nothing was left behind")


def _plural(word: str, count: int) -> str:
    if count == 1:
        return word
    return word + ("es" if word.endswith("s") else "s")
