"""`toolhost doctor`: probes of this machine, and what their results mean in words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from toolhost.cli.doctor import Check, node_checks, render_checks

WEAK = {
    "containment": ["subreaper"],
    "limits": {"pids": True, "memory": False},
    "read_only": False,
    "users": False,
    "stdin_wait_detection": False,
}


def test_what_a_machine_does_not_offer_is_limited_and_has_a_reason() -> None:
    """SEC-R4, TREE-R1"""
    checks = list(node_checks(WEAK))

    assert {check.name: check.state for check in checks} == {
        "process trees": "limited",
        "limits": "limited",
        "read-only shells": "limited",
        "other users": "limited",
        "waits on stdin": "limited",
        "isolation": "limited",
    }
    assert checks[0].says.startswith("ended by subreaper; a fork bomb can outrun it")
    assert checks[1].says == "cannot be set here: memory; they need a delegated cgroup v2"


def test_checks_are_lines_with_the_state_first() -> None:
    checks = [Check(name="ray", state="fails", says="gone"), Check(name="platform", state="ok", says="Linux")]

    assert render_checks(checks) == "fails    ray       gone\nok       platform  Linux"


def test_doctor_reports_this_machine_as_json_and_leaves_nothing(tmp_path: Path) -> None:
    """SEC-R4"""
    environment = {**os.environ, "TOOLHOST_HOME": str(tmp_path / "home")}

    done = subprocess.run(
        [sys.executable, "-m", "toolhost.cli.app", "doctor", "--json"],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    report = {check["name"]: check["state"] for check in json.loads(done.stdout)["checks"]}
    assert (done.returncode, report["ray"]) == (0, "ok")
    assert report["process trees"] in ("ok", "limited")
    assert list(tmp_path.iterdir()) == []


def test_doctor_believes_in_no_host_that_does_not_answer(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "TOOLHOST_HOME": str(tmp_path / "home"),
        "TOOLHOST_URL": "http://127.0.0.1:1",
    }

    done = subprocess.run(
        [sys.executable, "-m", "toolhost.cli.app", "doctor", "--json"],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    host = next(check for check in json.loads(done.stdout)["checks"] if check["name"] == "host")
    assert (host["state"], "nothing listens" in host["says"]) == ("limited", True)
