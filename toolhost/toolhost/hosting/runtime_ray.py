"""Starting or joining Ray: loopback only, token authentication on, no dashboard, no usage statistics."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from toolhost.hosting.home import Home, write_private
from toolhost_sdk.errors import UnavailableError

_LONGEST_RAY_DIR = 43  # bytes, so that Ray's own socket names below it fit into 107


@contextmanager
def ray_running(home: Home, *, address: str | None, num_cpus: int | None) -> Iterator[str]:
    """Be connected to Ray; yield its address. A Ray that this process already uses is used and left as it is.

    Raises:
        UnavailableError: Ray is not installed, or the cluster at *address* does not answer.
    """
    _configure(home, join=address is not None)
    try:
        import ray
    except ImportError:
        raise UnavailableError(
            "Ray is not installed in this environment: install it with `pip install ray`, or run `make install`"
        ) from None
    if ray.is_initialized():
        yield ray.get_runtime_context().gcs_address
        return
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
        yield ray.get_runtime_context().gcs_address
    finally:
        ray._private.worker._worker_logs_enabled = True
        with _signals_kept():
            ray.shutdown()
        if address is None:
            shutil.rmtree(temp_dir, ignore_errors=True)


def namespace(home: Home) -> str:
    """The Ray namespace of a host: two hosts on one cluster never meet."""
    return f"toolhost-{home.instance}"


def _configure(home: Home, *, join: bool) -> None:
    """Ray reads these from the environment when it is imported."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"
    os.environ.setdefault("RAY_enable_open_telemetry", "0")
    if join:
        return
    token_file = home.root / "ray.token"
    if not token_file.exists():
        write_private(token_file, secrets.token_hex(32).encode())
    os.environ["RAY_AUTH_MODE"] = "token"
    # Without this Ray rewrites a loopback address to the machine's own and listens on every interface.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file)


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
