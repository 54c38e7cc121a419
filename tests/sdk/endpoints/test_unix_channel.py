"""What only the unix provider has: sockets, uids, and a wire that anybody on the node could write to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolhost_sdk.endpoints.channel import CallHeader, IncomingCall
from toolhost_sdk.endpoints.codec import (
    CALL,
    CANCEL,
    CREDIT,
    ERROR,
    HEAD,
    HELLO,
    KIND_TYPES,
    RESULT,
    SEND,
    Limits,
    Packer,
    unpack,
)
from toolhost_sdk.endpoints.unix_client import UnixChannel
from toolhost_sdk.endpoints.unix_server import serve_unix
from toolhost_sdk.errors import ConflictError, PermissionDeniedError, UnavailableError, UsageError

pytestmark = pytest.mark.anyio

pack = Packer().pack
ITEM = KIND_TYPES["item"]
GREETING = {"version": 1, "max_frame": 1 << 20, "messages": 4, "bytes": 1 << 16}


async def echo(call: IncomingCall) -> Any:
    if call.method == "wait":
        await asyncio.Event().wait()
    return call.payload


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    """Where an echo server listens."""
    with anyio.fail_after(30):
        async with serve_unix(echo, tmp_path / "s.sock", limits=Limits(max_frame=1 << 20, messages=4)):
            yield tmp_path / "s.sock"


def frame(kind: int, call: int = 0, body: bytes = b"") -> bytes:
    return HEAD.pack(len(body) + 9, kind, call) + body


def call_frame(number: int, method: str = "wait", timeout: object = None) -> bytes:
    return frame(CALL, number, pack(["id", "e", method, timeout, {}, None]))


HELLO_FRAME = frame(HELLO, 0, pack(GREETING))


async def answer_to(path: Path, sent: bytes) -> bytes:
    """Everything a server sends on a raw connection until it closes it."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(sent)
        return await reader.read()
    finally:
        writer.close()


async def test_the_socket_is_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "s.sock"

    async with serve_unix(echo, path):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700

    assert not path.exists()


async def test_a_directory_open_to_others_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)

    with pytest.raises(UsageError):
        async with serve_unix(echo, tmp_path / "s.sock"):
            pass


async def test_a_path_too_long_for_the_kernel_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too long"):
        async with serve_unix(echo, tmp_path / ("s" * 120)):
            pass


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async with serve_unix(echo, path):
        with pytest.raises(ConflictError):
            async with serve_unix(echo, path):
                pass
        channel = UnixChannel(path)
        assert await channel.request("e", "echo", 1) == 1
        await channel.aclose()


async def test_a_file_in_the_way_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    path.write_text("mine")

    with pytest.raises(ConflictError):
        async with serve_unix(echo, path):
            pass

    assert path.read_text() == "mine"


async def test_a_leaving_server_keeps_its_successors_socket(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    async with contextlib.AsyncExitStack() as old:
        await old.enter_async_context(serve_unix(echo, path))
        path.unlink()
        async with serve_unix(echo, path):
            await old.aclose()
            channel = UnixChannel(path)
            assert await channel.request("e", "echo", 1) == 1
            await channel.aclose()


async def test_a_bound_socket_can_be_handed_in(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))

    async with serve_unix(echo, sock):
        channel = UnixChannel(path)
        assert await channel.request("e", "echo", 1) == 1
        await channel.aclose()


