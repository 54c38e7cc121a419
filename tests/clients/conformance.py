"""The official conformance suites, run against a URL and read from their `checks.json` files.

The exit code hides failures of unscored scenarios, and the printed totals hide what was skipped; the files have
every check. Counts are of checks with a verdict: `INFO` and `SKIPPED` are no verdicts.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.clients.node import (
    CONFORMANCE,
    CONFORMANCE_STABLE,
    DEFAULT_CACHE,
    NodePackage,
    command,
    node_bin,
)

Suite = Literal["2025-11-25", "2026-07-28", "0.1.16"]
_TIMEOUT = 300.0
_STAMP = re.compile(r"-\d{4}-\d{2}-\d{2}T[\d-]+Z?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    scenario: str
    id: str
    status: str
    error: str | None = None

    def line(self) -> str:
        """For messages of failed tests."""
        return f"{self.status} {self.scenario}: {self.id}: {self.error}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Every check of one run."""

    checks: tuple[Check, ...]
    output: str = field(repr=False)

    @property
    def passed(self) -> list[Check]:
        return [check for check in self.checks if check.status == "SUCCESS"]

    @property
    def failed(self) -> list[Check]:
        """Failures and warnings: the bar knows no difference."""
        return [check for check in self.checks if check.status in ("FAILURE", "WARNING")]

    def skipped(self) -> list[Check]:
        return [check for check in self.checks if check.status == "SKIPPED"]

    def by_scenario(self) -> dict[str, Counter[str]]:
        counts: dict[str, Counter[str]] = {}
        for check in self.checks:
            counts.setdefault(check.scenario, Counter())[check.status] += 1
        return counts

    def without(self, prefix: str) -> Report:
        """The same run without the scenarios that begin with *prefix*."""
        kept = tuple(check for check in self.checks if not check.scenario.startswith(prefix))
        return Report(checks=kept, output=self.output)


def run_suite(
    suite: Suite, url: str, out: Path, *, scenario: str | None = None, cache: Path = DEFAULT_CACHE
) -> Report:
    """Run a suite against the server at *url*, writing into the empty directory *out*.

    Args:
        suite: a requirement set of the current release, or the version of the older one.
        scenario: only this one.

    Raises:
        InstallError: the suite is not installed.
        subprocess.TimeoutExpired: it did not end in time.
    """
    package, selection = _selection(suite)
    if scenario is not None:
        selection = ["--scenario", scenario]
        if suite != "0.1.16":
            selection += ["--spec-version", suite]
    line = [*command(package, cache=cache), "server", "--url", url, *selection, "-o", str(out)]
    done = subprocess.run(
        line,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
        env={"PATH": f"{node_bin()}{os.pathsep}{os.defpath}", "HOME": str(out.parent)},
    )
    return read_report(out, done.stdout + done.stderr)


def read_report(out: Path, output: str = "") -> Report:
    """The checks in `out/**/checks.json`."""
    checks: list[Check] = []
    for path in sorted(out.rglob("checks.json")):
        scenario = _STAMP.sub("", path.parent.relative_to(out).as_posix()).removeprefix("server-")
        for entry in json.loads(path.read_text()):
            checks.append(
                Check(
                    scenario=scenario,
                    id=entry["id"],
                    status=entry["status"],
                    error=entry.get("errorMessage"),
                )
            )
    return Report(checks=tuple(checks), output=output)


def _selection(suite: Suite) -> tuple[NodePackage, list[str]]:
    if suite == "0.1.16":
        return CONFORMANCE_STABLE, ["--suite", "all"]
    return CONFORMANCE, ["--requirements", suite]
