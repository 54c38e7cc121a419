"""How an error crosses a process boundary: a plain dictionary, made and read here and nowhere else.

Rules of this file: what is no `ToolhostError` crosses as an incident id, its text stays in this process's log;
an envelope can always be packed; an envelope from a peer is untrusted, a malformed one still gives an error.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from typing import Any

from toolhost_sdk.errors import InternalError, ToolhostError, error_class

logger = logging.getLogger(__name__)

_MAX_TEXT = 64 << 10
_MAX_NOTES = 32
_MAX_DEPTH = 16
_MAX_ITEMS = 1000


def to_envelope(exc: BaseException) -> dict[str, Any]:
    """Describe *exc* for another process: `code`, `message`, `retryable`, `details`, `notes`.

    A group that holds one exception is that exception, since task groups wrap what a handler raises.
    """
    error = known_error(exc)
    return {
        "code": error.code,
        "message": error.message[:_MAX_TEXT],
        "retryable": error.retryable,
        "details": {str(key): _plain(value, _MAX_DEPTH) for key, value in error.details.items()},
        "notes": [str(note)[:_MAX_TEXT] for note in getattr(error, "__notes__", ())][:_MAX_NOTES],
    }


def from_envelope(envelope: Mapping[str, Any]) -> ToolhostError:
    """Rebuild an error. A code this release does not know gives the root class, with that code kept on it."""
    code = _text(envelope.get("code")) or InternalError.code
    cls = error_class(code)
    details = envelope.get("details")
    error = cls.__new__(cls)
    # Subclasses may ask for other arguments; every one of them is complete after the root's constructor.
    ToolhostError.__init__(
        error,
        _text(envelope.get("message")),
        **({str(k): v for k, v in details.items()} if isinstance(details, Mapping) else {}),
    )
    retryable = envelope.get("retryable") is True
    if (cls.code, cls.retryable) != (code, retryable):
        vars(error).update(code=code, retryable=retryable)
    notes = envelope.get("notes")
    for note in notes if isinstance(notes, list) else ():
        error.add_note(_text(note))
    return error


def known_error(exc: BaseException) -> ToolhostError:
    """*exc* itself where it belongs to the tree, else an `InternalError` whose incident id leads to the log."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    if isinstance(exc, ToolhostError):
        return exc
    incident = secrets.token_hex(8)
    logger.error("incident %s", incident, exc_info=exc)
    return InternalError(f"internal error; the log has it as incident {incident!r}", incident=incident)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _plain(value: object, depth: int) -> Any:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and -(1 << 63) <= value < (1 << 64):
        return int(value)
    if isinstance(value, str | bytes):
        return value[:_MAX_TEXT]
    if depth and isinstance(value, Mapping):
        return {str(k): _plain(v, depth - 1) for k, v in list(value.items())[:_MAX_ITEMS]}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth - 1) for item in list(value)[:_MAX_ITEMS]]
    return repr(value)[:_MAX_TEXT]
