"""The translation of Ray's errors: complete, and silent about the text."""

from __future__ import annotations

import inspect

import pytest
import ray.exceptions

from toolhost_sdk.endpoints.errors_ray import INCIDENTS, TRANSLATION, from_ray
from toolhost_sdk.errors import CapacityError, InternalError, UnavailableError


def ray_errors() -> list[type[ray.exceptions.RayError]]:
    return [
        cls
        for cls in vars(ray.exceptions).values()
        if inspect.isclass(cls) and issubclass(cls, ray.exceptions.RayError)
    ]


@pytest.mark.parametrize("cls", ray_errors(), ids=lambda cls: cls.__name__)
def test_every_exception_of_ray_has_its_place(cls: type[Exception]) -> None:
    ancestors = [known for known in cls.__mro__ if known in TRANSLATION or known in INCIDENTS]

    assert ancestors
    assert ancestors[0] is not ray.exceptions.RayError or cls is ray.exceptions.RayError


def test_a_task_error_stands_for_what_the_remote_code_raised() -> None:
    cause = CapacityError("full", limit=3)
    wrapped = ray.exceptions.RayTaskError("f", "traceback", cause, proctitle="p", pid=1, ip="127.0.0.1")

    assert from_ray(wrapped, "actor 'a'") is cause
    assert from_ray(wrapped.as_instanceof_cause(), "actor 'a'") is cause


def test_foreign_text_stays_here() -> None:
    wrapped = ray.exceptions.RayTaskError(
        "f", "tb", ValueError("tulip"), proctitle="p", pid=1, ip="127.0.0.1"
    )

    error = from_ray(wrapped, "actor 'a'")

    assert type(error) is InternalError
    assert "tulip" not in str(error)


def test_a_dead_actor_is_unavailable_and_may_be_tried_again() -> None:
    error = from_ray(ray.exceptions.ActorDiedError(), "actor 'a'")

    assert type(error) is UnavailableError
    assert error.message == "actor 'a' died or cannot be reached; a running call may have run"
    assert error.retryable
