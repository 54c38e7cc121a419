"""The ingress alone, without Ray: what fails here is the fault of no tool host."""

from __future__ import annotations

from pathlib import Path

import pytest
from examples.everything import Everything
from tests.clients.conformance import run_suite
from tests.clients.rig import Rig
from tests.support.clients import call_text, connected


@pytest.mark.clients
@pytest.mark.usefixtures("conformance_suites")
def test_the_ingress_alone_passes_the_required_scenarios_of_2025_11_25(
    everything_rig: Rig, tmp_path: Path
) -> None:
    """SUITE-R1"""
    report = run_suite("2025-11-25", f"{everything_rig.url}/everything/mcp", tmp_path / "out")

    assert [check.line() for check in report.failed] == []
    assert len(report.passed) == 84


@pytest.mark.anyio
async def test_a_server_that_is_routed_later_is_served_at_once(everything_rig: Rig) -> None:
    everything_rig.spawn(Everything.bind(), name="later")
    token = everything_rig.mint_token(scopes=["later"])

    async with connected(f"{everything_rig.url}/later/mcp", token) as client:
        assert await call_text(client, "greet", {"name": "Ada"}) == "Hello, Ada!"
    everything_rig.stop("later")
