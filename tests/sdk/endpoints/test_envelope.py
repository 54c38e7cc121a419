"""Errors as plain data: every class survives, what is not ours says nothing, garbage gives an error."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolhost_sdk.endpoints.codec import Packer, unpack
from toolhost_sdk.endpoints.envelope import from_envelope, to_envelope
from toolhost_sdk.errors import InternalError, NotFoundError, ToolhostError, UnavailableError, error_classes

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


@pytest.mark.parametrize("cls", list(error_classes()), ids=lambda cls: cls.__name__)
def test_every_error_class_survives_the_wire_and_a_pickle(cls: type[ToolhostError]) -> None:
    error = cls("'it' failed", limit=3, names=["a"])
    error.add_note("a note")

    crossed = from_envelope(unpack(Packer().pack(to_envelope(error))))

    for copy in (crossed, pickle.loads(pickle.dumps(crossed))):
        assert type(copy) is cls
        assert (copy.message, copy.details, copy.__notes__) == (error.message, error.details, ["a note"])
        assert (copy.code, copy.retryable) == (cls.code, cls.retryable)


def test_an_unknown_exception_becomes_an_incident_that_the_log_explains(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        envelope = to_envelope(ValueError("the password is 'tulip'"))

    incident = envelope["details"]["incident"]
    assert envelope == {
        "code": "internal",
        "message": f"internal error; the log has it as incident {incident!r}",
        "retryable": False,
        "details": {"incident": incident},
        "notes": [],
    }
    assert incident in caplog.text
    assert "tulip" in caplog.text


def test_a_group_of_one_is_its_member_and_a_group_of_two_an_incident() -> None:
    missing = NotFoundError("no 'x'")

    assert to_envelope(ExceptionGroup("", [ExceptionGroup("", [missing])])) == to_envelope(missing)
    assert to_envelope(ExceptionGroup("", [missing, missing]))["code"] == "internal"


def test_a_code_of_a_later_release_keeps_its_code_and_its_retryability() -> None:
    envelope = {"code": "too_new", "message": "m", "retryable": True, "details": {}, "notes": []}

    error = from_envelope(envelope)

    assert type(error) is ToolhostError
    assert to_envelope(error) == envelope


def test_details_that_are_no_plain_data_are_described() -> None:
    endless: list[Any] = []
    endless.append(endless)

    error = UnavailableError("m", path=Path("x"), big=1 << 70, keys={1: {2}}, endless=endless)

    details = to_envelope(error)["details"]
    Packer().pack(details)
    assert details["path"] == "PosixPath('x')"
    assert details["big"] == str(1 << 70)
    assert details["keys"] == {"1": [2]}


@given(st.dictionaries(st.sampled_from(["code", "message", "retryable", "details", "notes"]), PLAIN))
def test_a_malformed_envelope_gives_an_error_all_the_same(envelope: dict[str, Any]) -> None:
    error = from_envelope(envelope)

    assert isinstance(error, ToolhostError)
    Packer().pack(to_envelope(error))
    str(error)


def test_an_empty_envelope_is_our_fault() -> None:
    assert type(from_envelope({})) is InternalError
