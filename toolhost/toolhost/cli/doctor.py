"""`toolhost doctor`: what holds on this machine, from probes, and the way out where something does not."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from toolhost.cli.client import HostClient, NotRunningError, chosen_settings, find_host
from toolhost.settings import Settings
from toolhost_sdk.errors import ToolhostError, UnavailableError
from toolhost_sdk.node.containment import Containment

State = Literal["ok", "limited", "fails"]
_LEAST_FREE = 1 << 30
_PATIENCE = 3.0  # seconds for a running host to say so


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One promise on this machine.

    Args:
        state: it holds; it holds in part; or nothing works without it.
        says: what was found, and what to do where it is not `ok`.
    """

    name: str
    state: State
    says: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def examine(home: Path | None) -> list[Check]:
    """Every check, in the order a person reads them. Starts nothing that stays."""
    settings = chosen_settings(home)
    checks = [_python(), _ray(), *_packages(), _shell(settings), _disk(settings.home), _host(settings)]
    return [*checks, *node_checks(probe_node())]


def probe_node() -> dict[str, Any]:
    """What the kernel gives this user, tried as the command supervisor tries it. Forks: call it without threads."""
    containment = Containment.probe(f"doctor-{os.getpid()}")
    try:
        return containment.manifest()
    finally:
        containment.close()


def render_checks(checks: list[Check]) -> str:
    """One line a check; the state first, so that an eye finds what is wrong."""
    width = max(len(check.name) for check in checks)
    return "\n".join(f"{check.state:<7}  {check.name:<{width}}  {check.says}" for check in checks)


def node_checks(manifest: Mapping[str, Any]) -> Iterator[Check]:
    """What the probes of the command supervisor mean for a user."""
    ranks = list(manifest.get("containment", ()))
    strong = "cgroup" in ranks or "pid_namespace" in ranks
    yield Check(
        name="process trees",
        state="ok" if strong else "limited",
        says=f"ended by {' and '.join(ranks) or 'nothing'}"
        + ("" if strong else "; a fork bomb can outrun it: run as root, or delegate a cgroup to this user"),
    )
    limits = manifest.get("limits", {})
    missing = [name for name in ("pids", "memory") if not limits.get(name)]
    yield Check(
        name="limits",
        state="limited" if missing else "ok",
        says="cannot be set here: " + ", ".join(missing) + "; they need a delegated cgroup v2"
        if missing
        else "pids and memory can be limited per job",
    )
    yield _yes_or_limited(
        manifest,
        "read_only",
        "read-only shells",
        "by a private mount namespace",
        "refused: needs user namespaces",
    )
    yield _yes_or_limited(
        manifest, "users", "other users", "`user=` can switch", "`user=` is refused: the host is not root"
    )
    yield _yes_or_limited(
        manifest,
        "stdin_wait_detection",
        "waits on stdin",
        "are told to the model",
        "cannot be seen: this kernel hides /proc/PID/syscall",
    )
    yield Check(
        name="isolation",
        state="limited",
        says="none yet: commands run as this user, with its files, keys and network, and can read the environment of "
        "its other processes (/proc/PID/environ), the host's too; they inherit none of it. Run the host as a user, or "
        "in a container, that may lose what it has",
    )


def _yes_or_limited(manifest: Mapping[str, Any], key: str, name: str, yes: str, no: str) -> Check:
    holds = bool(manifest.get(key))
    return Check(name=name, state="ok" if holds else "limited", says=yes if holds else no)


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    if not sys.platform.startswith("linux"):
        return Check(
            name="platform",
            state="limited",
            says=f"Python {found} on {sys.platform}: commands are contained on Linux only",
        )
    return Check(name="platform", state="ok", says=f"Python {found} on Linux {os.uname().release}")


def _ray() -> Check:
    if importlib.util.find_spec("ray") is None:
        return Check(
            name="ray", state="fails", says="not installed, and tool servers run in it; run: make install"
        )
    return Check(name="ray", state="ok", says=f"Ray {version('ray')}")


def _packages() -> Iterator[Check]:
    found = [f"{name} {version(name)}" for name in ("toolhost-platform", "mcp", "uvicorn", "pydantic")]
    yield Check(name="packages", state="ok", says=", ".join(found))


def _shell(settings: Settings) -> Check:
    where = shutil.which("bash", path=settings.search_path)
    if where is None:
        return Check(name="bash", state="fails", says="not found on PATH; the shell server needs it")
    return Check(name="bash", state="ok", says=where)


def _disk(root: Path) -> Check:
    existing = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        return Check(
            name="home", state="fails", says=f"{existing} cannot be written; choose another with --home"
        )
    if free < _LEAST_FREE:
        return Check(
            name="home", state="limited", says=f"{root} has {free >> 20} MiB left for logs of commands"
        )
    return Check(name="home", state="ok", says=f"{root}, {free >> 30} GiB free")


def _host(settings: Settings) -> Check:
    try:
        address = find_host(settings)
    except NotRunningError as error:  # it was killed
        return Check(name="host", state="limited", says=str(error))
    except UnavailableError:
        return Check(name="host", state="ok", says="none runs in this home; start one with: toolhost serve")
    try:
        HostClient(address, timeout=_PATIENCE).get("/status")
    except ToolhostError as error:
        return Check(name="host", state="limited", says=str(error))
    return Check(name="host", state="ok", says=f"runs at {address.url}")
