"""What every channel provider does: one suite, each peer in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import psutil
import pytest
from tests.contracts.channel_harness import Harness, RayHarness, RelayHarness, UnixHarness
from tests.contracts.channel_peer import SMALL

from toolhost_sdk.endpoints.calling import LinkChannel
from toolhost_sdk.endpoints.channel import CallHeader, Channel
from toolhost_sdk.errors import (
    CancelledByCaller,
    CapacityError,
    DeadlineExceededError,
    InternalError,
    LimitExceededError,
    NotFoundError,
    UnavailableError,
    UsageError,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(
    scope="module", params=["unix", "unix-uvloop", "relay", pytest.param("ray", marks=pytest.mark.ray)]
)
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    if request.param == "ray":
        request.getfixturevalue("local_ray")
        harness: Harness = RayHarness()
    else:
        directory = tmp_path_factory.mktemp("channel")
        path = directory / "peer.sock"
        harness = (
            RelayHarness(path)
            if request.param == "relay"
            else UnixHarness(path, uvloop=request.param == "unix-uvloop")
        )
    yield harness
    harness.stop()


@pytest.fixture(scope="module")
def anyio_backend(peer: Harness) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": peer.uvloop}


@pytest.fixture
def name() -> str:
    """What the marks of one test are called: the peer outlives the test."""
    return secrets.token_hex(4)


@pytest.fixture
async def channel(peer: Harness) -> AsyncIterator[LinkChannel]:
    with anyio.fail_after(60):
        opened = peer.channel()
        try:
            yield opened
        finally:
            await opened.aclose()


async def marked(channel: Channel, name: str, count: int = 1) -> None:
    """Wait until the peer saw a mark."""
    await channel.request("probe", "wait_for", [name, count], header=CallHeader(timeout=10))


async def settled(channel: Channel, name: str) -> int:
    """The count of a mark once it stands still for several looks."""
    count, still = -1, 0
    while still < 5:
        now: int = await channel.request("probe", "marks", name)
        count, still = now, still + 1 if now == count else 0
        await anyio.sleep(0.02)
    return count


async def test_a_request_returns_the_result_of_the_handler(channel: LinkChannel) -> None:
    payload: dict[str, Any] = {
        "none": None,
        "numbers": [0, -1, 2**63, 1.5, True],
        "text": "\u00e9\udce9",
        "bytes": b"\x00\xff",
        "nested": {"list": [[], {}]},
    }

    assert await channel.request("probe", "echo", payload) == payload


async def test_the_handler_sees_the_header_and_the_endpoint(channel: LinkChannel) -> None:
    header = CallHeader(timeout=7.5, meta={"principal": "ann", "trace": ["a", 1]})

    seen = await channel.request("probe", "describe", header=header)

    del seen["peer"]
    assert seen == {"endpoint": "probe", "call_id": header.call_id, "timeout": 7.5, "meta": header.meta}


async def test_frames_arrive_in_order_and_the_result_is_the_last(channel: LinkChannel) -> None:
    async with channel.call("probe", "count", 1000) as stream:
        frames = [(frame.kind, frame.payload) async for frame in stream]

    assert frames == [("item", number) for number in range(1000)] + [("result", 1000)]


async def test_every_kind_of_frame_keeps_its_kind(channel: LinkChannel) -> None:
    kinds = ["accepted", "progress", "item", "ask", "handle", "log", "changed", "detach"]

    async with channel.call("probe", "kinds", kinds) as stream:
        frames = [(frame.kind, frame.payload) async for frame in stream]

    assert frames == [*((kind, {"kind": kind}) for kind in kinds), ("result", None)]


async def test_an_error_of_the_tree_arrives_whole(channel: LinkChannel) -> None:
    with pytest.raises(CapacityError) as caught:
        await channel.request("probe", "fail")

    error = caught.value
    assert (type(error), error.code, error.retryable) == (CapacityError, "capacity", True)
    assert error.message == "no room for 'it'; the limit is 3"
    assert error.details == {"limit": 3, "names": ["a", "b"]}
    assert error.__notes__ == ["try again later"]


async def test_an_error_out_of_a_task_group_arrives_as_itself(channel: LinkChannel) -> None:
    with pytest.raises(NotFoundError, match=r"^no 'thing' here$"):
        await channel.request("probe", "fail_in_group")


@pytest.mark.parametrize("method", ["leak", "exit", "bad_result"])
async def test_an_unknown_exception_leaks_nothing_and_leaves_the_peer_alive(
    channel: LinkChannel, method: str
) -> None:
    with pytest.raises(InternalError) as caught:
        await channel.request("probe", method, "the password is 'tulip'")

    assert "tulip" not in caught.value.message
    assert set(caught.value.details) == {"incident"}
    assert caught.value.details["incident"] in caught.value.message
    assert await channel.request("probe", "echo", 1) == 1


async def test_a_handler_cannot_emit_a_last_frame(channel: LinkChannel) -> None:
    with pytest.raises(UsageError):
        await channel.request("probe", "bad_emit")


async def test_a_payload_that_is_no_plain_data_is_refused_before_it_is_sent(channel: LinkChannel) -> None:
    with pytest.raises(UsageError):
        await channel.request("probe", "echo", {"value": object()})

    assert await channel.request("probe", "echo", 1) == 1


async def test_a_tuple_for_a_key_ends_its_call_alone(channel: LinkChannel) -> None:
    with pytest.raises(UsageError):
        await channel.request("probe", "echo", {(1, 2): 3})
    link = channel.standing()
    async with channel.call("probe", "upstream") as stream:
        await stream.send({(1, 2): 3})
        with pytest.raises(UsageError):
            await anext(aiter(stream))
    for how in ("emit", "return"):
        with pytest.raises(InternalError):
            await channel.request("probe", "bad_key", how)

    assert await channel.request("probe", "echo", {1: {b"k": 2.5}}) == {1: {b"k": 2.5}}
    assert channel.standing() is link


@pytest.mark.parametrize("change", [{"timeout": "1"}, {"timeout": True}, {"meta": None}, {"call_id": 7}])
async def test_a_header_of_wrong_types_is_refused_before_it_is_sent(
    channel: LinkChannel, change: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        await channel.request("probe", "echo", header=CallHeader(**change))


async def test_cancel_ends_the_handler_and_the_stream(channel: LinkChannel, name: str) -> None:
    async with channel.call("probe", "hang", name) as stream:
        await marked(channel, f"started {name}")
        await stream.cancel()
        await stream.cancel()
        with pytest.raises(CancelledByCaller):
            await anext(aiter(stream))

    # Leaving the block waited for the handler's `finally`.
    assert await channel.request("probe", "marks", f"ended {name}") == 1


async def test_nothing_under_way_is_delivered_after_a_cancel(channel: LinkChannel, name: str) -> None:
    async with channel.call("probe", "flood", [name, 10]) as stream:
        frames = aiter(stream)
        for _ in range(SMALL.messages):  # half of it is granted again: frames are on their way
            await anext(frames)
        await stream.cancel()
        await marked(channel, f"ended {name}")
        with pytest.raises(CancelledByCaller):
            await anext(frames)


async def test_leaving_the_block_early_cancels_the_handler(channel: LinkChannel, name: str) -> None:
    async with channel.call("probe", "hang", name):
        await marked(channel, f"started {name}")

    assert await channel.request("probe", "marks", f"ended {name}") == 1


async def test_a_call_cancelled_at_once_still_ends(channel: LinkChannel, name: str) -> None:
    await channel.request("probe", "echo", None)
    started = time.monotonic()

    async with channel.call("probe", "hang", name) as stream:
        await stream.cancel()

    # Its last frame came: had none come, leaving the block would have taken a second.
    assert time.monotonic() - started < 0.9
    begun = await channel.request("probe", "marks", f"started {name}")
    assert await channel.request("probe", "marks", f"ended {name}") == begun


async def test_cancelling_the_callers_task_ends_the_handler(channel: LinkChannel, name: str) -> None:
    task = asyncio.create_task(channel.request("probe", "hang", name))
    await marked(channel, f"started {name}")

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await channel.request("probe", "marks", f"ended {name}") == 1


async def test_a_cancelled_scope_waits_for_the_end_of_the_handler(channel: LinkChannel, name: str) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(channel.request, "probe", "hang", name)
        await marked(channel, f"started {name}")
        group.cancel_scope.cancel()

    assert await channel.request("probe", "marks", f"ended {name}") == 1


async def test_a_handler_deaf_to_cancel_holds_its_caller_for_a_second_at_most(
    channel: LinkChannel, name: str
) -> None:
    async with channel.call("probe", "deaf", name):
        await marked(channel, f"started {name}")
        left = time.monotonic()

    assert 0.9 < time.monotonic() - left < 3
    await channel.request("probe", "mark", f"release {name}")
    assert await channel.request("probe", "echo", 1) == 1


async def test_a_deadline_ends_both_sides(channel: LinkChannel, name: str) -> None:
    await channel.request("probe", "echo", None)
    started = time.monotonic()

    with pytest.raises(DeadlineExceededError) as caught:
        await channel.request("probe", "hang", name, header=CallHeader(timeout=0.2))

    assert 0.2 <= time.monotonic() - started < 2
    assert caught.value.message == "call of 'probe.hang' exceeded its timeout of 0.2 s"
    await marked(channel, f"ended {name}")


async def test_a_deadline_holds_on_the_callers_clock_when_the_handler_is_deaf(
    channel: LinkChannel, name: str
) -> None:
    await channel.request("probe", "echo", None)
    async with channel.call("probe", "deaf", name, header=CallHeader(timeout=0.2)) as stream:
        with pytest.raises(DeadlineExceededError):
            await anext(aiter(stream))
        await channel.request("probe", "mark", f"release {name}")


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
async def test_a_timeout_that_is_already_over_runs_nothing(
    channel: LinkChannel, name: str, timeout: float
) -> None:
    with pytest.raises(DeadlineExceededError):
        await channel.request("probe", "hang", name, header=CallHeader(timeout=timeout))

    assert await channel.request("probe", "marks", f"started {name}") == 0


async def test_a_stalled_reader_stops_its_producer_and_nobody_else(
    peer: Harness, channel: LinkChannel, name: str
) -> None:
    size = 1000
    async with channel.call("probe", "flood", [name, size]) as stream:
        await marked(channel, f"sent {name}")
        sent = await settled(channel, f"sent {name}")
        assert sent <= SMALL.messages * peer.hops
        assert await channel.request("probe", "count", 500) == 500

        frames = aiter(stream)
        for _ in range(4 * SMALL.messages):
            await anext(frames)
        await marked(channel, f"sent {name}", 4 * SMALL.messages)

    await marked(channel, f"ended {name}")


async def test_a_stalled_reader_holds_bounded_bytes(peer: Harness, channel: LinkChannel, name: str) -> None:
    size = 48 << 10
    await channel.request("probe", "echo", None)
    before = psutil.Process().memory_info().rss

    async with contextlib.AsyncExitStack() as stack:
        for number in range(20):
            await stack.enter_async_context(channel.call("probe", "flood", [f"{name}.{number}", size]))
        for number in range(20):
            await marked(channel, f"sent {name}.{number}")
        await settled(channel, f"sent {name}.19")
        # One frame may cross the window, and no more.
        for number in range(20):
            sent = await channel.request("probe", "marks", f"sent {name}.{number}")
            assert sent <= (SMALL.size // size + 2) * peer.hops - 1

    assert psutil.Process().memory_info().rss - before < 64 << 20


async def test_a_frame_larger_than_the_window_passes(channel: LinkChannel) -> None:
    size = 8 * SMALL.size

    async with channel.call("probe", "big_item", size) as stream:
        frames = [frame.payload async for frame in stream]

    assert frames == [bytes(size), b"after", None]


async def test_messages_go_upstream_in_order(channel: LinkChannel) -> None:
    messages = [{"number": number} for number in range(100)]

    async with channel.call("probe", "upstream") as stream:
        frames = aiter(stream)
        for message in messages:
            await stream.send(message)
            assert (await anext(frames)).payload == message
        await stream.send(None)
        assert (await anext(frames)).payload == messages
        await stream.send("after the end")


async def test_a_handler_that_does_not_read_stops_its_sender_and_nobody_else(
    peer: Harness, channel: LinkChannel, name: str
) -> None:
    sent = 0
    async with channel.call("probe", "never_reads", name) as stream:
        await marked(channel, f"started {name}")
        with anyio.move_on_after(0.5):
            while True:
                await stream.send(b"x")
                sent += 1
        assert sent == SMALL.messages * peer.hops
        assert await channel.request("probe", "echo", 1) == 1

        await channel.request("probe", "mark", f"release {name}")
        assert [frame.payload async for frame in stream] == ["done"]


async def test_a_payload_of_ten_mebibytes_goes_both_ways(channel: LinkChannel) -> None:
    payload = bytes(range(256)) * (40 << 10)

    assert await channel.request("probe", "echo", payload) == payload


async def test_a_payload_over_the_frame_limit_is_an_error_and_the_connection_stays(
    channel: LinkChannel,
) -> None:
    pid = await channel.request("probe", "pid")
    link = channel.standing()

    with pytest.raises(LimitExceededError) as caught:
        await channel.request("probe", "echo", bytes(SMALL.max_frame))

    assert caught.value.details["limit"] == SMALL.max_frame
    assert await channel.request("probe", "pid") == pid
    assert channel.standing() is link


@pytest.mark.parametrize("method", ["big_result", "big_item"])
async def test_an_answer_over_the_frame_limit_is_an_error_and_the_connection_stays(
    channel: LinkChannel, method: str
) -> None:
    with pytest.raises(LimitExceededError):
        await channel.request("probe", method, SMALL.max_frame)

    link = channel.standing()
    assert await channel.request("probe", "echo", 1) == 1
    assert channel.standing() is link


async def test_calls_over_the_limit_of_a_connection_are_refused_one_by_one(
    channel: LinkChannel, name: str
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(SMALL.calls):
            await stack.enter_async_context(channel.call("probe", "never_reads", name))
        with pytest.raises(CapacityError):
            await channel.request("probe", "echo", 1)
        await channel.aclose()


async def test_two_hundred_calls_at_once_do_not_mix(channel: LinkChannel) -> None:
    async def one(marker: int) -> None:
        payload = {"marker": marker, "pad": b"x" * (marker * 37)}
        results[marker] = await channel.request("probe", "echo", payload) == payload
        async with channel.call("probe", "count", marker % 23) as stream:
            frames = [frame.payload async for frame in stream]
        results[marker] &= frames == [*range(marker % 23), marker % 23]

    results: dict[int, bool] = {}
    async with anyio.create_task_group() as group:
        for marker in range(200):
            group.start_soon(one, marker)

    assert results == dict.fromkeys(range(200), True)


async def test_a_call_in_flight_fails_when_its_peer_is_killed_and_the_next_one_reconnects(
    peer: Harness, channel: LinkChannel, name: str
) -> None:
    pid = await channel.request("probe", "pid")
    async with channel.call("probe", "flood", [name, 10]) as stream:
        frames = aiter(stream)
        await anext(frames)
        await peer.kill(pid)
        with pytest.raises(UnavailableError):
            while True:
                await anext(frames)

    peer.revive()
    while True:  # a peer that comes back is unavailable for a while; the fixture bounds this
        try:
            assert await channel.request("probe", "pid") != pid
            break
        except UnavailableError:
            await anyio.sleep(0.05)


async def test_the_handler_learns_that_its_caller_left(
    peer: Harness, channel: LinkChannel, name: str
) -> None:
    if not peer.tells_departure:
        pytest.skip("a relay keeps its own connection to the peer, so leases belong on direct channels")
    other = peer.channel()
    await other.request("probe", "watch_peer", name)
    task = asyncio.create_task(other.request("probe", "hang", name))
    await marked(channel, f"started {name}")
    assert await channel.request("probe", "marks", f"gone {name}") == 0

    await other.aclose()

    with pytest.raises(UnavailableError):
        await task
    await marked(channel, f"gone {name}")
    await marked(channel, f"ended {name}")


async def test_a_closed_channel_stays_closed(channel: LinkChannel) -> None:
    await channel.request("probe", "echo", 1)

    await channel.aclose()
    await channel.aclose()

    with pytest.raises(UnavailableError):
        await channel.request("probe", "echo", 1)
