"""What servers of a tool host say goes into a file each."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from toolhost.hosting.service import ServerLogHandler, _current_server


def test_logs_of_many_names_hold_few_descriptors_and_lose_no_line(tmp_path: Path) -> None:
    handler = ServerLogHandler(tmp_path, "h1")
    before = len(os.listdir("/proc/self/fd"))
    for lap in range(2):
        for number in range(200):
            token = _current_server.set(f"s{number}")
            handler.handle(logging.makeLogRecord({"msg": f"lap {lap}", "levelno": logging.INFO}))
            _current_server.reset(token)
    opened = len(os.listdir("/proc/self/fd")) - before

    assert opened <= 40
    assert [(tmp_path / f"s{n}.log").read_text() for n in (0, 199)] == ["lap 0\nlap 1\n"] * 2
