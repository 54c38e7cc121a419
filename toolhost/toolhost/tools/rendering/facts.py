"""Words for the facts of a record: how it ended, how long, how much. One trailer line holds them."""

from __future__ import annotations

import signal

from toolhost_sdk.node.port import JobRecord


def size(count: int) -> str:
    """`812 B`, `31 KiB`, `2.1 MiB`."""
    if count < 1024:
        return f"{count} B"
    value, unit = count / 1024, "KiB"
    for larger in ("MiB", "GiB"):
        if value >= 1000:
            value, unit = value / 1024, larger
    return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"


def seconds(value: float) -> str:
    """`0.04 s`, `12.4 s`, `3 m 5 s`, `2 h 10 m`."""
    if value < 60:
        return f"{value:.2f} s" if value < 0.095 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} m" if hours else f"{minutes} m {rest} s"


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def ending(record: JobRecord) -> str:
    """How the job ended, or that it has not. An unknown status is called unknown."""
    words = _status(record)
    if record.timed_out:
        return f"timed out after {record.timeout or 0:g} s, {words}"
    if record.cancelled:
        return f"cancelled, {words}"
    if record.oom_killed:
        return f"out of memory, {words}"
    return f"{words} (cause: {record.cause})" if record.cause and record.done else words


def _status(record: JobRecord) -> str:
    match record.state:
        case "exited" | "background":
            words = f"exit {record.exit_code}"
            code = record.exit_code or 0
            if 128 < code < 128 + signal.NSIG:
                words += f" (128+{code - 128}: {signal_name(code - 128)} in a child)"
            return words
        case "killed" if record.signal:
            return f"killed by {signal_name(record.signal)}"
        case "start_failed":
            return f"could not start: exit {record.exit_code} ({record.start_error})"
        case "lost":
            return f"lost, exit status unknown ({record.reason or 'reason unknown'})"
        case _:
            return record.state


def trailer(*facts: str | None) -> str:
    """`[exit 1 | 12.4 s | cwd /app | 2.1 MiB out, 31 KiB shown | job-3]`; None and "" are left out."""
    return f"[{' | '.join(fact for fact in facts if fact)}]"
