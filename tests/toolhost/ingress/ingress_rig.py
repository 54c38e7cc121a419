"""An ingress with everything around it in one process: a controller's control endpoint, tool hosts on unix sockets,
uvicorn on a port of its own. The clients are real ones."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import mcp
from mcp.client.streamable_http import streamable_http_client

from toolhost.hosting.routes import RouteRegistry
from toolhost.ingress.app import IngressApp
from toolhost.ingress.config import IngressConfig, Limits
from toolhost.ingress.control_api import create_api
from toolhost.ingress.routes import RouteBook
from toolhost.ingress.runner import IngressServer, _uvicorn_config
from toolhost.tokens import TokenStore
from toolhost.wire import Address, ServerDefinition, ToolDefinition
from toolhost_sdk.endpoints.channel import IncomingCall
from toolhost_sdk.endpoints.unix_client import UnixChannel
from toolhost_sdk.endpoints.unix_server import serve_unix
from toolhost_sdk.errors import NotFoundError

MODERN, LEGACY = "2026-07-28", "2025-11-25"
Function = Callable[[IncomingCall, dict[str, Any]], Awaitable[Any]]
TEXT = {
    "type": "object",
    "properties": {"text": {"type": "string"}},
    "required": ["text"],
    "additionalProperties": False,
}


def tool(name: str, schema: dict[str, Any] | None = None, **extra: Any) -> ToolDefinition:
    return ToolDefinition(
        name=name, description=f"Test function {name}.", input_schema=schema or {"type": "object"}, **extra
    )


def text(value: str, **extra: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": value}], **extra}


async def echo(call: IncomingCall, arguments: dict[str, Any]) -> dict[str, Any]:
    return text(arguments["text"])


class Host:
    """A tool host: functions by name, and other methods by method name."""

    def __init__(self) -> None:
        self.functions: dict[str, Function] = {"echo": echo}
        self.methods: dict[str, Function] = {}
        self.cancelled: list[str] = []
        self.seen: list[IncomingCall] = []
        self.started = asyncio.Event()

    async def dispatch(self, call: IncomingCall) -> Any:
        self.seen.append(call)
        self.started.set()
        try:
            if call.method == "tools/call":
                return await self.functions[call.payload["name"]](call, call.payload["arguments"])
            if call.method not in self.methods:
                raise NotFoundError(f"no {call.method!r}")
            return await self.methods[call.method](call, call.payload)
        except asyncio.CancelledError:
            self.cancelled.append(call.payload.get("name", call.method))
            raise


ECHO = ServerDefinition(tools=[tool("echo", TEXT)])


class Rig:
    """Made by `rig`."""

    routes: RouteBook

    def __init__(self, directory: Path, config: IngressConfig, stack: AsyncExitStack) -> None:
        self.directory = directory
        self.config = config
        self.registry = RouteRegistry()
        self.tokens = TokenStore(directory / "tokens.db")
        self.token = self.tokens.mint(scopes=["*"]).token
        self.url = ""
        self.control_calls: list[tuple[str, Any]] = []
        self.control_answers: dict[str, Any] = {}
        self._seen = -1
        self._seen_changed = asyncio.Event()
        self._stack = stack
        self.hosts: dict[str, Host] = {}
        self._hosts: dict[str, AsyncExitStack] = {}
        self._count = 0

    async def control(self, call: IncomingCall) -> Any:
        if call.method == "routes.watch":
            async for table in self.registry.watch():
                await call.emit("item", table.model_dump(mode="json"))
        elif call.method == "routes.seen":
            self._seen = max(self._seen, call.payload["revision"])
            changed, self._seen_changed = self._seen_changed, asyncio.Event()
            changed.set()
        else:
            self.control_calls.append((call.method, call.payload))
            answer = self.control_answers.get(call.method, {})
            if isinstance(answer, Exception):
                raise answer
            return answer
        return None

    async def settle(self) -> None:
        """Wait until the ingress serves the newest table."""
        async with asyncio.timeout(5):
            while self._seen < self.registry.revision:
                await self._seen_changed.wait()

    async def listen(self, name: str, host: Host) -> Address:
        """A socket on which *host* answers."""
        self._count += 1
        path = str(self.directory / f"h{self._count}.sock")
        stack = AsyncExitStack()
        await stack.enter_async_context(serve_unix(host.dispatch, path))
        self._hosts[name] = stack
        self.hosts[name] = host
        self._stack.push_async_callback(stack.aclose)
        return Address(node_id="n", unix=path)

    async def serve(
        self,
        name: str = "alpha",
        host: Host | None = None,
        definition: ServerDefinition = ECHO,
        *,
        anonymous: bool = False,
    ) -> Host:
        """Route a server that answers."""
        host = host or Host()
        self.registry.add(name, anonymous=anonymous)
        self.registry.move(name, "ready", address=await self.listen(name, host), definition=definition)
        await self.settle()
        return host

    async def kill(self, name: str = "alpha") -> None:
        """The host's process dies; the controller has not noticed yet."""
        await self._hosts.pop(name).aclose()

    def headers(self, token: str | None = None, **more: str) -> dict[str, str]:
        return {
            "authorization": f"Bearer {token or self.token}",
            "accept": "application/json, text/event-stream",
            "content-type": "application/json",
            **{key.replace("_", "-"): value for key, value in more.items()},
        }

    def http(self, **options: Any) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self.url, trust_env=False, timeout=10, **options)

    @asynccontextmanager
    async def client(
        self, name: str = "alpha", *, mode: str = "auto", token: str | None = None, **options: Any
    ) -> AsyncIterator[mcp.Client]:
        """The official client, connected."""
        headers = {"authorization": f"Bearer {token or self.token}"}
        async with httpx2.AsyncClient(headers=headers, trust_env=False, timeout=30) as http:
            transport = streamable_http_client(f"{self.url}/{name}/mcp", http_client=http)
            async with mcp.Client(transport, mode=mode, **options) as client:
                yield client

    async def modern(
        self,
        http: httpx2.AsyncClient,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        name: str = "alpha",
        capabilities: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        meta: dict[str, Any] | None = None,
    ) -> httpx2.Response:
        """One raw request of 2026-07-28."""
        sent, body = modern_request(method, params, capabilities=capabilities, meta=meta)
        return await http.post(
            f"/{name}/mcp", json=body, headers={**self.headers(), **sent, **(headers or {})}
        )


