"""The ingress as a process: `python -m toolhost.ingress --control-socket S --listen-fd N --home DIR --url U`.

It owns nothing that must survive it: sockets come from the controller, routes too, tokens and keys are in the home.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import uvicorn
import uvloop
from typing_extensions import override

from toolhost.ingress.app import IngressApp
from toolhost.ingress.config import IngressConfig
from toolhost.ingress.control_api import create_api
from toolhost.ingress.routes import RouteBook
from toolhost.tokens import TokenStore
from toolhost_sdk.endpoints.channel import Channel
from toolhost_sdk.endpoints.unix_client import UnixChannel
from toolhost_sdk.errors import ToolhostError, UsageError

logger = logging.getLogger(__name__)
# Seconds that connections get after every stream and call was ended: SIGTERM to exit stays below 5.
_GRACE: Final = 2
_STREAM_SECONDS: Final = 0.5  # at most, for final frames to leave
_KEY_BYTES: Final = 32


class IngressServer(uvicorn.Server):
    """A uvicorn server that ends its own long answers before it waits for connections to end."""

    def __init__(self, config: uvicorn.Config, routes: RouteBook, on_stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self._routes = routes
        self._on_stopping = on_stopping

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stopping()
        for server in self.servers:
            server.close()
        self._routes.end_streams()
        self._routes.dispatch.stop()
        await self._routes.quiet(_STREAM_SECONDS)
        await self._routes.aclose()
        await super().shutdown(sockets)

    @contextmanager
    @override
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, without raising the signal again afterwards: ending by SIGTERM is a success."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


async def serve(
    listener: socket.socket,
    *,
    control: Channel,
    config: IngressConfig,
    tokens: TokenStore,
    url: str,
    on_ready: Callable[[IngressServer], None] | None = None,
) -> int:
    """Serve until a signal comes or the controller stays away. Returns the exit code."""
    routes = RouteBook(config)
    api = create_api(control=control, routes=routes, tokens=tokens)
    app = IngressApp(config, routes=routes, tokens=tokens, api=api, version=version("toolhost-platform"))
    first_table = asyncio.Event()
    following = asyncio.get_running_loop().create_task(routes.follow(control, first_table.set))
    server = IngressServer(_uvicorn_config(app), routes, on_stopping=lambda: _cancel(following))
    failed: list[BaseException] = []

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the ingress gives up: %s", error)
            failed.append(error)
            first_table.set()
            server.should_exit = True

    following.add_done_callback(ended)
    try:
        await first_table.wait()
        if not failed:
            _settle_memory()
            announcing = asyncio.get_running_loop().create_task(_announce(control, url))
            if on_ready is not None:
                on_ready(server)
            await server.serve(sockets=[listener])
            announcing.cancel()
    finally:
        following.cancel()
        await asyncio.wait({following}, timeout=1.0)
        await control.aclose()
        tokens.close()
    return 1 if failed else 0


def _uvicorn_config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="h11",  # httptools keeps blanks at the end of header values, which fails a header check
        ws="none",
        lifespan="off",
        loop="none",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
        timeout_keep_alive=75,
    )


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


async def _announce(control: Channel, url: str) -> None:
    with suppress(ToolhostError):
        await control.request("control", "ingress.ready", {"url": url})


def _settle_memory() -> None:
    """What was imported stays; collecting it again and again is where long tails come from."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)


def load_keys(path: Path) -> tuple[bytes, ...]:
    """The keys that seal request state, one in hexadecimal a line, the first one in use. Made when there are none.

    Raises:
        UsageError: the file holds something else.
    """
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:  # made with mode 0600
            file.write(secrets.token_hex(_KEY_BYTES) + "\n")
            file.flush()
            with suppress(FileExistsError):  # another ingress was first
                os.link(file.name, path)
    try:
        keys = tuple(bytes.fromhex(line) for line in path.read_text("ascii").split())
    except ValueError:
        keys = ()
    if not keys or any(len(key) < _KEY_BYTES for key in keys):
        raise UsageError(
            f"{str(path)!r} holds no keys of at least {_KEY_BYTES} bytes in hexadecimal, one a line"
        )
    return keys


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m toolhost.ingress", description="One ingress process.")
    parser.add_argument("--control-socket", required=True, help="of the controller")
    parser.add_argument("--listen-fd", type=int, required=True, help="a bound, listening socket")
    parser.add_argument("--home", type=Path, required=True, help="where tokens and keys are")
    parser.add_argument("--url", required=True, help="what it serves at")
    parser.add_argument("--allowed-host", action="append", default=[], help="a name for Host and Origin")
    parser.add_argument("--heartbeat", type=float, default=15.0)
    parser.add_argument("--orphan-grace", type=float, default=30.0)
    parser.add_argument("--controller-patience", type=float, default=10.0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the process. Returns its exit code."""
    options = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for noisy in ("mcp", "uvicorn", "sse_starlette"):  # the SDK logs session ids, which open sessions
        logging.getLogger(noisy).setLevel(logging.WARNING)
    config = IngressConfig(
        keys=load_keys(options.home / "keys"),
        allowed_hosts=(*_own_names(options.url), *options.allowed_host),
        heartbeat=options.heartbeat,
        orphan_grace=options.orphan_grace,
        controller_patience=options.controller_patience,
    )
    return uvloop.run(
        serve(
            socket.socket(fileno=options.listen_fd),
            control=UnixChannel(options.control_socket),
            config=config,
            tokens=TokenStore(options.home / "tokens.db"),
            url=options.url,
        )
    )


def _own_names(url: str) -> tuple[str, ...]:
    """The name of *url*, unless it stands for every address of the machine."""
    host = urlsplit(url).hostname or ""
    if host in ("", "0.0.0.0", "::"):
        return ()
    return (f"[{host}]" if ":" in host else host,)
