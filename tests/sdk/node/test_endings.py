"""What endings mean, and which moves between states there are."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from toolhost_sdk.errors import InternalError
from toolhost_sdk.node.endings import MOVES, Ending, Facts, decide, move
from toolhost_sdk.node.port import TERMINAL, JobState


def exited(code: int) -> int:
    return code << 8


@pytest.mark.parametrize(
    ("facts", "ending"),
    [
        ({"status": exited(0)}, {"state": "exited", "exit_code": 0, "shell_status": 0}),
        ({"status": exited(70)}, {"state": "exited", "exit_code": 70, "shell_status": 70}),
        ({"status": exited(143)}, {"state": "exited", "exit_code": 143, "shell_status": 143}),
        ({"status": 15}, {"state": "killed", "signal": 15, "shell_status": 143}),
        ({"status": 11 | 0x80}, {"state": "killed", "signal": 11, "shell_status": 139}),
        (
            {"status": 9, "cause": "timeout"},
            {"state": "killed", "signal": 9, "shell_status": 137, "cause": "timeout", "timed_out": True},
        ),
        (
            {"status": exited(0), "cause": "timeout"},
            {"state": "exited", "exit_code": 0, "shell_status": 0, "cause": "timeout", "timed_out": True},
        ),
        (
            {"status": 15, "cause": "idle_timeout"},
            {
                "state": "killed",
                "signal": 15,
                "shell_status": 143,
                "cause": "idle_timeout",
                "timed_out": True,
            },
        ),
        (
            {"status": 15, "cause": "cancelled"},
            {"state": "killed", "signal": 15, "shell_status": 143, "cause": "cancelled", "cancelled": True},
        ),
        (
            {"status": 15, "cause": "lease_ended"},
            {"state": "killed", "signal": 15, "shell_status": 143, "cause": "lease_ended"},
        ),
        (
            {"status": 9, "oom_kills": 1},
            {"state": "killed", "signal": 9, "shell_status": 137, "cause": "oom", "oom_killed": True},
        ),
        ({"status": 9}, {"state": "killed", "signal": 9, "shell_status": 137}),
        ({"status": 15, "oom_kills": 1}, {"state": "killed", "signal": 15, "shell_status": 143}),
        (
            {"status": exited(127), "start_error": "not_found"},
            {"state": "start_failed", "exit_code": 127, "shell_status": 127},
        ),
        (
            {"status": exited(126), "start_error": "bad_cwd"},
            {"state": "start_failed", "exit_code": 126, "shell_status": 126},
        ),
        ({"status": None, "start_error": "other"}, {"state": "start_failed"}),
        ({"lost": "supervisor_exited"}, {"state": "lost", "reason": "supervisor_exited"}),
        (
            {"status": exited(0), "lost": "supervisor_exited", "cause": "cancelled"},
            {"state": "lost", "reason": "supervisor_exited", "cause": "cancelled", "cancelled": True},
        ),
        ({"status": None}, {"state": "lost", "reason": "not_waited"}),
    ],
)
def test_every_row_of_the_table_of_endings(facts: dict[str, Any], ending: dict[str, Any]) -> None:
    """ZERO-2 ZERO-8 END-R1"""
    assert decide(Facts(**facts)) == Ending(**ending)


def test_an_illegal_move_raises_and_terminal_states_lead_nowhere() -> None:
    """Section 4: the table is a dict; what is not in it does not happen."""
    states: tuple[JobState, ...] = get_args(JobState)

    assert set(MOVES) == set(states)
    for current in states:
        assert (MOVES[current] == frozenset()) == (current in TERMINAL)
        for new in states:
            if new in MOVES[current]:
                assert move(current, new) == new
            else:
                with pytest.raises(InternalError, match=new):
                    move(current, new)
