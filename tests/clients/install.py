"""Install every client program the tests drive: `python -m tests.clients.install`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.clients.environments import ENVIRONMENTS
from tests.clients.node import DEFAULT_CACHE, PACKAGES, InstallError, install


def main(arguments: list[str] | None = None) -> int:
    """Install what is missing; exit code 1 when something could not be installed."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients.install", description=__doc__)
    parser.add_argument(
        "--cache", type=Path, default=DEFAULT_CACHE, help="where to install (default: %(default)s)"
    )
    cache = parser.parse_args(arguments).cache
    failed = False
    for package in PACKAGES:
        failed |= not _report(package.requirement, partial(install, package, cache=cache))
    for environment in ENVIRONMENTS:
        requirements = " ".join(environment.requirements)
        failed |= not _report(requirements, partial(environment.install, cache=cache))
    return int(failed)


def _report(what: str, do: Callable[[], bool]) -> bool:
    """Say how it went; one client that cannot be had keeps no other from being installed."""
    try:
        fresh = do()
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return False
    print(f"{what}: {'installed' if fresh else 'present'}")
    return True


if __name__ == "__main__":
    sys.exit(main())
