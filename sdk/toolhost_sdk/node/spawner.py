"""The warden's side of zygote and inits: keeps the zygote running and an init in stock, passes descriptors.

Rules of this file: every descriptor given away is closed here; messages are small, plans that are not travel as a
file; the end of an init's socket is news like any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from toolhost_sdk.errors import CapacityError, LimitExceededError
from toolhost_sdk.node import procfs
from toolhost_sdk.node.containment import Containment
from toolhost_sdk.node.places import Places, no_room

log = logging.getLogger(__name__)

_INLINE = 60 << 10
_HELLO_WITHIN = 10.0
_TAKEN_WITHIN = 15.0  # no further init is tried after this
_REFILL_AFTER = 0.02  # a job that ends sooner gives its init back, which is cheaper than a new one
_USES = 200
_SHORT_LIFE = 0.5  # seconds; a zygote that ends sooner is not replaced at once, lest we start them in a loop
_PACKAGE = Path(__file__).resolve().parents[1]
# The package's own __init__ may load anything; the zygote must stay small, so it gets an empty package in its place.
_BOOT = (
    "import sys,types;p=types.ModuleType('toolhost_sdk');p.__path__=[sys.argv.pop(1)];"
    "sys.modules['toolhost_sdk']=p;from toolhost_sdk.node.zygote import main;main()"
)


class Init:
    """One init process as the warden sees it, with the job it is for."""

    def __init__(self, sock: socket.socket, job: str) -> None:
        self.job = job
        self.uses = 1
        self._sock = sock
        self._plans: socket.socket | None = None
        self._refusals = -1
        self._loop = asyncio.get_running_loop()
        self.pid: int | None = None
        self._started: int | None = None
        self.leader: int | None = None
        self.hello: asyncio.Future[bool] = self._loop.create_future()
        self.on_message: Callable[[dict[str, Any]], None] | None = None
        self.on_end: Callable[[], None] | None = None
        self.ended = False
        self._loop.add_reader(sock.fileno(), self._readable)

    def _readable(self) -> None:
        fds: list[int] = []
        try:
            if self.hello.done():
                data = self._sock.recv(65536)
            else:
                data, fds, _, _ = socket.recv_fds(self._sock, 65536, 2, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        message = json.loads(data) if data else None
        if message is None or (message["t"] == "hello" and len(fds) < 2):  # our table of descriptors is full
            for fd in fds:
                os.close(fd)
            self._end()
        elif message["t"] == "hello":
            self.pid, self.leader = message["pid"], message["leader"]
            self._started = procfs.start_time(message["pid"])
            self._plans, self._refusals = socket.socket(fileno=fds[0]), fds[1]
            self.hello.set_result(True)
        elif self.on_message is not None:
            self.on_message(message)
        else:  # somebody ended the leader before it had a plan
            self.close()
            self.ended = True

    def _end(self) -> None:
        self.close()
        self.ended = True
        if not self.hello.done():
            self.hello.set_result(False)
        if self.on_end is not None:
            self.on_end()

    def resume(self) -> None:
        """Undo a stop. An init obeys only while it runs."""
        if self.pid is not None and self._started is not None:
            procfs.send_signal(self.pid, self._started, signal.SIGCONT)

    def send(self, message: dict[str, Any]) -> None:
        """Send one message. An init that is gone is reported by `on_end`, not here."""
        with contextlib.suppress(OSError):
            self._sock.send(json.dumps(message).encode())

    def start(self, plan: dict[str, Any], fds: Sequence[int]) -> int:
        """Give the leader its plan; one that does not fit a message goes as an unlinked file.

        Returns the pipe on which the leader says why it could not start and which exec closes. The caller closes it.
        """
        assert self._plans is not None
        message = json.dumps({**plan, "in_file": False}).encode()
        # A leader that was killed meanwhile is reported by its wait status.
        with (
            self._plans,
            contextlib.ExitStack() as stack,
            contextlib.suppress(BrokenPipeError, ConnectionResetError),
        ):
            if len(message) > _INLINE:
                file = stack.enter_context(tempfile.TemporaryFile())
                file.write(message)
                file.flush()
                message, fds = b'{"in_file": true}', [*fds, file.fileno()]
            socket.send_fds(self._plans, [message], fds)
        if plan["cgroups"]:
            self.send({"op": "groups", "cgroups": plan["cgroups"]})
        refusals, self._refusals = self._refusals, -1
        return refusals

    def again(self, job: str, group: str | None) -> None:
        """Give an init with nothing left of its last job another one."""
        self.job = job
        self.uses += 1
        self.hello = self._loop.create_future()
        self.on_message = self.on_end = None
        self.send({"op": "next", "group": group})

    def close(self) -> None:
        """Let go: the init ends whatever it still holds, then itself. Idempotent."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
        if self._plans is not None:
            self._plans.close()
        if self._refusals >= 0:
            os.close(self._refusals)
            self._refusals = -1


