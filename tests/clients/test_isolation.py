"""No client needs anything but loopback: the same tests again, where there is no other network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.clients.node import REPOSITORY

pytestmark = [pytest.mark.clients, pytest.mark.ray]
HERE = Path(__file__).parent
ALONE = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
CLIENTS = ["test_claude_code.py", "test_other_clients.py", "test_python_clients.py"]


@pytest.mark.timeout(300)
def test_clients_host_and_models_work_in_a_network_of_loopback_alone() -> None:
    """CTEST-R1: one that called home would fail here."""
    if _run([*ALONE, "true"]).returncode != 0:
        pytest.skip(
            "this machine makes no network namespaces for users: unshare or ip is missing or not allowed"
        )
    files = [str(HERE / name) for name in CLIENTS]
    line = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]

    done = _run([*ALONE, *line])

    assert done.returncode == 0, done.stdout[-4000:]


def _run(line: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    try:
        return subprocess.run(
            line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(line, 127, "", str(error))
