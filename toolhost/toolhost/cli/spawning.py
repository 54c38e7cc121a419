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
from toolhost.hosting.control_client import ControlClient
from toolhost.hosting.home import Home
from toolhost.tools import ToolServer, ToolSpec
from toolhost.wire import ServerStatus
from toolhost_sdk.errors import NotFoundError, UsageError


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
    if address.home is None:
        raise UsageError(
            f"{reference!r} is code, and code is only sent to a host on this machine: unset TOOLHOST_URL, or spawn "
            "a shipped kind"
        )
    spec = load_class(reference).bind(**arguments)
    status = asyncio.run(_spawn(address.home, spec, name or spec.cls.__name__.lower(), expose))
    return status.model_dump(mode="json")


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


async def _spawn(home: Home, spec: ToolSpec, name: str, expose: list[str] | None) -> ServerStatus:
    client = ControlClient(home)
    try:
        return await client.spawn(spec, name=name, expose=expose, detached=True)
    finally:
        await client.aclose()
