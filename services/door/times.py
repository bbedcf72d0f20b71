"""Times that callers say: those that every reader can compute with, and no others."""

from datetime import UTC, datetime
from typing import Final

from door.problems import invalid_parameter

EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""Between these a time can be written in UTC, and kept by Postgres as the time that it is."""


def utc(name: str, moment: datetime) -> datetime:
    """The time in UTC. Raises an `invalid_parameter` problem, for the parameter `name`, when nobody can mean it."""
    if not EARLIEST <= moment <= LATEST:
        raise invalid_parameter(name, "a time between the years 1970 and 9999")
    return moment.astimezone(UTC)
