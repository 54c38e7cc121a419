"""What a start writes down: the plan the launcher follows, and the description kept with the job.

Rules of this file: values of environment variables go to the launcher only; they are kept nowhere.
"""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolhost_sdk.node import clock, launch
from toolhost_sdk.node.port import CommandSpec, JobRecord

NOFILE = resource.getrlimit(resource.RLIMIT_NOFILE)  # before the warden raises its own


def plan(
    record: JobRecord,
    spec: CommandSpec,
    *,
    label: str,
    groups: list[str],
    refused: str | None,
    hidden: Sequence[Path] = (),
) -> dict[str, Any]:
    """What `launch.run` gets.

    Args:
        groups: cgroups the leader has to enter.
        hidden: directories that a read-only view does not show.
        refused: why the node cannot hold what the specification asks, if so; the launcher says it and exits.
    """
    argv = [os.fsencode(arg) for arg in spec.argv]
    refuse: list[str] | None = None
    if refused is not None:
        refuse = ["isolation", refused]
    elif (long := launch.oversized(argv)) is not None:
        refuse = [long.kind, long.message]
    return {
        "argv": ["refused"] if refuse else [os.fsdecode(arg) for arg in argv],
        "env": dict(spec.env),
        "cwd": record.cwd,
        "user": spec.user,
        "label": label,
        "read_only": spec.read_only,
        "hidden": [str(path) for path in hidden],
        "nofile": list(NOFILE),
        "cgroups": groups,
        "refuse": refuse,
    }


def describe(directory: Path, record: JobRecord, spec: CommandSpec) -> None:
    """Write the job's `spec` file, its deadline on the boot clock included. Raises OSError."""
    described = {
        "argv": [os.fsdecode(arg) for arg in spec.argv],
        "env_names": sorted(spec.env),
        "cwd": record.cwd,
        "user": record.user,
        "label": spec.label,
        "session": spec.session,
        "timeout": spec.timeout,
        "idle_timeout": spec.idle_timeout,
        "boot": clock.BOOT_ID,
        "deadline": None if spec.timeout is None else clock.now() + spec.timeout,
        "lease": spec.lease,
        "read_only": spec.read_only,
        "leftovers": spec.leftovers,
        "log_limit": spec.log_limit,
    }
    (directory / "spec").write_text(json.dumps(described), encoding="utf-8")
