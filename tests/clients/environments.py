"""Virtual environments for clients that cannot live in the project's own: `mcp<2`, and the agent SDK.

Each is made once in the cache folder, with pinned requirements; scripts run there as subprocesses and print JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clients.node import DEFAULT_CACHE, INSTALL_TIMEOUT, InstallError, locked

_MARKER = ".installed"
SCRIPTS = Path(__file__).parent / "scripts"


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonEnvironment:
    """A virtual environment with pinned requirements."""

    name: str
    requirements: tuple[str, ...]

    def directory(self, cache: Path) -> Path:
        return cache / f"python-{self.name}"

    def is_installed(self, *, cache: Path = DEFAULT_CACHE) -> bool:
        marker = self.directory(cache) / _MARKER
        return marker.exists() and marker.read_text().split() == list(self.requirements)

    def install(self, *, cache: Path = DEFAULT_CACHE) -> bool:
        """Make it once; False when it was there already.

        Raises:
            InstallError: pip failed or took too long.
        """
        with locked(cache):
            if self.is_installed(cache=cache):
                return False
            directory = self.directory(cache)
            shutil.rmtree(directory, ignore_errors=True)
            self._run([sys.executable, "-m", "venv", str(directory)])
            pip = [str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input"]
            self._run([*pip, "--disable-pip-version-check", *self.requirements])
            (directory / _MARKER).write_text("\n".join(self.requirements) + "\n")
            return True

    def run(
        self, script: str, arguments: dict[str, Any], *, timeout: float = 60.0, cache: Path = DEFAULT_CACHE
    ) -> Any:
        """Run `scripts/SCRIPT` with *arguments* as JSON on its stdin; what it prints, read as JSON."""
        done = subprocess.run(
            [str(self.directory(cache) / "bin" / "python"), str(SCRIPTS / script)],
            input=json.dumps(arguments),
            env={"PATH": os.defpath, "HOME": arguments.get("home", "/nonexistent")},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode != 0:
            raise AssertionError(f"{script} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        return json.loads(done.stdout)

    def _run(self, line: list[str]) -> None:
        try:
            done = subprocess.run(line, capture_output=True, text=True, timeout=INSTALL_TIMEOUT, check=False)
        except subprocess.TimeoutExpired as error:
            raise InstallError(
                f"the environment {self.name!r} took more than {INSTALL_TIMEOUT:.0f} s"
            ) from error
        if done.returncode != 0:
            raise InstallError(
                f"the environment {self.name!r} could not be installed; is the package index reachable?\n"
                + done.stderr.strip()[-2000:]
            )


OLD_MCP = PythonEnvironment(name="old-mcp", requirements=("mcp==1.30.0", "langchain-mcp-adapters==0.3.2"))
AGENT_SDK = PythonEnvironment(name="agent-sdk", requirements=("claude-agent-sdk==0.2.186",))
ENVIRONMENTS: tuple[PythonEnvironment, ...] = (OLD_MCP, AGENT_SDK)
