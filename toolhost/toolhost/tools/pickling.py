"""Specs on the wire: by reference where the tool host can import the class, else by value."""

from __future__ import annotations

import pickle
import sys
from pickle import PicklingError

import cloudpickle

from toolhost.tools.server import ToolSpec
from toolhost_sdk.errors import NotFoundError, UsageError


def dump_spec(spec: ToolSpec, *, by_value: bool = False) -> bytes:
    """Raises UsageError naming the class when it can travel neither way."""
    module = sys.modules.get(spec.cls.__module__)
    try:
        if not by_value or module is None:
            return bytes(cloudpickle.dumps(spec))
        cloudpickle.register_pickle_by_value(module)
        try:
            return bytes(cloudpickle.dumps(spec))
        finally:
            cloudpickle.unregister_pickle_by_value(module)
    except (PicklingError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(
            f"server class {spec.cls.__name__!r} or an argument of it cannot be sent to a tool host: {error}; "
            "bind plain data and open connections in `start`"
        ) from None


def load_spec(data: bytes) -> ToolSpec:
    """Raises NotFoundError (naming the module) when the class cannot be imported here."""
    try:
        spec = pickle.loads(data)
    except (ImportError, AttributeError) as error:
        raise NotFoundError(f"the server's class cannot be imported in the tool host: {error}") from None
    if not isinstance(spec, ToolSpec):
        raise UsageError(f"a spec made by `bind` is needed, not {type(spec).__name__!r}")
    return spec
