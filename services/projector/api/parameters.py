"""Parameters that lists have in common: what they are, and refusing what they cannot be."""

import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Annotated, Final, TypeVar

import msgspec
from litestar import HttpMethod, Response
from litestar.datastructures import State
from litestar.params import FromQuery, QueryParameter
from msgspec import Meta

from door.problems import invalid_parameter
from door.times import utc
from grantbook.positions import Position
from projector.cursors import InvalidCursor
from projector.pages import Paging
from projector.reads import Reads, Snapshot, snapshot

POSITION_HEADER: Final = "Grantbook-Position"
READ: Final = (HttpMethod.GET, HttpMethod.HEAD)
"""The methods of everything here: servers leave the body of an answer to HEAD out (RFC 9110 section 9.3.2)."""
DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 200
MAX_TEXT_CHARACTERS: Final = 2_048
"""Longest text to filter by: that of a redirect URI."""
MAX_REPEATED: Final = 50
MAX_SPAN_DAYS: Final = 3_650
UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_SPAN: Final = re.compile(r"([0-9]{1,9})([smhdw])\Z")

T = TypeVar("T")

Text = FromQuery[str | None]
Texts = FromQuery[list[str] | None]
Moment = Annotated[str | None, QueryParameter(format="date-time", description="A time (RFC 3339, with its offset).")]
Limit = Annotated[int, QueryParameter(ge=1, le=MAX_LIMIT, description="How many items at most.")]
Cursor = Annotated[
    str | None,
    QueryParameter(description="The `next_cursor` or `previous_cursor` of a page, with the same filters and sort."),
]
Count = Annotated[bool, QueryParameter(description="Whether to say how many there are in total.")]
AtLeast = Annotated[
    str | None,
    QueryParameter(
        description="A `Grantbook-Position`: the answer waits up to 2 s until it has been applied, or is a 503."
    ),
]


async def the_reads(state: State) -> Reads:
    """The handlers' `reads`."""
    reads: Reads = state.reads
    return reads


def answer(content: T, position: Position) -> Response[T]:
    """The answer, at the position that it holds for."""
    return Response(content, headers={POSITION_HEADER: str(position)})


@asynccontextmanager
async def reading(reads: Reads, at_least: str | None) -> AsyncIterator[Snapshot]:
    """A snapshot to answer from. A cursor that is none of this list's becomes a 400."""
    try:
        async with snapshot(reads, at_least) as seen:
            yield seen
    except InvalidCursor as error:
        raise invalid_parameter("cursor", "a cursor of a page of this list, in this order") from error


def paging(reads: Reads, sort: str, sorts: Iterable[str], limit: int, cursor: str | None, *, count: bool) -> Paging:
    """The page that is asked for."""
    one_of("sort", sort.removeprefix("-"), sorts)
    return Paging(sort, limit, cursor, count, reads.cursor_key)


def moment(name: str, value: str | None) -> datetime | None:
    """The time that a parameter says."""
    if not value:
        return None
    try:
        said: datetime = msgspec.convert(value, Annotated[datetime, Meta(tz=True)])
    except msgspec.ValidationError as error:
        raise invalid_parameter(name, "a time (RFC 3339) with its offset, like 2026-03-14T09:26:53Z") from error
    return utc(name, said)


def span(name: str, value: str) -> timedelta:
    """The length of time that a parameter says: `90d`, `12h`; of seconds, minutes, hours, days or weeks."""
    match = _SPAN.match(value)
    seconds = int(match[1]) * UNIT_SECONDS[match[2]] if match is not None else None
    if seconds is None or seconds > MAX_SPAN_DAYS * UNIT_SECONDS["d"]:
        raise invalid_parameter(name, f"a number and one of s, m, h, d, w, like 90d; at most {MAX_SPAN_DAYS}d")
    return timedelta(seconds=seconds)


def one_of(name: str, value: str, allowed: Iterable[str]) -> str:
    """The value, if it is one of those allowed."""
    if value not in allowed:
        raise invalid_parameter(name, f"one of {', '.join(allowed)}")
    return value


def text(name: str, value: str | None) -> str | None:
    """A text to filter by; the empty one is as if absent."""
    if value and (len(value) > MAX_TEXT_CHARACTERS or "\0" in value):
        raise invalid_parameter(name, f"at most {MAX_TEXT_CHARACTERS} characters, none of them NUL")
    return value or None


def texts(name: str, values: Sequence[str] | None) -> list[str]:
    """Texts to filter by, from a parameter that may be repeated."""
    if values is not None and len(values) > MAX_REPEATED:
        raise invalid_parameter(name, f"repeated at most {MAX_REPEATED} times")
    return [each for each in (text(name, value) for value in values or ()) if each is not None]


def all_of(name: str, values: Sequence[str] | None, allowed: Mapping[str, object]) -> list[str]:
    """Values of a parameter that may be repeated, if each is one of those allowed."""
    return [one_of(name, each, allowed) for each in texts(name, values)]
