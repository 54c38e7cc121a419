"""Servers on other nodes, on real raylets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]


def test_any_ingress_serves_a_server_of_another_node_and_payloads_arrive_unchanged(tmp_path: Path) -> None:
    """NET-A1, NET-A2, NET-R2, HOST-A1: two raylets on one machine; the far one is reached through its actor."""
    program = [sys.executable, "-m", "tests.cluster.two_nodes", str(tmp_path)]
    # Nothing inherited: hosts of other tests in this process have told Ray things by its environment.
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        program, capture_output=True, text=True, timeout=110, check=False, cwd=ROOT, env=environment
    )

    assert run.returncode == 0, run.stderr[-4000:]
    assert json.loads(run.stdout.splitlines()[-1]) == {
        "near_is_here": True,
        "far_is_there": True,
        "unchanged": True,
        "command": "None",
        "stopped": True,
    }
