"""What MCP through the ingress costs: an echo beside a bare Starlette echo and beside the SDK's own server.

Every contestant is one process with one event loop, the ingress has its tool host in another. The client is raw bytes
on kept connections, because the SDK's own costs more than any server here. Rounds alternate between the contestants;
figures are medians over the rounds, and the ratios are what counts. `python -m bench.ingress`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import uvloop
from bench._common import ROOT, latency, median_of, report, run_metadata, throughput

from toolhost.hosting.routes import RouteRegistry
from toolhost.tokens import TokenStore
from toolhost.wire import Address, ServerDefinition, ToolDefinition
from toolhost_sdk.endpoints.channel import IncomingCall
from toolhost_sdk.endpoints.unix_server import serve_unix

ROUNDS, SEQUENTIAL, CONNECTIONS, CONCURRENT = 5, 600, 32, 3200
P50_OVER_FLOOR, RATE_OF_SDK = 4.0, 0.7
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
REVISION = "2026-07-28"


def modern_body() -> bytes:
    meta = {
        "io.modelcontextprotocol/protocolVersion": REVISION,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": "echo", "arguments": {"text": "hello"}, "_meta": meta}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()


def request(path: str, token: str | None) -> bytes:
    body = modern_body()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1:80",  # the SDK wants a port
        "Accept: application/json, text/event-stream",
        "Content-Type: application/json",
        f"MCP-Protocol-Version: {REVISION}",
        "Mcp-Method: tools/call",
        "Mcp-Name: echo",
        *([f"Authorization: Bearer {token}"] if token else []),
        f"Content-Length: {len(body)}",
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + body


class Client:
    """Raw keep-alive connections to one server; one is taken per request."""

    def __init__(self, port: int, sent: bytes) -> None:
        self._port = port
        self._sent = sent
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def call(self) -> bytes:
        if not self._idle:
            self._idle.append(await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20))
        reader, writer = self._idle.pop()
        writer.write(self._sent)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = await reader.readexactly(int(length.split(b":")[1]))
        if not head.startswith(b"HTTP/1.1 200") or b"hello" not in body:
            raise AssertionError((head + body)[:500])
        self._idle.append((reader, writer))
        return body

    async def aclose(self) -> None:
        for _, writer in self._idle:
            writer.close()


def settle() -> None:
    """What the ingress does to its own memory, for the others too: the comparison is about the code."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)


def serve_app(app: Any, descriptor: int) -> None:
    import uvicorn

    config = uvicorn.Config(
        app,
        http="h11",
        lifespan="on",
        access_log=False,
        log_level="warning",
        loop="uvloop",
        timeout_keep_alive=75,
    )
    settle()
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


def serve_floor(descriptor: int) -> None:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def echo(incoming: Request) -> JSONResponse:
        return JSONResponse(await incoming.json())

    serve_app(Starlette(routes=[Route("/mcp", echo, methods=["POST"])]), descriptor)


