"""Codex and the Inspector as isolated programs: environments made from nothing, homes of their own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Literal

from tests.clients.node import CODEX, DEFAULT_CACHE, INSPECTOR, command, node_bin

_CONFIG = """
check_for_update_on_startup = false
web_search = "disabled"
model = "stub"
model_provider = "stub"
analytics = {{ enabled = false }}
feedback = {{ enabled = false }}
model_providers.stub = {{ name = "stub", base_url = "{model}/v1", env_key = "STUBKEY", wire_api = "responses" }}
mcp_servers.{name} = {{ url = "{url}", bearer_token_env_var = "MCP_TOK", default_tools_approval_mode = "approve" }}
"""


def run_codex(
    home: Path, *, model_url: str, name: str, url: str, token: str, prompt: str, cache: Path = DEFAULT_CACHE
) -> subprocess.CompletedProcess[str]:
    """`codex exec PROMPT` with one MCP server, named *name*."""
    (home / "config.toml").write_text(_CONFIG.format(model=model_url, name=name, url=url))
    line = ["exec", "--skip-git-repo-check", "--sandbox", "read-only", "--json", prompt]
    extra = {"CODEX_HOME": str(home), "STUBKEY": "sk-dummy-for-tests", "MCP_TOK": token}
    return _run([*command(CODEX, cache=cache), *line], home, extra)


def inspect_server(
    home: Path,
    *arguments: str,
    url: str,
    token: str,
    era: Literal["legacy", "modern"],
    cache: Path = DEFAULT_CACHE,
) -> subprocess.CompletedProcess[str]:
    """`mcp-inspector --cli` against *url*; *arguments* such as `--method tools/list`."""
    server: dict[str, Any] = {
        "type": "streamable-http",
        "url": url,
        "headers": {"Authorization": f"Bearer {token}"},
        "protocolEra": era,
    }
    config = home / "inspector.json"
    config.touch(mode=0o600)
    config.write_text(json.dumps({"mcpServers": {"server": server}}))
    line = ["--cli", "--config", str(config), "--server", "server", *arguments, "--format", "json"]
    return _run([*command(INSPECTOR, cache=cache), *line], home, {})


def _run(line: list[str], home: Path, extra: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        line,
        cwd=home,
        env={"PATH": f"{node_bin()}{os.pathsep}{os.defpath}", "HOME": str(home), **extra},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
