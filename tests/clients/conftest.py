"""A running host with the servers that real clients are driven against, and the clients' programs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from examples.everything import Everything
from tests.clients.claude import Claude
from tests.clients.messages_stub import MessagesStub
from tests.clients.node import (
    CLAUDE_CODE,
    CODEX,
    CONFORMANCE,
    CONFORMANCE_STABLE,
    INSPECTOR,
    NodePackage,
    is_installed,
)
from tests.clients.rig import Rig

from toolhost.tools.shipped import shipped_spec

if TYPE_CHECKING:
    from toolhost import ToolHost


@pytest.fixture(scope="session")
def running_host() -> Iterator[ToolHost]:
    """A host that serves `everything` without a token, as the suites can send none, and `bash` with one."""
    from toolhost import ToolHost  # the tests of this directory that need no host do without Ray

    with (
        tempfile.TemporaryDirectory(prefix="th-") as home,
        ToolHost(Path(home) / "h", port=0, num_cpus=2) as host,
    ):
        work_dir = Path(home) / "work"
        work_dir.mkdir()
        host.spawn(Everything.bind(), name="everything", anonymous=True)
        host.spawn(shipped_spec("bash", {"work_dir": str(work_dir)}), name="bash")
        yield host


@pytest.fixture(scope="session")
def everything_rig() -> Iterator[Rig]:
    """The ingress with `everything` in this process: what fails here is no fault of Ray's."""
    with tempfile.TemporaryDirectory(prefix="rig-") as home, Rig(Path(home) / "h") as rig:
        rig.spawn(Everything.bind(), name="everything", anonymous=True)
        yield rig


@pytest.fixture(scope="session")
def conformance_suites() -> None:
    """Skips where the suites are not installed."""
    _need(CONFORMANCE, CONFORMANCE_STABLE)


@pytest.fixture
def new_claude(tmp_path: Path) -> Callable[[MessagesStub], Claude]:
    """Makes an isolated user of Claude Code who talks to a stub; skips where the program is not installed."""
    _need(CLAUDE_CODE)
    return lambda stub: Claude(home=tmp_path, model_url=stub.url)


@pytest.fixture
def codex() -> None:
    """Skips where Codex is not installed."""
    _need(CODEX)


@pytest.fixture
def inspector() -> None:
    """Skips where the Inspector is not installed."""
    _need(INSPECTOR)


def _need(*packages: NodePackage) -> None:
    missing = [package.requirement for package in packages if not is_installed(package)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: run 'make clients'")
