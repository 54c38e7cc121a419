"""Starting or joining Ray: loopback only, token authentication on, no dashboard, no usage statistics."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from toolhost.hosting.home import Home, write_private
from toolhost.settings import exported
from toolhost_sdk.errors import ConflictError, UnavailableError

_LONGEST_RAY_DIR = 43  # bytes, so that Ray's own socket names below it fit into 107


class _Owned:
    """The Ray that the first host of this process started. It ends with the last host that uses it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.stack = ExitStack()


_owned = _Owned()


@contextmanager
def ray_running(home: Home, *, address: str | None, num_cpus: int | None) -> Iterator[str]:
    """Be connected to Ray; yield its address. A Ray that this process already uses is used, and left as it is.

    Raises:
        UnavailableError: Ray is not installed, or the cluster at *address* does not answer.
        ConflictError: a Ray that was started from this home still serves another host.
    """
    ray = sys.modules.get("ray")
    with _owned.lock:
        foreign = not _owned.users and ray is not None and ray.is_initialized()
        if not foreign and not _owned.users:
            with ExitStack() as stack:
                stack.enter_context(_own_ray(home, address=address, num_cpus=num_cpus))
                _owned.stack = stack.pop_all()
        _owned.users += not foreign
    try:
        yield sys.modules["ray"].get_runtime_context().gcs_address
    finally:
        if not foreign:
            with _owned.lock:
                _owned.users -= 1
                if not _owned.users:
                    _owned.stack.close()


@contextmanager
def _own_ray(home: Home, *, address: str | None, num_cpus: int | None) -> Iterator[None]:
    try:
        with exported(_environment(home, join=address is not None)):
            try:
                import_module("ray")
            except ImportError:
                raise UnavailableError(
                    "Ray is not installed in this environment: install it with `pip install ray`, or run "
                    "`make install`"
                ) from None
            _reread_environment()
            with _directory_locked(home), _initialized(home, address=address, num_cpus=num_cpus):
                yield
    finally:
        if sys.modules.get("ray") is not None:
            _reread_environment()


@contextmanager
def _directory_locked(home: Home) -> Iterator[None]:
    """Ray's directory is emptied before a start, so nobody may be in it. Its Ray may outlive a host (see `_Owned`)."""
    descriptor = os.open(home.root / "ray.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConflictError(
            f"the Ray of an earlier host in {str(home.root)!r} still serves another host of the same program: "
            "close that one first, or choose another home"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _initialized(home: Home, *, address: str | None, num_cpus: int | None) -> Iterator[None]:
    import ray

    temp_dir = home.runtime_dir / "r"
    shutil.rmtree(temp_dir, ignore_errors=True)  # of a host that was killed; the locks say nobody uses it
    try:
        _connect(home, address=address, num_cpus=num_cpus, temp_dir=temp_dir)
        # `log_to_driver=False` does not silence what raylets say of dead workers; we report those deaths ourselves.
        ray._private.worker._worker_logs_enabled = False
        yield
    finally:
        ray._private.worker._worker_logs_enabled = True
        with _signals_kept():
            ray.shutdown()  # also of one whose start failed or was interrupted half-way
        if address is None:
            shutil.rmtree(temp_dir, ignore_errors=True)


def _connect(home: Home, *, address: str | None, num_cpus: int | None, temp_dir: Path) -> None:
    import ray

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
