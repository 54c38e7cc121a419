"""A host inside a program that has plans of its own for Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os
import ray
from toolhost import ToolHost

before = dict(os.environ)
for name in ("first", "second"):
    with ToolHost(os.path.join(os.environ["HOME"], name), port=0, num_cpus=1) as host:
        assert host.servers() == []
    assert not ray.is_initialized()
changed = {key for key in before.keys() | os.environ.keys() if before.get(key) != os.environ.get(key)}
assert not [key for key in changed if "AUTH" in key or "CLUSTER" in key], changed
"""


@pytest.mark.ray
def test_a_program_that_imported_ray_first_can_embed_one_host_after_another(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
