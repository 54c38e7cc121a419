"""Passing calls on from one channel to another: how a process that holds a channel lends it to its neighbours."""

from __future__ import annotations

import asyncio
from typing import Any

from toolhost_sdk.endpoints.channel import CallStream, Channel, Dispatcher, IncomingCall


def relay_to(channel: Channel) -> Dispatcher:
    """A dispatcher that makes every call it gets on *channel*: frames, upstream messages, cancellation, deadlines and
    errors pass through as they are."""

    async def dispatch(call: IncomingCall) -> Any:
        # The deadline is counted anew from here: a hop takes less than anybody's clock is worth.
        async with channel.call(call.endpoint, call.method, call.payload, header=call.header) as stream:
            upstream = asyncio.get_running_loop().create_task(_pass_upstream(call, stream))
            try:
                async for frame in stream:
                    if frame.kind == "result":
                        return frame.payload
                    await call.emit(frame.kind, frame.payload)
            finally:
                upstream.cancel()
        raise AssertionError("a call stream ended without a last frame")

    return dispatch


async def _pass_upstream(call: IncomingCall, stream: CallStream) -> None:
    while True:
        await stream.send(await call.receive())
