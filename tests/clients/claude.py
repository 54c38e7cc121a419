"""The real `claude` program, isolated: an environment made from nothing, a home of its own, a dummy key.

It talks to a stub of the Messages API on loopback and to nothing else; telemetry, updates and error reports are
off. Its exit codes prove nothing, so callers read its output and the stub's records.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.clients.node import CLAUDE_CODE, DEFAULT_CACHE, command

DUMMY_KEY = "sk-dummy-for-tests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claude:
    """One isolated user of the program.

    Args:
        home: a fresh directory, its `HOME` and working directory.
        model_url: base URL of the Messages API stub.
        environment: more variables.
    """

    home: Path
    model_url: str
    environment: dict[str, str] = field(default_factory=dict)
    cache: Path = DEFAULT_CACHE

    def run(self, *arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run `claude ARGUMENTS` to its end."""
        return subprocess.run(
            [*command(CLAUDE_CODE, cache=self.cache), *arguments],
            cwd=self.home,
            env=self.isolated_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def isolated_environment(self) -> dict[str, str]:
        return {
            "PATH": os.defpath,
            "HOME": str(self.home),
            "ANTHROPIC_API_KEY": DUMMY_KEY,
            "ANTHROPIC_BASE_URL": self.model_url,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_TELEMETRY": "1",
            "DISABLE_ERROR_REPORTING": "1",
            "ENABLE_TOOL_SEARCH": "false",
            **self.environment,
        }

    def add_server(self, name: str, url: str, token: str) -> subprocess.CompletedProcess[str]:
        """`claude mcp add` of an HTTP server with a bearer token."""
        header = f"Authorization: Bearer {token}"
        return self.run("mcp", "add", "--transport", "http", name, url, "--header", header)

    def list_servers(self) -> str:
        """What `claude mcp list` prints."""
        done = self.run("mcp", "list")
        return done.stdout + done.stderr

    def ask(
        self, prompt: str, servers: dict[str, Any], *, allow: str, timeout: float = 90.0
    ) -> subprocess.CompletedProcess[str]:
        """`claude -p PROMPT` with just these MCP servers.

        Args:
            servers: the document under `mcpServers`; written to a file of mode 0600, never on a command line.
            allow: tools that need no permission, such as `mcp__bash`.
        """
        config = self.home / "mcp.json"
        config.touch(mode=0o600)
        config.write_text(json.dumps({"mcpServers": servers}))
        return self.run(
            "-p",
            prompt,
            "--mcp-config",
            str(config),
            "--strict-mcp-config",
            "--allowedTools",
            allow,
            "--output-format",
            "stream-json",
            "--verbose",
            timeout=timeout,
        )
