"""A relay between the contract's caller and its peer: listens on its first argument, calls on the second."""

from __future__ import annotations

import asyncio
import sys

from tests.contracts.channel_peer import SMALL

from toolhost_sdk.endpoints.relay import relay_to
from toolhost_sdk.endpoints.unix_client import UnixChannel
from toolhost_sdk.endpoints.unix_server import serve_unix


async def _main(path: str, target: str) -> None:
    channel = UnixChannel(target, limits=SMALL)
    async with serve_unix(relay_to(channel), path, limits=SMALL):
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2]))
