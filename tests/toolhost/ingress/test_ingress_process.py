"""The ingress as a process: `python -m toolhost.ingress`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.toolhost.ingress.ingress_rig import (
    ECHO,
    Host,
    Rig,
    call_params,
    modern_request,
    open_session,
    tool,
    until,
)

from toolhost.ingress.config import IngressConfig
from toolhost.ingress.runner import load_keys
from toolhost.wire import ServerDefinition
from toolhost_sdk.endpoints.unix_server import serve_unix
from toolhost_sdk.errors import UsageError

pytestmark = pytest.mark.anyio
ENVIRONMENT = {"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


class Process(Rig):
    process: asyncio.subprocess.Process
    control_socket: AsyncExitStack


@asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[Process]:
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ing-")))
        made = Process(directory, IngressConfig(keys=(b"k" * 32,)), stack)
        made.control_socket = AsyncExitStack()
        stack.push_async_callback(made.control_socket.aclose)
        path = str(directory / "c.sock")
        await made.control_socket.enter_async_context(serve_unix(made.control, path))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            made.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            made.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "toolhost.ingress", "--control-socket", path),
                *("--listen-fd", str(listener.fileno()), "--home", str(directory), "--url", made.url),
                *arguments,
                pass_fds=(listener.fileno(),),
                env=ENVIRONMENT,
                stderr=subprocess.PIPE,
            )
        try:
            async with asyncio.timeout(20):
                await made.settle()
            yield made
        finally:
            if made.process.returncode is None:
                made.process.kill()
            await made.process.communicate()
            made.tokens.close()


async def test_sigterm_ends_it_in_time_with_streams_sessions_and_calls_open(anyio_backend: str) -> None:
    """SDK-R5, ACC-6"""
    host = Host()

    async def sleep(call: Any, arguments: Any) -> Any:
        await asyncio.Event().wait()

    host.functions["sleep"] = sleep
    async with running() as ingress, ingress.http() as http:
        await ingress.serve(host=host, definition=ServerDefinition(tools=[tool("sleep")]))
        session = await open_session(ingress, http)
        sent, listen = modern_request("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        asked = asyncio.create_task(ingress.modern(http, "tools/call", call_params("sleep")))
        legacy = {"jsonrpc": "2.0", "id": 4, "method": "tools/call", "params": call_params("sleep")}
        asked_before = asyncio.create_task(http.post("/alpha/mcp", json=legacy, headers=session))
        await until(lambda: len(host.seen) == 2)
        get = http.stream("GET", "/alpha/mcp", headers=session)
        post = http.stream("POST", "/alpha/mcp", json=listen, headers={**ingress.headers(), **sent})
        async with get as standing, post as listening:
            lines = listening.aiter_lines()
            await anext(lines)
            started = time.monotonic()
            ingress.process.send_signal(signal.SIGTERM)
            code = await asyncio.wait_for(ingress.process.wait(), 5)
            took = time.monotonic() - started
            rest = "".join([line async for line in lines])
            assert all(
                line.startswith(":") or not line for line in [each async for each in standing.aiter_lines()]
            )
        told = [(await asked).json()["result"]["content"][0]["text"], (await asked_before).text]
        await until(lambda: host.cancelled == ["sleep", "sleep"])

    assert code == 0
    assert took < 5
    assert '"result"' in rest  # the listen stream's final frame
    assert all("the ingress is stopping" in words for words in told)


async def test_sigterm_waits_for_no_reader_that_does_not_read(anyio_backend: str) -> None:
    """SDK-R5, ACC-6"""
    async with running() as ingress:
        await ingress.serve()
        port = int(ingress.url.rsplit(":", 1)[1])
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        sent, message = modern_request("tools/call", call_params("echo", text="y" * (14 << 20)))
        body = json.dumps(message).encode()
        fields = {"host": "localhost", **ingress.headers(), **sent, "content-length": str(len(body))}
        lines = ["POST /alpha/mcp HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        writer.write("\r\n".join(lines).encode() + body)
        await writer.drain()
        async with ingress.http() as http:
            await until(ingress.hosts["alpha"].started.is_set, 10)
            await ingress.modern(http, "tools/list")
        started = time.monotonic()
        ingress.process.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(ingress.process.wait(), 6)
        took = time.monotonic() - started
        writer.transport.abort()

    assert code == 0
    assert took < 5


async def test_it_imports_no_ray(anyio_backend: str) -> None:
    """PERF-R1"""
    code = "import sys, toolhost.ingress.runner; sys.exit(any(m == 'ray' or m.startswith('ray.') for m in sys.modules))"
    done = await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=ENVIRONMENT)

    assert await asyncio.wait_for(done.wait(), 30) == 0


async def test_without_its_controller_it_serves_on_then_gives_up(anyio_backend: str) -> None:
    """NET-R1"""
    async with running("--controller-patience", "1.0") as ingress, ingress.http() as http:
        await ingress.serve()
        await ingress.control_socket.aclose()
        lost = time.monotonic()
        answer = await ingress.modern(http, "tools/call", call_params("echo", text="still here"))
        code = await asyncio.wait_for(ingress.process.wait(), 10)
        took = time.monotonic() - lost

    assert answer.json()["result"]["content"][0]["text"] == "still here"
    assert code == 1
    assert took > 0.9


async def test_a_controller_that_comes_back_is_followed_again(anyio_backend: str) -> None:
    """NET-R1"""
    async with running() as ingress, ingress.http() as http:
        await ingress.serve()
        await ingress.control_socket.aclose()
        address = ingress.registry.get("alpha").address
        ingress.registry.add("beta", anonymous=False)
        ingress.registry.move("beta", "ready", address=address, definition=ECHO)
        async with serve_unix(ingress.control, str(ingress.directory / "c.sock")):
            await ingress.settle()
            answer = await ingress.modern(http, "tools/list", name="beta")

    assert answer.status_code == 200


async def test_keys_are_made_once_private_and_checked(anyio_backend: str, tmp_path: Path) -> None:
    """SDK-R10"""
    path = tmp_path / "keys"
    first = load_keys(path)

    assert load_keys(path) == first
    assert len(first[0]) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("short\n")
    with pytest.raises(UsageError):
        load_keys(path)
