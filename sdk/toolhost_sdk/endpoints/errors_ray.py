"""What Ray raises, in our words: one table. The text of Ray's messages stays in the log."""

from __future__ import annotations

import logging
from typing import Final

import ray.exceptions as rx

from toolhost_sdk.endpoints.envelope import known_error
from toolhost_sdk.errors import (
    CancelledByCaller,
    CapacityError,
    ConflictError,
    DeadlineExceededError,
    InternalError,
    NoSpaceError,
    NotFoundError,
    PlacementError,
    ToolhostError,
    UnauthenticatedError,
    UnavailableError,
)

logger = logging.getLogger(__name__)

TRANSLATION: Final[dict[type[BaseException], tuple[type[ToolhostError], str]]] = {
    rx.ActorAlreadyExistsError: (ConflictError, "{} exists already"),
    rx.ActorHandleNotFoundError: (NotFoundError, "{} is not known in this cluster"),
    rx.ActorPlacementGroupRemoved: (PlacementError, "{} lost its placement group"),
    rx.ActorUnschedulableError: (PlacementError, "no node can hold {}"),
    rx.AsyncioActorExit: (UnavailableError, "{} has left"),
    rx.AuthenticationError: (UnauthenticatedError, "the cluster refused the token for {}"),
    rx.GetTimeoutError: (DeadlineExceededError, "{} did not answer in time"),
    rx.LocalRayletDiedError: (UnavailableError, "the raylet of this node died while {} was called"),
    rx.NodeDiedError: (UnavailableError, "the node of {} died"),
    rx.ObjectLostError: (UnavailableError, "an answer of {} was lost with its node"),
    rx.ObjectStoreFullError: (CapacityError, "the object store is full; {} could not be called"),
    rx.OutOfDiskError: (NoSpaceError, "the disk under the object store is full; {} could not be called"),
    rx.OutOfMemoryError: (CapacityError, "the node of {} ran out of memory"),
    rx.PendingCallsLimitExceeded: (CapacityError, "too many calls wait for {}"),
    rx.PlasmaObjectNotAvailable: (UnavailableError, "an answer of {} is not available"),
    rx.RayActorError: (UnavailableError, "{} died or cannot be reached; a running call may have run"),
    rx.RaySystemError: (UnavailableError, "the cluster failed while {} was called; the call may have run"),
    rx.RpcError: (UnavailableError, "{} cannot be reached; a running call may have run"),
    rx.RuntimeEnvSetupError: (PlacementError, "the runtime environment of {} could not be made"),
    rx.TaskCancelledError: (CancelledByCaller, "the call of {} was cancelled"),
    rx.TaskPlacementGroupRemoved: (PlacementError, "{} lost its placement group"),
    rx.TaskUnschedulableError: (PlacementError, "no node can run {}"),
    rx.WorkerCrashedError: (UnavailableError, "the worker of {} crashed"),
}
# Our fault or a user's code: they become an incident. Named, so that a new exception of Ray fails a test.
INCIDENTS: Final[frozenset[type[BaseException]]] = frozenset(
    {
        rx.CrossLanguageError,
        rx.ObjectRefStreamEndOfStreamError,
        rx.OufOfBandObjectRefSerializationException,
        rx.RayError,
        rx.RayTaskError,
        rx.UnserializableException,
        rx.UserCodeException,
    }
)


def from_ray(exc: BaseException, target: str) -> ToolhostError:
    """The error of our tree for what Ray raised while *target* was called.

    A `RayTaskError` stands for its cause, which is what the remote code raised.
    """
    while isinstance(exc, rx.RayTaskError) and isinstance(exc.cause, BaseException):
        exc = exc.cause
    if isinstance(exc, ToolhostError):
        return exc
    for cls in type(exc).__mro__:
        if cls in TRANSLATION:
            error, words = TRANSLATION[cls]
            logger.debug("ray said of %s: %s", target, exc)
            return error(words.format(target))
    incident = known_error(exc)
    return InternalError(incident.message, **incident.details)
