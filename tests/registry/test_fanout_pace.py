"""How fast the fan-out appends, by what the log tells of others."""

import pytest

from registry.pace import (
    ALONE_MESSAGES,
    BESIDE_OTHERS_MESSAGES,
    MAX_REST_SECONDS,
    OTHERS_SECONDS,
    RESTS_TIMES,
    Pace,
)

LATER = OTHERS_SECONDS + 1.0


def test_it_begins_as_if_others_wrote() -> None:
    """Agents that register as a large client is deleted: nobody knows yet that they are there."""
    assert Pace(12_000, last=10, now=0.0).messages(0.0) == BESIDE_OTHERS_MESSAGES


def test_nobody_else_is_made_way_for() -> None:
    """Auditors: where nobody waits the ends of a million grants are there as soon as the log can take them."""
    pace = Pace(100_000, last=10, now=0.0)
    assert pace.messages(LATER) == ALONE_MESSAGES
    assert pace.rest(200, last=210, took=0.01, now=LATER) == 0.0


def test_messages_of_others_between_its_own_make_it_step_aside() -> None:
    """Agents: whichever registry they register with, the fan-out sees that they do."""
    pace = Pace(100_000, last=10, now=0.0)
    pace.rest(200, last=210, took=0.01, now=LATER)
    assert pace.rest(200, last=411, took=0.01, now=LATER) == pytest.approx(0.01 * RESTS_TIMES)
    assert pace.messages(LATER) == BESIDE_OTHERS_MESSAGES
    assert pace.messages(LATER + OTHERS_SECONDS) == ALONE_MESSAGES


def test_a_slow_log_is_left_alone_for_longer_but_not_for_ever() -> None:
    """Auditors: a log that is busy for a moment does not put the fan-out off for minutes."""
    pace = Pace(100_000, last=10, now=0.0)
    assert pace.rest(50, last=60, took=0.04, now=0.5) == pytest.approx(0.04 * RESTS_TIMES)
    assert pace.rest(50, last=110, took=3.0, now=1.0) == MAX_REST_SECONDS


def test_it_is_never_faster_than_it_may_be() -> None:
    """Admins: the read model keeps up with what others do while the ends are written."""
    pace = Pace(1_000, last=0, now=0.0)
    now = LATER
    for number in range(1, 6):
        now += 0.01
        now += pace.rest(200, last=200 * number, took=0.01, now=now)
    assert now - LATER >= 5 * 200 / 1_000 - 0.05


def test_what_a_stall_cost_is_not_caught_up_with() -> None:
    """Admins: after a stall of the log the read model is not flooded with what was missed."""
    pace = Pace(1_000, last=0, now=0.0)
    pace.rest(200, last=200, took=0.01, now=LATER)
    assert pace.rest(200, last=400, took=0.01, now=LATER + 60.0) == pytest.approx(0.2, abs=0.02)
