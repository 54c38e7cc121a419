"""What a user meets before anything is installed: the checks of `make install`, and the list of targets."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / ".ci" / "ensure-python"


def machine(path: Path, *, python: str | None) -> dict[str, str]:
    """A PATH with a shell and *python* as `python3`, and without a package manager."""
    path.mkdir()
    for program in ("bash", "id"):
        (path / program).symlink_to(shutil.which(program) or program)
    if python is not None:
        (path / "python3").write_text(f"#!{path}/bash\n{python}\n", "utf-8")
        (path / "python3").chmod(0o755)
    return {"PATH": str(path)}


def ensure(environment: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        [shutil.which("bash") or "bash", SCRIPT, "python3"],
        env=environment, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_no_python_is_one_error_with_the_way_out(tmp_path: Path) -> None:
    assert ensure(machine(tmp_path / "bin", python=None)) == (
        1,
        "error: python3 was not found; install Python 3.11 or newer, or say which one: "
        "make install PYTHON=/path/to/python\n",
    )


def test_an_old_python_is_named_with_its_version(tmp_path: Path) -> None:
    old = 'case "$2" in *sys.exit*) exit 1;; *) echo 3.9;; esac'

    assert ensure(machine(tmp_path / "bin", python=old)) == (
        1,
        "error: python3 is Python 3.9, and toolhost needs 3.11 or newer; say which one: "
        "make install PYTHON=python3.11\n",
    )


def test_a_python_without_venv_is_told_apart(tmp_path: Path) -> None:
    without_venv = 'case "$2" in *ensurepip*) exit 1;; *) echo 3.11;; esac'

    assert ensure(machine(tmp_path / "bin", python=without_venv)) == (
        1,
        "error: python3 cannot create virtual environments; run: apt-get install python3-venv\n",
    )


def test_make_help_lists_every_target_that_a_user_may_want() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")

    environment = {"PATH": os.environ["PATH"]}  # not that of a make around this test, which says where it is
    done = subprocess.run(
        ["make", "help"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=True
    )

    assert [line.split()[1] for line in done.stdout.splitlines()] == [
        "help", "install", "serve", "test", "check", "format", "bench", "docker-up", "lock", "clients", "clean",
    ]  # fmt: skip
