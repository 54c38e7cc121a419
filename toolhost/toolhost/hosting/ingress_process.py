"""The ingress as a child process. The controller owns its listening socket, so the URL outlives it: while a dead
ingress is replaced, connections wait in the socket's backlog."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from toolhost.hosting.home import Home
from toolhost_sdk.errors import ConflictError, StartupTimeoutError, ToolhostError, UsageError

logger = logging.getLogger(__name__)
_BACKLOG = 1024
_RELAUNCH_SECONDS = 1.0


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 lets the kernel choose. No port is ever probed.

    Raises:
        ConflictError: the port is in use. UsageError: the address is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConflictError(
                f"port {port} of {host} is in use: stop what listens there, or choose another with --port "
                "(--port 0 lets the system choose)",
                port=port,
            ) from None
        if error.errno == errno.EACCES:
            raise UsageError(f"port {port} needs privileges this user lacks: choose one above 1023") from None
        raise UsageError(f"cannot listen on {host!r}: {error.strerror}") from None
    return listener


class IngressProcess:
    """Starts the ingress, restarts it when it dies, ends it on close.

    Args:
        arguments: command line of `python -m toolhost.ingress` beside `--listen-fd`.
        on_death: called when it died by itself, before the restart.
        on_restart: called with the new one's pid.
    """

    def __init__(
        self,
        home: Home,
        listener: socket.socket,
        arguments: Sequence[str],
        *,
        on_death: Callable[[], None],
        on_restart: Callable[[int], None],
    ) -> None:
        self._home = home
        self._listener = listener
        self._arguments = list(arguments)
        self._on_death = on_death
        self._on_restart = on_restart
        self._process: asyncio.subprocess.Process | None = None
        self._supervision: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        await self._launch()
        self._supervision = asyncio.get_running_loop().create_task(self._supervise())

    async def aclose(self, timeout: float = 6.0) -> None:
        """SIGTERM, *timeout* seconds, SIGKILL."""
        if self._supervision is not None:
            self._supervision.cancel()
            await asyncio.wait({self._supervision})  # it may be about to launch one
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout):
                await process.wait()
        except TimeoutError:
            logger.warning("the ingress did not end within %g s", timeout)
            process.kill()
            await process.wait()

    async def _launch(self) -> int:
        descriptor = self._listener.fileno()
        log = os.open(
            self._home.logs_dir / "ingress.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "toolhost.ingress",
                "--listen-fd",
                str(descriptor),
                *self._arguments,
                pass_fds=(descriptor,),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"},
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(log)
        return process.pid

    async def _supervise(self) -> None:
        backoff = 0.02
        while True:
            assert self._process is not None
            started = asyncio.get_running_loop().time()
            code = await self._process.wait()
            logger.warning("the ingress ended with %s; starting another", code)
            self._on_death()
            lived = asyncio.get_running_loop().time() - started
            backoff = 0.02 if lived > 5 else min(backoff * 2, 5.0)
            await asyncio.sleep(backoff)
            await self._relaunch()

    async def _relaunch(self) -> None:
        """A machine that is out of descriptors, processes or disk now may not be in a moment."""
        while True:
            try:
                self._on_restart(await self._launch())
            except (OSError, ToolhostError) as error:
                logger.error("cannot start an ingress: %s", error)
                if self._process is not None and self._process.returncode is None:
                    return  # it runs, though nobody could be told its pid
                await asyncio.sleep(_RELAUNCH_SECONDS)
            else:
                return


def log_tail(path: Path, lines: int = 15) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def not_serving(home: Home, seconds: float) -> StartupTimeoutError:
    tail = log_tail(home.logs_dir / "ingress.log")
    return StartupTimeoutError(f"the ingress did not serve within {seconds:g} s; its log ends:\n{tail}")
