"""The controller, seen from another process of the same user on this node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

from pydantic import ValidationError

from toolhost.hosting.home import Home
from toolhost.tools.pickling import dump_spec
from toolhost.tools.server import ToolSpec, check_server_name
from toolhost.wire import HostStatus, ServerStatus, SpawnRequest
from toolhost_sdk.endpoints.channel import CallHeader
from toolhost_sdk.endpoints.unix_client import UnixChannel
from toolhost_sdk.errors import NotFoundError, UsageError

_CANNOT_IMPORT = "cannot be imported in the tool host"


class SpawnOptions(TypedDict, total=False):
    """How a server is run, beside its spec and its name.

    Keys:
        expose: functions to offer; default all.
        placement: Ray's `resources`, `num_cpus`, `num_gpus`, `memory`, `scheduling_strategy`, `label_selector`.
            Servers of equal placement share a process.
        isolation: `"process"` gives the server one of its own; default `"shared"`.
        detached: outlive this process, and come back when the host is started again; default False.
        start_timeout: seconds until it must answer; default 30.
        max_restarts: deaths within five minutes after which it is `failed`; default 3.
        prefix: name functions `{name}_{function}`, as the seed did; default False.
        anonymous: serve without a token. For test configurations only; default False.
    """

    expose: Sequence[str] | None
    placement: Mapping[str, Any] | None
    isolation: Literal["shared", "process"]
    detached: bool
    start_timeout: float
    max_restarts: int
    prefix: bool
    anonymous: bool


class ControlClient:
    """Async. One connection, opened by its first call; what it spawned without `detached` lives as long as it."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._channel = UnixChannel(str(home.control_socket))

    async def spawn(self, spec: ToolSpec, *, name: str, **options: Unpack[SpawnOptions]) -> ServerStatus:
        """See `toolhost.spawn`."""
        if not isinstance(spec, ToolSpec):
            raise UsageError(
                f"spawn takes what `bind` returns, not {type(spec).__name__!r}: use {_hint(spec)}"
            )
        request = _request_of(spec, check_server_name(name), options)
        try:
            return await self._spawn(request)
        except NotFoundError as error:
            if _CANNOT_IMPORT not in error.message:
                raise
        return await self._spawn(request.model_copy(update={"spec": dump_spec(spec, by_value=True)}))

    async def stop(self, name: str, *, grace: float = 5.0) -> bool:
        answer = await self._request("servers.stop", {"name": name, "grace": grace}, timeout=grace + 15.0)
        return bool(answer["stopped"])

    async def drain(self, name: str, *, timeout: float = 30.0) -> bool:
        answer = await self._request(
            "servers.drain", {"name": name, "timeout": timeout}, timeout=timeout + 15.0
        )
        return bool(answer["drained"])

    async def servers(self) -> list[ServerStatus]:
        return [ServerStatus.model_validate(item) for item in await self._request("servers.list")]

    async def server(self, name: str) -> ServerStatus:
        """Raises NotFoundError."""
        for status in await self.servers():
            if status.name == name:
                return status
        raise NotFoundError(f"no server is named {name!r}", name=name)

    async def status(self) -> HostStatus:
        return HostStatus.model_validate(await self._request("host.status"))

    async def log(self, name: str, *, tail: int = 200) -> str:
        return str((await self._request("servers.log", {"name": name, "tail": tail}))["text"])

    async def mint_token(self, *, label: str, scopes: list[str], ttl: float | None) -> str:
        answer = await self._request("tokens.mint", {"label": label, "scopes": scopes, "ttl": ttl})
        return str(answer["token"])

    async def shutdown(self) -> None:
        await self._request("host.shutdown")

    async def aclose(self) -> None:
        await self._channel.aclose()

    async def _spawn(self, request: SpawnRequest) -> ServerStatus:
        timeout = request.start_timeout + 15.0
        answer = await self._request("servers.spawn", request.model_dump(), timeout=timeout)
        return ServerStatus.model_validate(answer)

    async def _request(self, method: str, payload: Any = None, *, timeout: float = 10.0) -> Any:
        return await self._channel.request("control", method, payload, header=CallHeader(timeout=timeout))


def _request_of(spec: ToolSpec, name: str, options: SpawnOptions) -> SpawnRequest:
    expose, placement = options.get("expose"), options.get("placement")
    given: dict[str, Any] = {
        "name": name,
        "spec": dump_spec(spec),
        "detached": False,
        **options,
        "expose": None if expose is None else list(expose),
        "placement": dict(placement or {}),
    }
    try:
        return SpawnRequest.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        option = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"option {option!r} of spawning {name!r}: {first['msg'].lower()}; "
            f"the options are {', '.join(SpawnOptions.__annotations__)}"
        ) from None


def _hint(spec: object) -> str:
    cls = spec if isinstance(spec, type) else type(spec)
    return f"`{cls.__name__}.bind(...)`"
