"""The README's tour is executed: every console block against a real host, every Python block as a program."""

from __future__ import annotations

import doctest
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOUR = (ROOT / "README.md").read_text("utf-8").partition("## Commands")[0]
MATCHES = doctest.OutputChecker().check_output


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TOUR, re.MULTILINE | re.DOTALL)


def steps(block: str) -> Iterator[tuple[str, str]]:
    """Commands of a console block with the output that the README shows."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


@contextmanager
def serving(environment: Mapping[str, str], work_dir: Path) -> Iterator[None]:
    command = [
        sys.executable,
        "-m",
        "toolhost.cli.app",
        "serve",
        "--port",
        "0",
        "--json",
        "--work-dir",
        work_dir,
    ]
    host = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert host.stdout is not None
        assert json.loads(host.stdout.readline())["servers"] == ["bash", "jobs"]
        yield
        host.send_signal(signal.SIGTERM)
        assert host.wait(timeout=20) == 0
    finally:
        if host.poll() is None:
            host.kill()
        host.wait(timeout=20)


def environment_for(home: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(home.parent), "TOOLHOST_HOME": str(home)}


@pytest.mark.ray
def test_the_tour_does_what_the_readme_shows(tmp_path: Path) -> None:
    environment = environment_for(tmp_path / "home")
    differing = []

    with serving(environment, tmp_path):
        for command, shown in (step for block in blocks("console") for step in steps(block)):
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, timeout=60, check=False,
            )  # fmt: skip
            if not MATCHES(shown, done.stdout, doctest.ELLIPSIS):
                differing.append((command, shown, done.stdout))

    assert differing == []


@pytest.mark.ray
@pytest.mark.parametrize("program", blocks("python"))
def test_programs_of_the_readme_run(program: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(program, "utf-8")

    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path, env=environment_for(tmp_path / "home"),
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_every_command_of_the_readme_exists() -> None:
    table = (ROOT / "README.md").read_text("utf-8").partition("## Commands")[2]
    named = set(re.findall(r"`toolhost ([a-z]+)", table))

    done = subprocess.run(
        [sys.executable, "-m", "toolhost.cli.app", "--help"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )

    assert {name for name in named if not re.search(rf"^  {name} ", done.stdout, re.MULTILINE)} == set()
