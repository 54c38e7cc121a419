"""Claude Code at a terminal of its own: the client that keeps listen streams open and takes tasks.

Its screen is read all the time, or it would stop; what it does is seen in the model stub and in our servers.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.clients.claude import DUMMY_KEY, Claude
from tests.clients.node import CLAUDE_CODE, command

_ROWS, _COLUMNS = 50, 160
_ESCAPES = re.compile(rb"\x1b(\[[0-9;?<>=]*[a-zA-Z]|\][^\x07]*\x07|[()][A-Z0-9]|.)")


class Terminal:
    """The running program's screen, as text without control sequences."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._seen = bytearray()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def text(self) -> str:
        return _ESCAPES.sub(b" ", bytes(self._seen)).decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def join(self) -> None:
        self._thread.join(timeout=5)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._descriptor, 65536)
            except OSError:  # the other side is gone
                return
            if not data:
                return
            self._seen += data


@contextmanager
def interactive_claude(
    claude: Claude, prompt: str, servers: dict[str, Any], *, allow: str
) -> Iterator[Terminal]:
    """Start `claude PROMPT` at a terminal with just these MCP servers; its process group ends with the block."""
    _skip_first_run(claude)
    config = claude.home / "mcp.json"
    config.touch(mode=0o600)
    config.write_text(json.dumps({"mcpServers": servers}))
    options = ["--mcp-config", str(config), "--strict-mcp-config", "--allowedTools", allow]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
    process = subprocess.Popen(
        [*command(CLAUDE_CODE, cache=claude.cache), *options, "--", prompt],
        cwd=claude.home,
        env={**claude.isolated_environment(), "TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    terminal = Terminal(ours)
    try:
        yield terminal
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
        terminal.join()
        os.close(ours)


def _skip_first_run(claude: Claude) -> None:
    """Answer the dialogs of a first start in advance."""
    home = Path(claude.home)
    answers = {
        "hasCompletedOnboarding": True,
        "theme": "dark",
        "customApiKeyResponses": {"approved": [DUMMY_KEY], "rejected": []},
        "projects": {str(home): {"hasTrustDialogAccepted": True, "allowedTools": []}},
    }
    (home / ".claude.json").write_text(json.dumps(answers))
