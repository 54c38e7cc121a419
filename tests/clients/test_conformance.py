"""The official suites against `everything` in a tool host, through the ingress (mode: owned).

The counts belong to the pinned versions of the suites and are read from their `checks.json` files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.clients.conformance import Report, Suite, run_suite
from tests.clients.fixtures import PROMPTS, RESOURCES, TOOLS
from tests.support.clients import connected

if TYPE_CHECKING:
    from toolhost import ToolHost

pytestmark = [pytest.mark.clients, pytest.mark.ray, pytest.mark.usefixtures("conformance_suites")]
PATH = "/everything/mcp"
# Warnings of the older suite. It says 2025-03-26 in its header, whatever was negotiated, and a client that old
# knows no event without data; the newer suite says 2025-11-25 and finds both.
RECOMMENDED = {"server-sse-priming-event", "server-sse-retry-field"}


def run(suite: Suite, host: ToolHost, tmp_path: Path) -> Report:
    return run_suite(suite, host.url + PATH, tmp_path / "out")


def failures(report: Report) -> list[str]:
    return [check.line() for check in report.failed]


def test_the_required_scenarios_of_2025_11_25_pass_whole(running_host: ToolHost, tmp_path: Path) -> None:
    """SUITE-R1"""
    report = run("2025-11-25", running_host, tmp_path)

    assert failures(report) == []
    assert (len(report.passed), report.skipped()) == (84, [])


@pytest.mark.timeout(300)  # the scenarios of Tasks, not scored here, wait for what does not come
def test_the_required_scenarios_of_2026_07_28_pass_whole(running_host: ToolHost, tmp_path: Path) -> None:
    """SUITE-R1: without the scenarios of the Tasks extension."""
    report = run("2026-07-28", running_host, tmp_path).without("tasks-")

    assert failures(report) == []
    assert (len(report.passed), report.skipped()) == (152, [])


def test_every_scenario_of_the_older_suite_passes(running_host: ToolHost, tmp_path: Path) -> None:
    """SUITE-R1"""
    report = run("0.1.16", running_host, tmp_path)

    assert {check.id for check in report.failed} == RECOMMENDED
    assert (len(report.passed), report.skipped()) == (44, [])


@pytest.mark.anyio
async def test_the_suites_find_every_fixture_they_look_for(running_host: ToolHost) -> None:
    """SUITE-R1: a missing fixture passes some checks vacuously. SUITE-R2: no token is sent."""
    async with connected(running_host.url + PATH, None) as client:
        tools = await client.list_tools()
        resources = await client.list_resources()
        templates = await client.list_resource_templates()
        prompts = await client.list_prompts()

    assert {tool.name for tool in tools.tools} >= TOOLS
    uris = {str(resource.uri) for resource in resources.resources}
    assert uris | {template.uri_template for template in templates.resource_templates} >= RESOURCES
    assert {prompt.name for prompt in prompts.prompts} >= PROMPTS
