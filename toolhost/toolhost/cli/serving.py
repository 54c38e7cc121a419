"""`toolhost serve`: a host in the foreground, and what a person needs to use it."""

from __future__ import annotations

import importlib.util
import os
import pwd
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from toolhost.cli.host import own_version
from toolhost.cli.output import in_words, patience, write, write_json
from toolhost.client_config import ServerAccess, claude_commands, reachable_url, server_url
from toolhost.settings import Settings
from toolhost_sdk.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from toolhost import ToolHost

_TOKEN_DAYS = 30
_DEFAULT_SERVERS = ("bash", "jobs")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The command line of `serve`; None means what the environment or the default says."""

    port: int | None
    host: str
    home: Path | None
    address: str | None
    work_dir: Path | None
    allowed_hosts: tuple[str, ...]
    default_servers: bool
    json: bool


def serve_host(options: ServeOptions) -> None:
    """Run a host until Ctrl-C, SIGTERM or a shutdown request; then stop all of it.

    Raises:
        UsageError: the work directory is none.
        UnavailableError: Ray is not installed.
        ToolhostError: what `ToolHost.start` raises: a host runs on this home already, the port is in use, ...
    """
    settings = Settings.from_process()
    work_dir = _work_dir(options.work_dir)
    _require_ray()
    from toolhost import ToolHost  # imports Ray, which takes longer than every other command altogether

    host = ToolHost(
        home=(options.home or settings.home).expanduser().absolute(),
        port=settings.port if options.port is None else options.port,
        host=options.host,
        address=options.address or settings.ray_address,
        allowed_hosts=options.allowed_hosts,
    )
    with _interruptible() as interrupted:
        try:
            with patience("starting Ray and the host"):
                host.start()
                names = _spawn_defaults(host, work_dir) if options.default_servers else []
            interrupted.started()
            _announce(host, names, work_dir, as_json=options.json)
            host.wait_for_shutdown(interrupted)
        except SystemExit:  # from Ray's handler of SIGTERM, which stands in for ours while Ray starts
            raise KeyboardInterrupt from None
        finally:
            interrupted.started()  # from here on a second Ctrl-C must not stop the cleaning up
            host.close()


class _Interrupted(threading.Event):
    """Set by SIGINT and SIGTERM. Until `started`, they interrupt whatever is going on as well."""

    _starting = True

    def started(self) -> None:
        self._starting = False

    def handle(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        self.set()
        if self._starting:
            raise KeyboardInterrupt


@contextmanager
def _interruptible() -> Iterator[_Interrupted]:
    interrupted = _Interrupted()
    kept = {number: signal.signal(number, interrupted.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _work_dir(given: Path | None) -> Path:
    path = (given or Path.cwd()).expanduser().absolute()
    if not path.is_dir():
        raise UsageError(
            f"the work directory {str(path)!r} is no directory; name an existing one with --work-dir"
        )
    return path


def _require_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise UnavailableError("Ray is not installed, and tool servers run in it; run: make install")


def _spawn_defaults(host: ToolHost, work_dir: Path) -> list[str]:
    from toolhost.tools.shipped import shipped_spec

    running = {
        server.name for server in host.servers()
    }  # a detached one of that name came back with its home
    for name in _DEFAULT_SERVERS:
        if name not in running:
            host.spawn(shipped_spec(name, {"work_dir": str(work_dir)}), name=name)
    return list(_DEFAULT_SERVERS)


def _announce(host: ToolHost, names: list[str], work_dir: Path, *, as_json: bool) -> None:
    token, expires_at = host.serve_token(names, ttl=_TOKEN_DAYS * 86400.0) if names else (None, 0.0)
    url = reachable_url(host.url)
    lasts = in_words(expires_at - time.time() + 60.0)  # a month is 30 days, not 29 and something
    access = [ServerAccess(name=name, url=server_url(url, name), token=token) for name in names]
    claude = claude_commands(access)
    if as_json:
        write_json(_facts(host, url, names, token, claude))
        return
    lines = [f"toolhost {own_version()} runs at {url}", f"  home     {host.home}"]
    if token is not None:
        lines += [
            f"  servers  {', '.join(names)}: commands run in {work_dir} as {_user()}, not in a sandbox",
            f"  token    {token}",
            f"           opens {' and '.join(names)} for {lasts}, the next time you serve too;",
            "           it belongs in a header, never in a URL",
            "",
            "Claude Code (stores the token in its own settings; `toolhost config claude --token-env` does not):",
            *(f"  {line}" for line in claude),
            "",
            "From another terminal:",
            "  toolhost call bash run_command --arg command='uname -a'",
        ]
    else:
        lines += ["  servers  none; start one with: toolhost spawn bash"]
    write("\n".join([*lines, "", "Ctrl-C stops the host and all that it runs."]))


def _facts(
    host: ToolHost, url: str, names: list[str], token: str | None, claude: list[str]
) -> dict[str, Any]:
    return {
        "url": url,
        "home": str(host.home),
        "pid": os.getpid(),
        "servers": names,
        "token": token,
        "claude": claude,
    }


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"