def modern_request(
    method: str,
    params: dict[str, Any] | None = None,
    *,
    capabilities: dict[str, Any] | None = None,
    meta: dict[str, Any] | None = None,
) -> tuple[dict[str, str], dict[str, Any]]:
    """Headers and body."""
    params = {**(params or {})}
    params["_meta"] = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": capabilities or {},
        **(meta or {}),
    }
    headers = {"mcp-protocol-version": MODERN, "mcp-method": method}
    if target := params.get("uri" if method == "resources/read" else "name"):
        headers["mcp-name"] = target
    return headers, {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


def call_params(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


async def open_session(
    ingress: Rig,
    http: httpx2.AsyncClient,
    *,
    token: str | None = None,
    capabilities: dict[str, Any] | None = None,
) -> dict[str, str]:
    """A legacy session, by hand; the headers of its requests."""
    who = {
        "protocolVersion": LEGACY,
        "capabilities": capabilities or {},
        "clientInfo": {"name": "t", "version": "0"},
    }
    hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": who}
    answer = await http.post("/alpha/mcp", json=hello, headers=ingress.headers(token))
    assert answer.status_code == 200, answer.text
    headers = ingress.headers(
        token, mcp_session_id=answer.headers["mcp-session-id"], mcp_protocol_version=LEGACY
    )
    note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert (await http.post("/alpha/mcp", json=note, headers=headers)).status_code == 202
    return headers


@asynccontextmanager
async def rig(*, limits: Limits | None = None, **settings: Any) -> AsyncIterator[Rig]:
    config = IngressConfig(keys=(b"k" * 32,), limits=limits or Limits(), **settings)
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ing-")))
        made = Rig(directory, config, stack)
        socket_path = str(directory / "c.sock")
        await stack.enter_async_context(serve_unix(made.control, socket_path))
        control = UnixChannel(socket_path)
        stack.push_async_callback(control.aclose)
        routes = made.routes = RouteBook(config)
        app = IngressApp(
            config,
            routes=routes,
            tokens=made.tokens,
            api=create_api(
                control=control, routes=routes, tokens=made.tokens, spawn_kind=lambda kind, args: b"spec"
            ),
            version="0",
        )
        listener = socket.create_server(("127.0.0.1", 0))
        made.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = IngressServer(_uvicorn_config(app), routes, on_stopping=lambda: None)
        server.capture_signals = _no_signals  # type: ignore[method-assign]  # pytest's own handlers stay
        following = asyncio.create_task(routes.follow(control, lambda: None))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await made.settle()
            await until(lambda: server.started)
            yield made
        finally:
            following.cancel()
            server.should_exit = True
            await asyncio.wait({serving}, timeout=8)
            made.tokens.close()


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for *condition*, by looking often."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)


class _NoSignals:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def _no_signals() -> Any:
    return _NoSignals()
