"""How trees are held on this node: cgroups where the kernel gives them, the subreaper always; names and sweeps.

Rules of this file: what is ended is ours by cgroup name or by the label in its environment, and is signalled through a
pidfd; a limit the node cannot hold is refused, not ignored.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import signal
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolhost_sdk.node import cgroups, procfs, readonly
from toolhost_sdk.node.port import CommandSpec

_SETTLE = 0.02
_TRIES = 50


def namespace_of(instance: str, home: Path) -> str:
    """The label of everything of one home: the instance and a digest of where its state lives."""
    digest = hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:8]
    return f"{instance}-{digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Containment:
    """What this generation of the warden uses.

    Args:
        root: where cgroups v2 can be made, or None.
        pids_v1: where the v1 pids controller takes groups, used when v2 has none.
        controllers: of v2, below *root*.
    """

    namespace: str
    root: str | None
    pids_v1: str | None
    controllers: frozenset[str]
    read_only: bool
    generation: str = field(default_factory=lambda: secrets.token_hex(4))

    @classmethod
    def probe(cls, namespace: str) -> Containment:
        """Try what the kernel allows. Forks: call it before threads exist."""
        root = cgroups.probe()
        found = cls(
            namespace=namespace,
            root=root,
            pids_v1=cgroups.probe_pids_v1(),
            controllers=cgroups.controllers(root) & {"pids", "memory"},
            read_only=readonly.possible(),
        )
        if found.group is not None:
            cgroups.make(found.group, {})
            for controller in found.controllers:
                cgroups.write(f"{root}/cgroup.subtree_control", f"+{controller}")
                cgroups.write(f"{found.group}/cgroup.subtree_control", f"+{controller}")
        return found

    @property
    def name(self) -> str:
        return f"{cgroups.PREFIX}{self.namespace}.{self.generation}"

    @property
    def group(self) -> str | None:
        """The cgroup of this generation."""
        return None if self.root is None else f"{self.root}/{self.name}"

    @property
    def groups(self) -> list[str]:
        """Every directory of this generation, in any hierarchy."""
        return [f"{parent}/{self.name}" for parent in (self.root, self.pids_v1) if parent is not None]

    def ranks(self, job: str) -> str:
        """How *job* is held, as its record shows it: a cgroup the kernel refused to make is not claimed."""
        made = self.group is not None and Path(self.group, job).is_dir()
        return "cgroup+subreaper" if made else "subreaper"

    def label(self, job: str) -> str:
        return f"{self.namespace}/{job}"

    def make_group(self, job: str) -> str | None:
        """A cgroup for a job to come, or None where there are none."""
        if self.group is None:
            return None
        path = f"{self.group}/{job}"
        return path if cgroups.make(path, {}) else None

    def prepare(self, job: str, spec: CommandSpec) -> tuple[list[str], str | None]:
        """Set the job's limits. Returns cgroups the leader has to enter, and why the node cannot hold *spec*, if so."""
        limits: dict[str, int] = {}
        groups: list[str] = []
        if spec.memory_limit is not None:
            if "memory" not in self.controllers:
                return (
                    [],
                    "memory_limit needs the memory controller of cgroup v2, which this node does not give us",
                )
            limits |= {"memory.max": spec.memory_limit, "memory.swap.max": 0, "memory.oom.group": 0}
        if spec.pids_limit is not None:
            if "pids" in self.controllers:
                limits["pids.max"] = spec.pids_limit
            elif self.pids_v1 is not None:
                path = f"{self.pids_v1}/{self.name}/{job}"
                if not cgroups.make(path, {"pids.max": spec.pids_limit}):
                    return [], f"pids_limit could not be set in {path!r}"
                groups.append(path)
            else:
                return [], "pids_limit needs the pids controller of cgroups, which this node does not give us"
        if limits and not cgroups.make(f"{self.group}/{job}", limits):
            return groups, f"the cgroup of the job does not take {limits}"
        return groups, None

    async def end(self, job: str) -> bool:
        """Kill what is left of *job* when its init is gone. Returns whether nothing is left."""
        for _ in range(_TRIES):
            left = self._kill_job(job)
            await asyncio.sleep(_SETTLE)
            if not left:
                self.forget(job)
                return True
        return False

    def _kill_job(self, job: str) -> bool:
        left = False
        if self.group is not None:
            path = f"{self.group}/{job}"
            left = not cgroups.empty(path)
            cgroups.kill(path)
        for pid, started, owner in procfs.labelled(self.namespace):
            if owner == job and not procfs.is_zombie(pid):
                left = procfs.send_signal(pid, started, signal.SIGKILL) or left
        return left

    def forget(self, job: str) -> None:
        for group in self.groups:
            cgroups.remove(f"{group}/{job}")

    def sweep(self, live: Container[str]) -> list[dict[str, Any]]:
        """End what carries our name but belongs to no live job. Blocking: for a thread. Returns what was ended."""
        ended: list[dict[str, Any]] = []
        for parent in (self.root, self.pids_v1):
            if parent is not None:
                ended += self._sweep_groups(parent, live)
        for pid, started, job in procfs.labelled(self.namespace):
            if (
                job not in live
                and not procfs.is_zombie(pid)
                and procfs.send_signal(pid, started, signal.SIGKILL)
            ):
                ended.append({"kind": "process", "pid": pid, "job": job})
        return ended

    def _sweep_groups(self, parent: str, live: Container[str]) -> list[dict[str, Any]]:
        ended: list[dict[str, Any]] = []
        for generation in cgroups.subgroups(parent):
            if not generation.startswith(f"{cgroups.PREFIX}{self.namespace}."):
                continue
            for job in cgroups.subgroups(f"{parent}/{generation}"):
                path = f"{parent}/{generation}/{job}"
                if generation == self.name and job in live:
                    continue
                for pid in cgroups.members(path):
                    started = procfs.start_time(pid)
                    if parent == self.pids_v1 and started is not None:
                        procfs.send_signal(pid, started, signal.SIGKILL)
                    ended.append({"kind": "process", "pid": pid, "job": job})
                cgroups.kill(path)
                if cgroups.remove(path):
                    ended.append({"kind": "cgroup", "path": path, "job": job})
            if generation != self.name:
                cgroups.remove(f"{parent}/{generation}")
        return ended

    def groups_left(self) -> bool:
        """Whether a cgroup of an earlier generation still stands."""
        mine = f"{cgroups.PREFIX}{self.namespace}."
        parents = [parent for parent in (self.root, self.pids_v1) if parent is not None]
        names = [name for parent in parents for name in cgroups.subgroups(parent)]
        return any(name.startswith(mine) and name != self.name for name in names)

    def left(self, live: Container[str]) -> dict[str, list[int]]:
        """Living processes of jobs that are not live, by job."""
        found: dict[str, list[int]] = {}
        for pid, _, job in procfs.labelled(self.namespace):
            if job not in live and not procfs.is_zombie(pid):
                found.setdefault(job, []).append(pid)
        return found

    def close(self) -> None:
        """Remove what this generation made; only empty cgroups go."""
        for group in self.groups:
            cgroups.remove(group)

    def manifest(self) -> dict[str, Any]:
        return {
            "containment": [*(["cgroup"] if self.root is not None else []), "subreaper"],
            "cgroup_root": self.root,
            "limits": {
                "pids": "pids" in self.controllers or self.pids_v1 is not None,
                "memory": "memory" in self.controllers,
                "nofile": True,
                "core": 0,
            },
            "read_only": self.read_only,
            "users": os.geteuid() == 0,
            "stdin_wait_detection": procfs.read_bytes("/proc/self/syscall") != b"",
            "kernel": os.uname().release,
        }
