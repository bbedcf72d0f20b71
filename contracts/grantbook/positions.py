"""Positions: opaque tokens that say *which log* and *where in it*.

A token is `log-<identity>-<sequence>` or `activity-<identity>-<sequence>`. Callers compare tokens for equality and hand
them back; they never compute with them. The identity is the stream's: a position of a log that was replaced is
recognised, never silently compared with another log's.
"""

import hashlib
import re
from datetime import datetime
from typing import Final, Literal

from msgspec import Struct

Kind = Literal["log", "activity"]

MAX_SEQUENCE: Final = 2**63 - 1
"""No log comes that far, and no database counts further."""

_TOKEN: Final = re.compile(r"(log|activity)-([0-9a-f]{8})-(0|[1-9][0-9]{0,18})\Z")


class Position(Struct, frozen=True):
    """A place in one of the two logs: the stream's identity and a sequence in it."""

    kind: Kind
    identity: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.identity}-{self.sequence}"


class InvalidPosition(ValueError):
    """The text is no position token."""


def parse(text: str) -> Position:
    """The position that a token says. Raises `InvalidPosition`."""
    match = _TOKEN.match(text)
    if match is None or int(match[3]) > MAX_SEQUENCE:
        message = "a position looks like log-0a1b2c3d-42"
        raise InvalidPosition(message)
    kind: Kind = "log" if match[1] == "log" else "activity"
    return Position(kind, match[2], int(match[3]))


def identity(stream: str, created: datetime) -> str:
    """Identity of a stream: 8 hex digits of its name and the moment of its creation (UTC)."""
    return hashlib.sha256(f"{stream} {created.isoformat()}".encode()).hexdigest()[:8]
