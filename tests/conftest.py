"""Fixtures every test may use, and the last lines of a run: what did not run, and why."""

from __future__ import annotations

from collections import Counter

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", ()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] += 1
    if deselected := len(terminalreporter.stats.get("deselected", ())):
        reasons["left out by the options of this run"] += deselected
    terminalreporter.section("not run")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:>4}  {reason}")
    if not reasons:
        terminalreporter.write_line("nothing was skipped")