class Spawner:
    """Inits, made ahead of need, each with the directory and the cgroup of the job it will run.

    Args:
        live: ids that sweeps leave alone; what is in stock is entered with None.
        stock: inits kept waiting: a start then costs neither a fork nor a new file.
    """

    def __init__(
        self, containment: Containment, places: Places, live: MutableMapping[str, Any], *, stock: int = 2
    ) -> None:
        self._containment = containment
        self._places = places
        self._live = live
        self._stock: list[Init] = []
        self._wanted = stock
        self._control: socket.socket | None = None
        self._zygote: subprocess.Popen[bytes] | None = None
        self._opened = 0.0
        self._closing = False
        self._inits: weakref.WeakSet[Init] = weakref.WeakSet()

    @property
    def zygote_pid(self) -> int | None:
        return None if self._zygote is None else self._zygote.pid

    def open(self) -> None:
        """Start the zygote. Also after its death. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            self._zygote = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    _BOOT,
                    str(_PACKAGE),
                    str(theirs.fileno()),
                    *self._containment.groups,
                ],
                env={},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
            )
        self._control = ours
        self._opened = asyncio.get_running_loop().time()
        asyncio.get_running_loop().add_reader(ours.fileno(), self._control_ended)
        self._refill()

    def _control_ended(self) -> None:
        self._drop_control()
        if not self._closing:
            log.error("the zygote ended; starting another")
            loop = asyncio.get_running_loop()
            lived = loop.time() - self._opened
            loop.call_later(0 if lived > _SHORT_LIFE else _SHORT_LIFE, self._reopen)

    def _reopen(self) -> None:
        if self._control is not None or self._closing:
            return
        try:
            self.open()
        except OSError:
            log.exception("no zygote could be started; trying again in %s s", _SHORT_LIFE)
            asyncio.get_running_loop().call_later(_SHORT_LIFE, self._reopen)

    def _drop_control(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._control = None

    def _refill(self) -> None:
        for init in [init for init in self._stock if init.ended]:
            self._stock.remove(init)
            self.discard(init)
        with contextlib.suppress(LimitExceededError):  # the start that needs the room says so
            while len(self._stock) < self._wanted and self._control is not None:
                self._stock.append(self._fork())

    def _fork(self) -> Init:
        """Raises NoSpaceError or CapacityError when there is no room for another job's files."""
        assert self._control is not None
        job = self._places.make()
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            self._places.drop(job)
            raise no_room(error) from error
        self._live[job] = None
        request = json.dumps({"group": self._containment.make_group(job)}).encode()
        ours.setblocking(False)
        with theirs, contextlib.suppress(OSError):  # a dead zygote: the end of our socket says so
            socket.send_fds(self._control, [request], [theirs.fileno()])
        init = Init(ours, job)
        self._inits.add(init)
        return init

    def give_back(self, init: Init) -> None:
        """Take back an init whose job ended with an empty tree; the next job may spare a fork."""
        if init.ended or self._closing or init.uses >= _USES or len(self._stock) >= self._wanted:
            init.close()
            return
        try:
            job = self._places.make()
        except LimitExceededError:
            init.close()
            return
        self._live[job] = None
        init.again(job, self._containment.make_group(job))
        self._stock.append(init)

    def discard(self, init: Init) -> None:
        """Let go of an init that runs nothing, with what was made for it."""
        init.close()
        self._live.pop(init.job, None)
        self._places.drop(init.job)
        self._containment.forget(init.job)

    async def take(self) -> Init:
        """An init that waits for a plan.

        Raises:
            CapacityError: the node cannot fork another process now, or no descriptor is left.
            NoSpaceError: no room for the job's files.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + _TAKEN_WITHIN
        for _ in range(20):
            if loop.time() > until:
                break
            if not self._stock and self._control is not None:
                self._stock.append(self._fork())
            if not self._stock:
                await asyncio.sleep(0.05)
                continue
            init = self._stock.pop(0)
            loop.call_later(_REFILL_AFTER, self._refill)
            alive = False
            try:
                async with asyncio.timeout(_HELLO_WITHIN):
                    alive = await init.hello and not init.ended
            except TimeoutError:
                log.error("an init said nothing for %s s", _HELLO_WITHIN)
            finally:
                if not alive:
                    self.discard(init)
            if alive:
                return init
        raise CapacityError("the node cannot fork another process now")

    def tend(self) -> None:
        """Reap what reached us as a subreaper, and end what inits of a dead zygote left behind."""
        with contextlib.suppress(ChildProcessError):
            for _ in procfs.reap_all():
                pass
        if self._zygote is not None:
            keep = {
                self._zygote.pid,
                *(init.pid for init in self._inits if init.pid is not None and not init.ended),
            }
            procfs.signal_below(os.getpid(), signal.SIGKILL, skip=frozenset(keep))

    async def aclose(self) -> None:
        """Let everything go; the zygote ends what is left and exits."""
        self._closing = True
        for init in self._stock:
            self.discard(init)
        self._stock.clear()
        self._drop_control()