async def test_running_calls_end_when_their_server_leaves(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    channel = UnixChannel(path)
    async with serve_unix(echo, path):
        task = asyncio.create_task(channel.request("e", "wait"))
        await channel.request("e", "echo")

    with pytest.raises(UnavailableError):
        await task
    await channel.aclose()


async def test_a_path_without_a_server_is_unavailable(tmp_path: Path) -> None:
    channel = UnixChannel(tmp_path / "none.sock")

    with pytest.raises(UnavailableError) as caught:
        await channel.request("e", "echo")

    assert "none.sock" in caught.value.message


async def test_a_server_that_never_greets_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen()
        with pytest.raises(UnavailableError, match=r"within 0\.1 s"):
            await UnixChannel(path, connect_timeout=0.1).request("e", "echo")
        with pytest.raises(TimeoutError):
            await UnixChannel(path).request("e", "echo", header=CallHeader(timeout=0.1))


async def test_a_handler_knows_the_uid_and_pid_of_its_caller(tmp_path: Path) -> None:
    async def whoami(call: IncomingCall) -> Any:
        return [call.peer.pid, call.peer.uid]

    async with serve_unix(whoami, tmp_path / "s.sock"):
        channel = UnixChannel(tmp_path / "s.sock")
        assert await channel.request("e", "m") == [os.getpid(), os.getuid()]
        await channel.aclose()


FOREIGNER = """
import contextlib, os, socket, sys
os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(10)
sock.connect(sys.argv[1])
with contextlib.suppress(OSError):
    sock.sendall(bytes.fromhex(sys.argv[2]))
with contextlib.suppress(ConnectionResetError):
    while piece := sock.recv(65536):
        sys.stdout.buffer.write(piece)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_a_foreign_uid_is_refused_before_a_byte_of_it_is_read(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    async def record(call: IncomingCall) -> Any:
        calls.append(call.method)

    with tempfile.TemporaryDirectory() as directory:  # pytest's own are closed to the other user
        path = Path(directory, "s.sock")
        async with serve_unix(record, path):
            path.parent.chmod(0o711)
            path.chmod(0o666)
            sent = (HELLO_FRAME + call_frame(1)).hex()
            done = await anyio.run_process([sys.executable, "-c", FOREIGNER, str(path), sent])

    assert calls == []
    envelope = unpack(done.stdout[HEAD.size :])
    assert (envelope["code"], envelope["details"]) == (PermissionDeniedError.code, {"uid": 65534})
    assert len([record for record in caplog.records if "refused" in record.message]) == 1


async def test_a_refused_channel_says_so(tmp_path: Path) -> None:
    async with serve_unix(echo, tmp_path / "s.sock", allowed_uids={os.getuid() + 1}):
        with pytest.raises(PermissionDeniedError, match=f"uid {os.getuid()} may not"):
            await UnixChannel(tmp_path / "s.sock").request("e", "echo")


VIOLATIONS = {
    "no greeting": call_frame(1),
    "greeting of another version": frame(HELLO, 0, pack({**GREETING, "version": 2})),
    "greeting that is no map": frame(HELLO, 0, b"\x90"),
    "greeting with a list for a key": frame(HELLO, 0, b"\x81\x90\xc0"),
    "greeting with silly limits": frame(HELLO, 0, pack({**GREETING, "messages": "many"})),
    "oversized": HELLO_FRAME + HEAD.pack(1 << 30, CALL, 1),
    "undersized": HELLO_FRAME + HEAD.pack(3, CALL, 1),
    "call that is no list": HELLO_FRAME + frame(CALL, 1, b"\x80"),
    "call with a wrong timeout": HELLO_FRAME + call_frame(1, timeout="soon"),
    "call with no number for a timeout": HELLO_FRAME + call_frame(1, timeout=float("nan")),
    "bad msgpack": HELLO_FRAME + frame(CALL, 1, b"\xc1"),
    "deep nesting": HELLO_FRAME + frame(CALL, 1, b"\x91" * 5000 + b"\xc0"),
    "call number used twice": HELLO_FRAME + call_frame(1) + call_frame(1),
    "cancel of an unknown call": HELLO_FRAME + frame(CANCEL, 7),
    "unknown type": HELLO_FRAME + call_frame(1) + frame(99, 1),
    "credit of a wrong size": HELLO_FRAME + call_frame(1) + frame(CREDIT, 1, b"\x00"),
    "messages beyond the credit": HELLO_FRAME + call_frame(1) + frame(SEND, 1, b"\x01") * 5,
}


@pytest.mark.parametrize("sent", VIOLATIONS.values(), ids=VIOLATIONS.keys())
async def test_a_violation_ends_its_connection_alone_and_is_logged_once(
    path: Path, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    channel = UnixChannel(path)
    await channel.request("e", "echo")
    link = channel.standing()

    await answer_to(path, sent + frame(99, 99) * 10)

    assert await channel.request("e", "echo", 1) == 1
    assert channel.standing() is link
    await channel.aclose()
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


async def test_a_caller_that_never_reads_is_not_read_either(tmp_path: Path) -> None:
    answered, size = 0, 1 << 19

    async def answer(call: IncomingCall) -> Any:
        nonlocal answered
        answered += 1
        return bytes(size)

    async with serve_unix(answer, tmp_path / "s.sock"):
        _, writer = await asyncio.open_unix_connection(tmp_path / "s.sock")
        writer.write(HELLO_FRAME)
        channel = UnixChannel(tmp_path / "s.sock")
        number, blocked = 0, False
        while not blocked:  # with calls of 4 KiB, until no buffer on the way takes more
            number += 1
            writer.write(frame(CALL, number, pack(["id", "e", "m", None, {}, bytes(4096)])))
            with anyio.move_on_after(0.3) as scope:
                await writer.drain()
            blocked = scope.cancelled_caught

        assert answered < number
        assert answered * size < 64 << 20  # the mark, and what one read of the socket held
        assert len(await channel.request("e", "m")) == size
        writer.transport.abort()
        await channel.aclose()


async def test_frames_for_a_call_that_ended_are_no_violation(path: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(HELLO_FRAME + call_frame(1, "echo"))
    await reader.readuntil(HEAD.pack(10, RESULT, 1) + b"\xc0")

    writer.write(frame(CANCEL, 1) + frame(SEND, 1, b"\x01") + call_frame(2, "echo"))

    assert await reader.readuntil(HEAD.pack(10, RESULT, 2) + b"\xc0") == HEAD.pack(10, RESULT, 2) + b"\xc0"
    writer.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    noise=st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.builds(frame, st.integers(0, 30), st.integers(0, 3), st.binary(max_size=60)),
            st.builds(call_frame, st.integers(0, 4), st.sampled_from(["echo", "wait"])),
        ),
        max_size=12,
    ),
    greet=st.booleans(),
)
def test_no_bytes_hurt_the_server(
    tmp_path_factory: pytest.TempPathFactory, noise: list[bytes], greet: bool
) -> None:
    async def run() -> None:
        path = tmp_path_factory.mktemp("fuzz") / "s.sock"
        async with serve_unix(echo, path, limits=Limits(max_frame=4096, messages=4)):
            channel = UnixChannel(path)
            _, writer = await asyncio.open_unix_connection(path)
            writer.write((HELLO_FRAME if greet else b"") + b"".join(noise))
            assert await channel.request("e", "echo", 1) == 1
            writer.close()
            assert await channel.request("e", "echo", 2) == 2
            await channel.aclose()

    asyncio.run(asyncio.wait_for(run(), 10))


BAD_SERVERS: dict[str, Callable[[int], bytes]] = {
    "unknown call": lambda call: frame(ITEM, call + 7, b"\x01"),
    "bad msgpack": lambda call: frame(ITEM, call, b"\xc1"),
    "no envelope": lambda call: frame(ERROR, call, b"\x01"),
    "beyond the credit": lambda call: frame(ITEM, call, b"\x01") * 5,
    "a type of the other side": lambda call: frame(SEND, call, b"\x01"),
    "noise": lambda call: b"HTTP/1.1 400 Bad Request\r\n\r\n",
}


@pytest.mark.parametrize("bad", BAD_SERVERS.values(), ids=BAD_SERVERS.keys())
async def test_a_server_that_breaks_the_protocol_makes_its_calls_unavailable(
    tmp_path: Path, bad: Callable[[int], bytes]
) -> None:
    async def misbehave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO_FRAME)
        await reader.readexactly(len(frame(HELLO, 0, pack({**GREETING, "max_frame": 1 << 26}))))
        writer.write(bad(1))
        await reader.read()
        writer.close()

    path = tmp_path / "s.sock"
    server = await asyncio.start_unix_server(misbehave, path)
    async with server:
        channel = UnixChannel(path, limits=Limits(messages=4))
        with pytest.raises(UnavailableError):
            with anyio.fail_after(5):
                await channel.request("e", "wait")
        await channel.aclose()


HANGING_CALLER = """
import asyncio, sys
from toolhost_sdk.endpoints.unix_client import UnixChannel
asyncio.run(UnixChannel(sys.argv[1]).request("e", "wait"))
"""


async def test_a_killed_caller_ends_its_handlers(tmp_path: Path) -> None:
    started, ended, gone = asyncio.Event(), asyncio.Event(), asyncio.Event()
    watchers = []

    async def watch(call: IncomingCall) -> None:
        await call.peer_gone()
        gone.set()

    async def hang(call: IncomingCall) -> Any:
        watchers.append(asyncio.create_task(watch(call)))
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    path = tmp_path / "s.sock"
    async with serve_unix(hang, path):
        caller = await asyncio.create_subprocess_exec(sys.executable, "-c", HANGING_CALLER, str(path))
        with anyio.fail_after(20):
            await started.wait()
            assert not gone.is_set()
            caller.kill()
            await ended.wait()
            await gone.wait()
            await caller.wait()


async def test_callers_that_wait_for_one_connection_do_not_add_up_their_times(tmp_path: Path) -> None:
    """Half open: the kernel accepts for a server that never greets."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(tmp_path / "s.sock"))
        silent.listen(16)
        channel = UnixChannel(tmp_path / "s.sock", connect_timeout=0.5)
        failed: list[str] = []

        async def call() -> None:
            with pytest.raises(UnavailableError, match="no answer"):
                await channel.request("echo", "echo")
            failed.append("no answer")

        with anyio.fail_after(1.5):
            async with anyio.create_task_group() as group:
                for _ in range(8):
                    group.start_soon(call)
        await channel.aclose()

    assert len(failed) == 8
