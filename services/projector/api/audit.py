"""`/audit/v1`: what the log says, event by event, and a client as it was at a moment."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, route
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter
from litestar.response import Stream
from msgspec import structs

from door.problems import Problem, invalid_parameter, unavailable
from door.roles import requires
from grantbook import as_of as as_of_moment
from grantbook import positions, subjects, wire
from grantbook.admin import AuditPage, ClientAsOf
from grantbook.events import EVENT_TYPES, ActivityRecorded
from grantbook.positions import Position
from grantbook.sdk.log import Unavailable
from grantbook.sdk.reading import client_as_of
from projector import queries
from projector.api.parameters import (
    DEFAULT_LIMIT,
    POSITION_HEADER,
    READ,
    AtLeast,
    Count,
    Cursor,
    Limit,
    Moment,
    Text,
    Texts,
    all_of,
    answer,
    moment,
    paging,
    reading,
    text,
)
from projector.queries import EventFilter
from projector.reads import Reads, snapshot

NDJSON: Final = "application/x-ndjson"
STRETCH_EVENTS: Final = 1_000
"""Events read at once while all are streamed: what that needs of memory."""

_auditor: Final = [requires("auditor")]
_TAGS: Final = ["audit"]
_LOG_TYPES: Final = {name: each for name, each in EVENT_TYPES.items() if each is not ActivityRecorded}


@route("/audit/v1/events", http_method=READ, guards=_auditor, tags=_TAGS)
async def list_events(
    request: Request[Any, Any, Any],
    reads: NamedDependency[Reads],
    after: Text = None,
    client_id: Text = None,
    user_id: Text = None,
    grant_id: Text = None,
    type: Texts = None,  # noqa: A002  the parameter's name is the contract's
    from_: Annotated[
        str | None, QueryParameter(name="from", format="date-time", description="The log's time, inclusive.")
    ] = None,
    to: Moment = None,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
    count: Count = False,  # noqa: FBT002  a query parameter
    at_least: AtLeast = None,
) -> Response[AuditPage] | Stream:
    """The events of the log, in its order. `after` is a position; of `type`, repeated, any may be an event's.

    With `Accept: application/x-ndjson` all of them, one a line, without pages.
    """
    async with reading(reads, at_least) as seen:
        wanted = EventFilter(
            after=_after(after, seen.position),
            client_id=text("client_id", client_id),
            user_id=text("user_id", user_id),
            grant_id=text("grant_id", grant_id),
            types=all_of("type", type, _LOG_TYPES),
            from_=moment("from", from_),
            to=moment("to", to),
        )
        if not _wants_lines(request):
            page = paging(reads, "position", ("position",), limit, cursor, count=count)
            found = await queries.audit_page(seen.connection, wanted, page, seen.position.identity)
            return answer(found, seen.position)
    lines = _lines(reads, wanted, seen.position)
    return Stream(lines, media_type=NDJSON, headers={POSITION_HEADER: str(seen.position)})


@route("/audit/v1/clients/{client_id:str}", http_method=READ, guards=_auditor, tags=_TAGS)
async def show_client_as_of(
    client_id: FromPath[str],
    reads: NamedDependency[Reads],
    as_of: Text = None,
    at_least: AtLeast = None,
) -> Response[ClientAsOf]:
    """A client and its grants as they were then, from the log itself.

    `as_of` is a time (the log's own, `recorded_at`) or a position; without it, now.
    """
    if at_least is not None:
        async with reading(reads, at_least):
            pass
    try:
        found = await client_as_of(reads.log, subjects.token_in_path(client_id), _moment(as_of, reads.now()))
    except wire.Malformed as error:
        raise unavailable("The log has something here that is no event of ours; see the service's log.") from error
    except ValueError as error:
        raise invalid_parameter("as_of", "a time, or a position that this log has reached") from error
    except as_of_moment.CannotTell as error:
        raise unavailable("The log has events of a newer version of Grantbook: update this one.") from error
    except Unavailable as error:
        raise unavailable("The log cannot be reached right now.") from error
    if found is None:
        raise Problem(404, "client_not_found", "No client was registered under this id then.")
    return answer(found, positions.parse(found.as_of))


def _moment(said: str | None, now: datetime) -> positions.Position | datetime:
    if said is None:
        return now
    try:
        return positions.parse(said)
    except positions.InvalidPosition:
        time = moment("as_of", said)
        return now if time is None else time


def _after(said: str | None, here: Position) -> int:
    if said is None:
        return 0
    try:
        position = positions.parse(said)
    except positions.InvalidPosition as error:
        raise invalid_parameter("after", str(error)) from error
    if position.kind != here.kind or position.identity != here.identity:
        raise invalid_parameter("after", f"a position of this log, like {here}")
    return position.sequence


def _wants_lines(request: Request[Any, Any, Any]) -> bool:
    return request.accept.best_match(["application/json", NDJSON]) == NDJSON


async def _lines(reads: Reads, wanted: EventFilter, until: Position) -> AsyncIterator[bytes]:
    """All events up to where the answer began, read stretch by stretch: no snapshot is held for a slow reader."""
    while True:
        async with snapshot(reads) as seen:
            if seen.position.identity != until.identity:
                raise unavailable("The read models are of another log now.")
            rows = await queries.audit_stretch(seen.connection, wanted, until.sequence, STRETCH_EVENTS)
        if not rows:
            return
        yield msgspec.json.Encoder().encode_lines([queries.audit_event(each, until.identity) for each in rows])
        wanted = structs.replace(wanted, after=rows[-1]["position"])


AUDIT_ROUTES: Final = [list_events, show_client_as_of]
