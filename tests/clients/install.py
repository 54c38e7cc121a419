"""Install every client program the tests drive: `python -m tests.clients.install`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.clients.node import DEFAULT_CACHE, PACKAGES, InstallError, install


def main(arguments: list[str] | None = None) -> int:
    """Install what is missing; exit code 1 when something could not be installed."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients.install", description=__doc__)
    parser.add_argument(
        "--cache", type=Path, default=DEFAULT_CACHE, help="where to install (default: %(default)s)"
    )
    cache = parser.parse_args(arguments).cache
    for package in PACKAGES:
        try:
            fresh = install(package, cache=cache)
        except InstallError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print(f"{package.requirement}: {'installed' if fresh else 'present'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
