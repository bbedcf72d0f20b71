from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grantbook import positions
from grantbook.positions import InvalidPosition, Position

CREATED = datetime(2026, 3, 14, 9, 26, 53, 589793, tzinfo=UTC)


@given(st.sampled_from(["log", "activity"]), st.integers(0, 16**8 - 1), st.integers(0, 2**63 - 1))
def test_a_position_reads_back_as_itself(kind: positions.Kind, identity: int, sequence: int) -> None:
    """Protects callers who hand back what they were given."""
    position = Position(kind, f"{identity:08x}", sequence)
    assert positions.parse(str(position)) == position


@given(st.text() | st.from_regex(r"(log|activity)-[0-9a-f]{7,9}-[0-9]{1,20}", fullmatch=True))
def test_any_other_text_is_refused_and_nothing_else_happens(text: str) -> None:
    """Protects the API from what callers make up: one text a position, one position a text."""
    try:
        position = positions.parse(text)
    except InvalidPosition:
        return
    assert str(position) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "log-0a1b2c3d",
        "log-0a1b2c3d-",
        "log-0a1b2c3d--1",
        "log-0a1b2c3d-01",
        "log-0a1b2c3d-1\n",
        "log-0A1B2C3D-1",
        "log-0a1b2c3d-\u0661",
        "feed-0a1b2c3d-1",
        " log-0a1b2c3d-1",
        "log-0a1b2c3d-99999999999999999999",
    ],
)
def test_near_misses_are_refused(text: str) -> None:
    """Protects against positions that differ as text and not as numbers."""
    with pytest.raises(InvalidPosition, match="log-0a1b2c3d-42"):
        positions.parse(text)


def test_a_stream_made_anew_has_another_identity() -> None:
    """Protects readers from comparing positions of two logs."""
    assert positions.identity("GRANTBOOK", CREATED) == "012a38c6"
    assert positions.identity("GRANTBOOK", CREATED + timedelta(microseconds=1)) != "012a38c6"
    assert positions.identity("GRANTBOOK_ACTIVITY", CREATED) != "012a38c6"
