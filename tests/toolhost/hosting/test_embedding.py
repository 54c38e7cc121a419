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

TWO = """
import os
import ray
from toolhost import ToolHost
from toolhost.tools.bash import BashTool
from toolhost_sdk.errors import UnavailableError

first, second = (ToolHost(os.path.join(os.environ["HOME"], name), port=0, num_cpus=1) for name in ("a", "b"))
first.start()
second.start()
handle = second.spawn(BashTool.bind(), name="shell")
first.close()
assert (handle.state, ray.is_initialized()) == ("ready", True)
second.spawn(BashTool.bind(), name="own", isolation="process").stop()
ray.shutdown()  # by a program that does not know better
try:
    second.spawn(BashTool.bind(), name="late")
except UnavailableError as error:
    assert "Ray was shut down" in str(error), error
assert not ray.is_initialized()
second.close()
assert not ray.is_initialized()
"""


@pytest.mark.ray
def test_a_program_that_imported_ray_first_can_embed_one_host_after_another(tmp_path: Path) -> None:
    done = run(PROGRAM, tmp_path)

    assert done.returncode == 0, done.stderr


@pytest.mark.ray
def test_the_first_of_two_hosts_may_close_first_and_no_ray_starts_by_itself(tmp_path: Path) -> None:
    """LIFE-A6"""
    done = run(TWO, tmp_path)

    assert done.returncode == 0, done.stderr


def run(program: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
