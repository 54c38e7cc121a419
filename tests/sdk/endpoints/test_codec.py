"""Frames and payloads: what goes in comes out, however it is cut; what is wrong is named and never worse."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolhost_sdk.endpoints.codec import (
    HEAD,
    FrameParser,
    Limits,
    Packer,
    ProtocolViolation,
    UnusablePayload,
    unpack,
)
from toolhost_sdk.errors import UsageError

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


def frame(kind: int, call: int, body: bytes) -> bytes:
    return HEAD.pack(len(body) + 9, kind, call) + body


@given(PLAIN)
def test_plain_data_comes_back_equal(payload: Any) -> None:
    assert unpack(Packer().pack(payload)) == payload


def test_text_with_lone_surrogates_passes() -> None:
    assert unpack(Packer().pack("a\udce9")) == "a\udce9"


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "payload", [object(), {1, 2}, 1 << 70, nested(1100)], ids=["object", "set", "int", "deep"]
)
def test_what_is_no_plain_data_is_refused_and_the_packer_works_on(payload: Any) -> None:
    packer = Packer()

    with pytest.raises(UsageError):
        packer.pack(["before", payload])

    assert packer.pack(1) == b"\x01"


BAD = {
    "empty": b"",
    "half": b"\x92\x01",
    "trailing": b"\x01\x01",
    "deep": b"\x91" * 5000 + b"\xc0",
    "huge array": b"\xdd\xff\xff\xff\xff",
    "huge arrays": b"\xdd\x00\x00\x01\x00" * 50 + b"\xc0" * 200,
    "huge text": b"\xdb\xff\xff\xff\xff",
    "extension": b"\xd4\x05\x00",
    "no UTF-8": b"\xa1\xff",
    "never used": b"\xc1",
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_a_malformed_body_is_a_violation(body: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        unpack(body)


def test_a_list_for_a_key_concerns_its_call_alone() -> None:
    with pytest.raises(UnusablePayload):
        unpack(Packer().pack({(1, 2): 3}))


@given(st.binary(max_size=300))
def test_random_bytes_are_a_value_or_a_violation(body: bytes) -> None:
    with contextlib.suppress(ProtocolViolation, UnusablePayload):
        unpack(body)


@given(
    st.lists(
        st.tuples(st.integers(0, 255), st.integers(0, 2**64 - 1), st.binary(max_size=9000)), max_size=12
    ),
    st.lists(st.integers(1, 40) | st.integers(1, 9000), max_size=60),
)
def test_frames_survive_any_cutting(frames: list[tuple[int, int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(frame(*one) for one in frames)
    parser = FrameParser(10_000)
    received = []

    for cut in [*cuts, len(stream)]:
        piece, stream = stream[:cut], stream[cut:]
        received += [(kind, call, bytes(body)) for kind, call, body in parser.feed(piece)]

    assert received == frames


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_random_streams_are_frames_or_a_violation(pieces: list[bytes]) -> None:
    parser = FrameParser(1024)
    with contextlib.suppress(ProtocolViolation):
        for piece in pieces:
            parser.feed(piece)


@pytest.mark.parametrize("length", [0, 8, 1025, 0xFFFFFFFF])
def test_a_frame_of_a_forbidden_length_is_a_violation_before_its_body_comes(length: int) -> None:
    with pytest.raises(ProtocolViolation):
        FrameParser(1024).feed(struct.pack(">IBQ", length, 0, 0))


@pytest.mark.parametrize("change", [{"max_frame": 10}, {"messages": 0}, {"size": -1}, {"calls": 1 << 40}])
def test_limits_out_of_range_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Limits(**change)
