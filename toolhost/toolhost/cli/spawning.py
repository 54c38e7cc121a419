"""`toolhost spawn MODULE:CLASS`: a class of the user's, sent to the host on this machine.

The spec is pickled code, so it goes through the control socket, which only processes of the same user can open,
and never over HTTP.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolhost.cli.client import HostAddress
from toolhost.hosting.pickling import dump_spec
from toolhost.tools import ToolServer
from toolhost.wire import SpawnRequest
from toolhost_sdk.endpoints.channel import CallHeader
from toolhost_sdk.endpoints.unix_client import UnixChannel
from toolhost_sdk.errors import NotFoundError, UsageError

_SECONDS = 60.0


def spawn_class(
    address: HostAddress,
    reference: str,
    arguments: Mapping[str, Any],
    *,
    name: str | None,
    expose: list[str] | None,
) -> dict[str, Any]:
    """Import the class, bind it and ask the host to run it; returns the server's status.

    Args:
        reference: `module:Class`, found on `sys.path` or in the current directory.
        name: the server's; None means the class's name in lower case.

    Raises:
        UsageError: the reference names no tool server, or the host is not on this machine.
        NotFoundError: there is no such module or class.
    """
    if address.control_socket is None:
        raise UsageError(
            f"{reference!r} is code, and code is only sent to a host on this machine: unset TOOLHOST_URL, or spawn "
            "a shipped kind"
        )
    spec = load_class(reference).bind(**arguments)
    request = SpawnRequest(
        name=name or spec.cls.__name__.lower(),
        spec=dump_spec(spec, by_value=not _is_installed(spec.cls.__module__)),
        expose=expose,
    )
    return asyncio.run(_ask(str(address.control_socket), request))


def load_class(reference: str) -> type[ToolServer]:
    """The tool server class that `module:Class` names. Raises as `spawn_class` does."""
    module_name, _, class_name = reference.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
        found = getattr(module, class_name)
    except ModuleNotFoundError as error:
        raise NotFoundError(
            f"no module {error.name!r} here; looked in {here!r} and in this environment"
        ) from None
    except AttributeError:
        raise NotFoundError(f"module {module_name!r} has no class {class_name!r}") from None
    except ValueError:
        raise UsageError(f"{reference!r} is no MODULE:CLASS") from None
    if not (isinstance(found, type) and issubclass(found, ToolServer)):
        raise UsageError(f"{reference!r} is no tool server: its class must derive from toolhost.ToolServer")
    return found


def _is_installed(module_name: str) -> bool:
    """Whether the tool host, which has this environment but not this directory, can import the module itself."""
    origin = getattr(sys.modules[module_name], "__file__", None)
    return origin is not None and (
        Path(origin).is_relative_to(sys.prefix) or module_name.split(".", maxsplit=1)[0] == "toolhost"
    )


async def _ask(control_socket: str, request: SpawnRequest) -> dict[str, Any]:
    channel = UnixChannel(control_socket)
    try:
        status: dict[str, Any] = await channel.request(
            "control", "servers.spawn", request.model_dump(), header=CallHeader(timeout=_SECONDS)
        )
    finally:
        await channel.aclose()
    return status
