"""The warden: one process per home that runs commands and outlives whoever asked for them.

    python -m toolhost_sdk.node.warden --home HOME --socket SOCKET --instance ID

It lives while a lease made by `hold` does (one of `--ttl` seconds is there from the start), then ends everything it
holds and itself. Rules of this file: the composition root of this room; one lock per home; no thread and no loop
before the probes have forked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import logging
import logging.handlers
import os
import pwd
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from toolhost_sdk.endpoints.unix_server import serve_unix
from toolhost_sdk.node import init, procfs
from toolhost_sdk.node.containment import Containment, namespace_of
from toolhost_sdk.node.records import Records
from toolhost_sdk.node.service import Service
from toolhost_sdk.node.supervisor import Supervisor
from toolhost_sdk.node.sweep import recover, sweep

log = logging.getLogger(__name__)

READY = b"ready\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    home: Path
    socket: Path
    instance: str
    ttl: float
    sweep_every: float
    retention: float
    log_quota: int
    hide: list[Path]
    cwd: str
    detach: bool


def parse(arguments: list[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m toolhost_sdk.node.warden", description="Runs commands of a node."
    )
    parser.add_argument(
        "--home", type=Path, required=True, help="where records and logs are kept; made with mode 0700"
    )
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--instance", required=True, help="the label of everything started here")
    parser.add_argument("--ttl", type=float, default=60.0, help="seconds to live until someone holds it")
    parser.add_argument("--sweep-every", type=float, default=30.0)
    parser.add_argument(
        "--retention", type=float, default=86400.0, help="seconds a log is kept after its job's end"
    )
    parser.add_argument("--log-quota", type=int, default=16 << 30)
    parser.add_argument(
        "--hide",
        type=Path,
        action="append",
        default=[],
        help="a directory that read-only commands do not see",
    )
    parser.add_argument("--cwd", default=None, help="where commands start that name no directory")
    parser.add_argument("--detach", action="store_true", help="fork, and say `ready` when it answers")
    values = vars(parser.parse_args(arguments))
    values["cwd"] = values["cwd"] or _home_directory()
    return Options(**values)


def _home_directory() -> str:
    with contextlib.suppress(KeyError):
        home = pwd.getpwuid(os.getuid()).pw_dir
        if os.access(home, os.X_OK):
            return home
    return "/"


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.detach:
        return _detach(options)
    logging.basicConfig(level=logging.INFO)
    return run(options, None)


def _detach(options: Options) -> int:
    """Fork; the parent says how the start went and leaves, so that the warden is nobody's child."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(read)
        os.setsid()
        return run(options, os.fdopen(write, "wb", buffering=0))
    os.close(write)
    said = b""
    while data := os.read(read, 4096):
        said += data
        if said.endswith(READY):
            break
    os.write(1, said)
    return 0 if said.endswith(READY) else 1


def run(options: Options, ready: IO[bytes] | None) -> int:
    """Serve until nobody holds the warden. Returns the exit code of the process.

    Args:
        ready: whoever waits for the start is told here how it went, once.
    """
    os.umask(0o077)
    options.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    options.home.chmod(0o700)
    (options.home / "jobs").mkdir(mode=0o700, exist_ok=True)
    lock = (options.home / "warden.lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _say(ready, f"another warden holds {str(options.home)!r}\n".encode())
        return 3
    if ready is not None:
        _redirect(options.home)
    with lock:
        try:
            procfs.set_name("th-warden")
            _more_descriptors()
            init.become_subreaper()
            facts = {"socket": str(options.socket), "instance": options.instance, "pid": os.getpid()}
            (options.home / "warden.json").write_text(json.dumps(facts), encoding="utf-8")
            containment = Containment.probe(namespace_of(options.instance, options.home))
            _run_loop(serve(options, containment, ready))
        except (
            Exception
        ) as error:  # the boundary of the process: its standard error is a file nobody looks at
            log.exception("the warden ended of a failure")
            _say(ready, f"{error or repr(error)}\n".encode("utf-8", "backslashreplace"))
            return 1
    return 0


def _run_loop(main: Any) -> None:
    try:
        import uvloop  # an accelerator, not everywhere
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def _say(ready: IO[bytes] | None, words: bytes) -> None:
    if ready is None:
        if words != READY:
            log.error("%s", words.decode().strip())
    elif not ready.closed:
        ready.write(words)
        ready.close()


def _redirect(home: Path) -> None:
    """Log to files of ours; hold nothing of whoever started us."""
    handler = logging.handlers.RotatingFileHandler(home / "warden.log", maxBytes=4 << 20, backupCount=1)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    null = os.open("/dev/null", os.O_RDWR)
    errors = os.open(home / "warden.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(errors, 2)
    os.close(null)
    os.close(errors)
    os.chdir("/")


def _more_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def serve(options: Options, containment: Containment, ready: IO[bytes] | None) -> None:
    """Recover, serve, end everything."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    stored = Records(options.home)
    for thing in recover(options.home, stored, containment):
        log.warning("ended what an earlier life left: %s", thing)
    supervisor = Supervisor(
        options.home, stored, containment, cwd=options.cwd, retention=options.retention,
        quota=options.log_quota, hidden=[options.home, options.socket.parent, *options.hide],
    )  # fmt: skip
    supervisor.open()
    supervisor.leases.open("start", ttl=options.ttl, max_life=options.ttl, holds=True)

    async def one_sweep() -> list[dict[str, Any]]:
        supervisor.tend()
        service.drop_old_spools()
        return await sweep(supervisor)

    service = Service(supervisor, sweep=one_sweep, stop=stop.set)
    tasks = [
        loop.create_task(supervisor.leases.watch(options.sweep_every)),
        loop.create_task(_sweep_forever(one_sweep, options.sweep_every)),
        loop.create_task(_until_unheld(supervisor, stop)),
    ]
    try:
        async with serve_unix(service, options.socket):
            _say(ready, READY)
            log.info("serving %s for %s", options.socket, containment.namespace)
            await stop.wait()
            await supervisor.end_all("server_stopped")
    finally:
        for task in tasks:
            task.cancel()
        await service.aclose()
        await supervisor.aclose()
        stored.close()


async def _sweep_forever(one_sweep: Any, every: float) -> None:
    while True:
        await asyncio.sleep(every)
        try:
            for thing in await one_sweep():
                log.warning("swept %s", thing)
        except Exception:  # a sweep that fails is tried again; the warden does not die of it
            log.exception("a sweep failed")


async def _until_unheld(supervisor: Supervisor, stop: asyncio.Event) -> None:
    while supervisor.leases.holders():  # noqa: ASYNC110 - expiry is time passing, no event announces it
        await asyncio.sleep(0.5)
    log.info("nobody holds the warden any more")
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
