"""Starting or joining Ray: loopback only, token authentication on, no dashboard, no usage statistics."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from toolhost.hosting.home import Home, write_private
from toolhost.settings import exported
from toolhost_sdk.errors import UnavailableError

_LONGEST_RAY_DIR = 43  # bytes, so that Ray's own socket names below it fit into 107


@contextmanager
def ray_running(home: Home, *, address: str | None, num_cpus: int | None) -> Iterator[str]:
    """Be connected to Ray; yield its address. A Ray that this process already uses is used and left as it is.

    Raises:
        UnavailableError: Ray is not installed, or the cluster at *address* does not answer.
    """
    running = sys.modules.get("ray")
    if running is not None and running.is_initialized():
        yield running.get_runtime_context().gcs_address
        return
    try:
        with exported(_environment(home, join=address is not None)):
            try:
                import ray
            except ImportError:
                raise UnavailableError(
                    "Ray is not installed in this environment: install it with `pip install ray`, or run "
                    "`make install`"
                ) from None
            _reread_environment()
            with _initialized(home, address=address, num_cpus=num_cpus):
                yield ray.get_runtime_context().gcs_address
    finally:
        if sys.modules.get("ray") is not None:
            _reread_environment()


@contextmanager
def _initialized(home: Home, *, address: str | None, num_cpus: int | None) -> Iterator[None]:
    import ray

    temp_dir = home.runtime_dir / "r"
    shutil.rmtree(temp_dir, ignore_errors=True)  # of a host that was killed; the lock says nobody uses it
    try:
        with _signals_kept():
            if address is not None:
                ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    namespace=namespace(home),
                )
            else:
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    namespace=namespace(home),
                    _node_ip_address="127.0.0.1",
                    _temp_dir=str(temp_dir) if len(os.fsencode(temp_dir)) <= _LONGEST_RAY_DIR else None,
                )
    except (ConnectionError, RuntimeError, OSError, ValueError) as error:
        what = f"the cluster at {address!r} does not answer" if address else "Ray did not start"
        raise UnavailableError(f"{what}: {str(error).splitlines()[0]}") from None
    # `log_to_driver=False` does not silence what raylets say of dead workers; we report those deaths ourselves.
    ray._private.worker._worker_logs_enabled = False
    try:
        yield
    finally:
        ray._private.worker._worker_logs_enabled = True
        with _signals_kept():
            ray.shutdown()
        if address is None:
            shutil.rmtree(temp_dir, ignore_errors=True)


def namespace(home: Home) -> str:
    """The Ray namespace of a host: two hosts on one cluster never meet."""
    return f"toolhost-{home.instance}"


def _reread_environment() -> None:
    """Let a Ray that was imported before see the variables as they are now; it keeps what it read at its import.

    Ray's own start-up renews its configuration and its token with the same calls.
    """
    constants: Any = import_module("ray._private.ray_constants")
    raylet: Any = import_module("ray._raylet")
    constants.ENABLE_RAY_CLUSTER = constants.env_bool(
        constants.ENABLE_RAY_CLUSTERS_ENV_VAR, not constants.IS_WINDOWS_OR_OSX
    )
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _environment(home: Home, *, join: bool) -> dict[str, str]:
    """What Ray and the processes it starts read from the environment."""
    shared = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "RAY_enable_open_telemetry": "0",
    }
    if join:
        return shared
    token_file = home.root / "ray.token"
    if not token_file.exists():
        write_private(token_file, secrets.token_hex(32).encode())
    return shared | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        # Without this Ray rewrites a loopback address to the machine's own and listens on every interface.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray installs a SIGTERM handler of its own, which would skip our shutdown."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept)
