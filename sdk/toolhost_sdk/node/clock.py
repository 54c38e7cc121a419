"""The boot clock: it never jumps and counts suspended time; a deadline is a time on it plus the boot it belongs to."""

from __future__ import annotations

import math
import time

from toolhost_sdk.errors import UsageError
from toolhost_sdk.node import procfs

BOOT_ID = procfs.boot_id()


def now() -> float:
    """Seconds on the boot clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def seconds(value: float | None, what: str, *, zero: bool = False) -> float | None:
    """Check a bound: a positive finite number, or None for no bound.

    Raises:
        UsageError: zero (unless allowed), negative, NaN, infinite or a bool.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{what}={value!r} is not a number of seconds")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise UsageError(f"{what}={value!r} must be a positive number of seconds, or None for no bound")
    return float(value)