def serve_sdk(descriptor: int) -> None:
    import mcp_types as types
    from mcp.server.lowlevel import Server

    async def call(ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        words = (params.arguments or {})["text"]
        return types.CallToolResult(content=[types.TextContent(type="text", text=words)])

    async def listed(ctx: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[types.Tool(name="echo", input_schema=SCHEMA)])

    server = Server(
        "sdk", on_call_tool=call, on_list_tools=listed, get_tool_input_schema={"echo": SCHEMA}.get
    )
    serve_app(server.streamable_http_app(), descriptor)


async def serve_host(path: str) -> None:
    async def dispatch(call: IncomingCall) -> Any:
        return {"content": [{"type": "text", "text": call.payload["arguments"]["text"]}]}

    settle()
    async with serve_unix(dispatch, path):
        print("ready", flush=True)
        await asyncio.Event().wait()


class Processes:
    """The contestants, ended with the block."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    def start(self, *arguments: str, descriptor: int | None = None, wait: bool = False) -> None:
        environment = {
            "PYTHONPATH": os.pathsep.join(p for p in (str(ROOT), *sys.path) if p),
            "PATH": os.defpath,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            pass_fds=() if descriptor is None else (descriptor,),
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE if wait else None,
        )
        self._stack.callback(end, process)
        if wait:
            assert process.stdout is not None
            process.stdout.readline()


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(6)
        return
    process.kill()
    process.wait()


@asynccontextmanager
async def contestants() -> AsyncIterator[dict[str, Client]]:
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bi-")))
        processes = Processes(stack)
        clients: dict[str, Client] = {}
        for name in ("floor", "sdk"):
            with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
                descriptor, port = listener.fileno(), listener.getsockname()[1]
                processes.start(
                    "bench.ingress", "--serve", name, "--descriptor", str(descriptor), descriptor=descriptor
                )
            clients[name] = Client(port, request("/mcp", None))
        processes.start("bench.ingress", "--serve", "host", "--path", str(home / "h.sock"), wait=True)
        clients["ingress"] = await start_ingress(home, processes, stack)
        for client in clients.values():
            stack.push_async_callback(client.aclose)
            async with asyncio.timeout(20):
                await client.call()
        yield clients


async def start_ingress(home: Path, processes: Processes, stack: AsyncExitStack) -> Client:
    tokens = TokenStore(home / "tokens.db")
    token = tokens.mint(scopes=["*"]).token
    tokens.close()
    registry = RouteRegistry()
    definition = ServerDefinition(tools=[ToolDefinition(name="echo", description="", input_schema=SCHEMA)])
    registry.add("echo", anonymous=False)
    registry.move(
        "echo", "ready", address=Address(node_id="n", unix=str(home / "h.sock")), definition=definition
    )
    served = asyncio.Event()

    async def control(call: IncomingCall) -> Any:
        if call.method == "routes.watch":
            async for table in registry.watch():
                await call.emit("item", table.model_dump(mode="json"))
        elif call.method == "routes.seen":
            served.set()

    await stack.enter_async_context(serve_unix(control, home / "c.sock"))
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        descriptor, port = listener.fileno(), listener.getsockname()[1]
        processes.start(
            *("toolhost.ingress", "--control-socket", str(home / "c.sock"), "--listen-fd", str(descriptor)),
            *("--home", str(home), "--url", f"http://127.0.0.1:{port}"),
            descriptor=descriptor,
        )
    async with asyncio.timeout(20):
        await served.wait()
    return Client(port, request("/echo/mcp", token))


async def measure(client: Client) -> dict[str, float]:
    figures = await latency(client.call, SEQUENTIAL)
    return {**figures, "calls_per_s": await throughput(client.call, CONCURRENT, CONNECTIONS)}


async def run() -> int:
    rounds: dict[str, list[dict[str, float]]] = {}
    async with contestants() as clients:
        for _ in range(ROUNDS):
            for name, client in clients.items():
                rounds.setdefault(name, []).append(await measure(client))
    figures = {name: median_of(taken) for name, taken in rounds.items()}
    p50 = figures["ingress"]["p50_us"] / figures["floor"]["p50_us"]
    rate = figures["ingress"]["calls_per_s"] / figures["sdk"]["calls_per_s"]
    results = {
        **run_metadata("mcp", "starlette", "uvicorn", "uvloop", "h11"),
        "figures": figures,
        "p50_over_floor": p50,
        "sdk_p50_over_floor": figures["sdk"]["p50_us"] / figures["floor"]["p50_us"],
        "rate_of_sdk": rate,
    }
    return report(
        "ingress",
        results,
        {"p50_over_floor": (p50, P50_OVER_FLOOR), "sdk_rate_over_ours": (1 / rate, 1 / RATE_OF_SDK)},
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", choices=("floor", "sdk", "host"))
    parser.add_argument("--descriptor", type=int)
    parser.add_argument("--path")
    options = parser.parse_args()
    if options.serve == "floor":
        serve_floor(options.descriptor)
    elif options.serve == "sdk":
        serve_sdk(options.descriptor)
    elif options.serve == "host":
        uvloop.run(serve_host(options.path))
    else:
        return uvloop.run(run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
