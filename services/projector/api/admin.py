"""`/admin/v1`, reading: clients, their grants, families of clients, and how far the read models are."""

import asyncio
import re
from datetime import UTC, date, timedelta
from typing import Annotated, Any, Final, Literal, cast

import structlog
from litestar import Response, route
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter
from msgspec import UNSET, structs

from appraisal import flags
from appraisal.families import FAMILY_HEX_DIGITS
from door.problems import Problem, invalid_parameter, unavailable
from door.roles import requires
from grantbook import positions, subjects
from grantbook.admin import (
    ClientDetail,
    ClientPage,
    Delivery,
    FamilyItem,
    FamilyPage,
    GrantPage,
    Preview,
    ReadModelStatus,
    StaleClientPage,
    Status,
    Trends,
    UserPage,
)
from grantbook.events import SOURCES
from grantbook.positions import Position
from grantbook.sdk.log import LogReader, StreamState, Unavailable
from projector import db, feed, queries
from projector.api.parameters import (
    DEFAULT_LIMIT,
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
    one_of,
    paging,
    reading,
    span,
    text,
    texts,
)
from projector.db import ReadModel
from projector.filters import CLIENT_STATES, ClientFilter
from projector.finding import CLIENT_SORTS
from projector.queries import GRANT_SORTS, GRANT_STATES
from projector.reads import NO_IDENTITY, Reads

MAX_ACTIVITY_DAYS: Final = 90
MAX_TREND_DAYS: Final = 365
MAX_HOURLY_DAYS: Final = 14
ActivityDays = Annotated[
    int | None,
    QueryParameter(ge=1, le=MAX_ACTIVITY_DAYS, description="Tell the use on each of so many days, today included."),
]
_admin: Final = [requires("admin")]
_TAGS: Final = ["admin: reading"]
_FAMILY: Final = re.compile(rf"[0-9a-f]{{{FAMILY_HEX_DIGITS}}}\Z")
_log = structlog.get_logger("projector")


@route("/admin/v1/clients", http_method=READ, guards=_admin, tags=_TAGS)
async def list_clients(
    reads: NamedDependency[Reads],
    *,
    name: Text = None,
    redirect_uri: Text = None,
    redirect_host: Text = None,
    grant_type: Texts = None,
    source: Text = None,
    status: FromQuery[str] = "active",
    flag: Texts = None,
    created_after: Moment = None,
    created_before: Moment = None,
    last_activity_before: Moment = None,
    has_active_grants: FromQuery[bool | None] = None,
    family: Text = None,
    needs_review: FromQuery[bool | None] = None,
    client_id: Text = None,
    revoked_after: Moment = None,
    activity_days: ActivityDays = None,
    sort: FromQuery[str] = "-created_at",
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
    count: Count = False,
    at_least: AtLeast = None,
) -> Response[ClientPage]:
    """List clients. All filters must hold; of `grant_type` and `flag`, repeated, a client must have all.

    `name` is a part of the name in any case, `redirect_uri` a part of one of the redirects, and `redirect_host` the
    host of one, or a parent domain of it. Clients that were never used count as used before any time. `needs_review` is
    whether a client has a flag that a person should look at. `client_id` is a whole id, or key. `revoked_after`: a
    grant of it was revoked since, or itself suspended or deleted (see `status`). `activity_days` adds to each client
    how often it was used on each of so many days (UTC), today last.
    """
    wanted = ClientFilter(
        name=text("name", name),
        redirect_uri=text("redirect_uri", redirect_uri),
        redirect_host=text("redirect_host", redirect_host),
        grant_types=texts("grant_type", grant_type),
        source=None if source is None else one_of("source", source, SOURCES),
        status=one_of("status", status, CLIENT_STATES),
        flags=all_of("flag", flag, flags.SENTENCES),
        created_after=moment("created_after", created_after),
        created_before=moment("created_before", created_before),
        last_activity_before=moment("last_activity_before", last_activity_before),
        has_active_grants=has_active_grants,
        family=text("family", family),
        needs_review=needs_review,
        client_key=None if not client_id else subjects.token_in_path(client_id),
        revoked_after=moment("revoked_after", revoked_after),
    )
    page = paging(reads, sort, CLIENT_SORTS, limit, cursor, count=count)
    async with reading(reads, at_least) as seen:
        return answer(await queries.clients(seen.connection, wanted, page, _days(reads, activity_days)), seen.position)


@route("/admin/v1/clients/{client_id:str}", http_method=READ, guards=_admin, tags=_TAGS)
async def inspect_client(
    client_id: FromPath[str],
    reads: NamedDependency[Reads],
    activity_days: ActivityDays = None,
    at_least: AtLeast = None,
) -> Response[ClientDetail]:
    """One client, deleted ones too: its whole registration, and what happened to it, oldest first."""
    key = subjects.token_in_path(client_id)
    async with reading(reads, at_least) as seen:
        client = await queries.client(seen.connection, key, _days(reads, activity_days))
        rows = await queries.history_of(seen.connection, key) if client is not None else []
    if client is None:
        raise _unknown()
    try:
        notes = await reads.keys.notes(queries.sealed_notes(rows))
    except Unavailable:
        # Who did it and why stays sealed while NATS is away; that it was done, and when, is told.
        _log.warning("notes stay sealed: NATS does not answer")
        notes = {}
    told = queries.history(rows, notes, seen.position.identity)
    return answer(_with_history(client, told), seen.position)


@route("/admin/v1/clients/{client_id:str}/preview", http_method=READ, guards=_admin, tags=_TAGS)
async def preview_client(
    client_id: FromPath[str], reads: NamedDependency[Reads], at_least: AtLeast = None
) -> Response[Preview]:
    """What deleting the client would end now. Of one that is deleted already: nothing."""
    async with reading(reads, at_least) as seen:
        preview = await queries.preview_of_client(seen.connection, subjects.token_in_path(client_id))
    if preview is None:
        raise _unknown()
    return answer(preview, seen.position)


@route("/admin/v1/clients/{client_id:str}/grants", http_method=READ, guards=_admin, tags=_TAGS)
async def list_grants_of_client(
    client_id: FromPath[str],
    reads: NamedDependency[Reads],
    *,
    status: FromQuery[str] = "active",
    user: Text = None,
    sort: FromQuery[str] = "-issued_at",
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
    count: Count = False,
    at_least: AtLeast = None,
) -> Response[GrantPage]:
    """The grants of a client. `user` is a part of the user's name in any case, or the whole id."""
    key = subjects.token_in_path(client_id)
    one_of("status", status, GRANT_STATES)
    user = text("user", user)
    page = paging(reads, sort, GRANT_SORTS, limit, cursor, count=count)
    async with reading(reads, at_least) as seen:
        if not await queries.client_exists(seen.connection, key):
            raise _unknown()
        return answer(await queries.grants_of_client(seen.connection, key, status, user, page), seen.position)


@route("/admin/v1/users/{user_id:str}/grants", http_method=READ, guards=_admin, tags=_TAGS)
async def list_grants_of_user(
    user_id: FromPath[str],
    reads: NamedDependency[Reads],
    *,
    status: FromQuery[str] = "active",
    sort: FromQuery[str] = "-issued_at",
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
    count: Count = False,
    at_least: AtLeast = None,
) -> Response[GrantPage]:
    """The grants of a user, across clients. None for a user who never granted anything."""
    key = subjects.token_in_path(user_id)
    one_of("status", status, GRANT_STATES)
    page = paging(reads, sort, GRANT_SORTS, limit, cursor, count=count)
    async with reading(reads, at_least) as seen:
        return answer(await queries.grants_of_user(seen.connection, key, status, page), seen.position)


@route("/admin/v1/users", http_method=READ, guards=_admin, tags=_TAGS)
async def list_users(
    reads: NamedDependency[Reads],
    *,
    user: Text = None,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
    count: Count = False,
    at_least: AtLeast = None,
) -> Response[UserPage]:
    """Users who ever let a client in, in the order of their keys.

    `user` is a part of the user's name in any case, or the whole id; it looks through all grants.
    """
    page = paging(reads, "user_key", ("user_key",), limit, cursor, count=count)
    user = text("user", user)
    async with reading(reads, at_least) as seen:
        return answer(await queries.users(seen.connection, user, page), seen.position)


@route("/admin/v1/trends", http_method=READ, guards=_admin, tags=_TAGS)
async def show_trends(
    reads: NamedDependency[Reads],
    *,
    days: Annotated[int, QueryParameter(ge=1, le=MAX_TREND_DAYS, description="How many, today included.")] = 30,
    by: FromQuery[str] = "day",
    at_least: AtLeast = None,
) -> Response[Trends]:
    """How many were registered, granted, revoked, suspended and deleted over time, by the log's time, in UTC.

    `by` is `day`, or `hour` for at most 14 days.
    """
    unit = cast("Literal['day', 'hour']", one_of("by", by, ("day", "hour")))
    if unit == "hour" and days > MAX_HOURLY_DAYS:
        raise invalid_parameter("days", f"at most {MAX_HOURLY_DAYS} by the hour")
    now = reads.now().astimezone(UTC)
    since = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days - 1)
    count = days if unit == "day" else 24 * (days - 1) + now.hour + 1
    async with reading(reads, at_least) as seen:
        items = await queries.trends(seen.connection, unit, since, count)
    return answer(Trends(by=unit, items=items), seen.position)


@route("/admin/v1/families", http_method=READ, guards=_admin, tags=_TAGS)
async def list_families(
    reads: NamedDependency[Reads],
    *,
    name: Text = None,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
    count: Count = False,
    at_least: AtLeast = None,
) -> Response[FamilyPage]:
    """Identical registrations, grouped, the largest family first. Deleted clients do not count.

    `name` is a part of the name in any case.
    """
    page = paging(reads, "-clients", ("clients",), limit, cursor, count=count)
    name = text("name", name)
    async with reading(reads, at_least) as seen:
        return answer(await queries.families(seen.connection, name, page), seen.position)


@route("/admin/v1/families/{family:str}", http_method=READ, guards=_admin, tags=_TAGS)
async def inspect_family(
    family: FromPath[str], reads: NamedDependency[Reads], at_least: AtLeast = None
) -> Response[FamilyItem]:
    """One family. When all of its clients are deleted, it is still told, with no clients."""
    async with reading(reads, at_least) as seen:
        found = await queries.family(seen.connection, _checked(family))
    if found is None:
        raise _unknown_family()
    return answer(found, seen.position)


@route("/admin/v1/families/{family:str}/preview", http_method=READ, guards=_admin, tags=_TAGS)
async def preview_family(
    family: FromPath[str], reads: NamedDependency[Reads], at_least: AtLeast = None
) -> Response[Preview]:
    """What deleting all clients of the family would end now."""
    async with reading(reads, at_least) as seen:
        preview = await queries.preview_of_family(seen.connection, _checked(family))
    if preview is None:
        raise _unknown_family()
    return answer(preview, seen.position)


@route("/admin/v1/stale-clients", http_method=READ, guards=_admin, tags=_TAGS)
async def list_stale_clients(
    reads: NamedDependency[Reads],
    *,
    unused_for: Annotated[
        str, QueryParameter(description="For how long nobody used them: a number and one of s, m, h, d, w, like `90d`.")
    ],
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
    count: Count = False,
    at_least: AtLeast = None,
) -> Response[StaleClientPage]:
    """Clients that nobody has used for so long, the longest unused first: a dry run, which changes nothing.

    Active and suspended ones. Used is: active, or let in by a user, or its grant extended, or only just registered. To
    delete those of a page, send their ids with the page's `as_of` and `activity_as_of` to
    `POST /admin/v1/stale-clients/delete`: it spares those that came into use since.
    """
    length = span("unused_for", unused_for)
    page = paging(reads, "last_used_at", ("last_used_at",), limit, cursor, count=count)
    async with reading(reads, at_least) as seen:
        found = await queries.stale_clients(seen.connection, length, reads.now(), page)
        activity = await db.checkpoint(seen.connection, "activity")
    stale = StaleClientPage(
        items=found.items,
        **structs.asdict(found.cursors),
        total=found.total,
        active_grants=found.active_grants,
        users=found.users,
        unused_since=found.unused_since,
        as_of=str(seen.position),
        activity_as_of=str(Position("activity", activity.identity or NO_IDENTITY, activity.sequence)),
    )
    return answer(stale, seen.position)


@route("/admin/v1/status", http_method=READ, guards=_admin, tags=_TAGS)
async def show_status(reads: NamedDependency[Reads], at_least: AtLeast = None) -> Response[Status]:
    """How far the log and the read models are, and counts over all."""
    async with reading(reads, at_least) as seen:
        rows = await queries.checkpoints(seen.connection)
        totals = await queries.totals(seen.connection)
    log, activity = await asyncio.gather(_state(reads.log), _state(reads.activity))
    try:
        following = await feed.subscribers(reads.receipts, reads.log, reads.feed)
    except Unavailable:
        following = None
    status = Status(
        log_position=UNSET if log is None else str(Position("log", log.identity, log.last)),
        activity_position=UNSET if activity is None else str(Position("activity", activity.identity, activity.last)),
        read_models={
            "log": await read_model_status(reads, "log", rows["log"], log),
            "activity": await read_model_status(reads, "activity", rows["activity"], activity),
        },
        subscribers=UNSET if following is None else following,
        totals=totals,
    )
    return answer(status, seen.position)


@route("/admin/v1/revocations/{position:str}/delivery", http_method=READ, guards=_admin, tags=_TAGS)
async def show_delivery(reads: NamedDependency[Reads], position: FromPath[str]) -> Response[Delivery]:
    """Which token services have applied what was revoked up to a position, the slowest, and how long it took.

    `position` is the `Grantbook-Position` of the answer to a revocation, suspension or deletion. Asked of the log and
    of the subscribers' own receipts, not of a read model.
    """
    try:
        asked = positions.parse(position)
        state = await reads.log.state()
        if asked.kind != "log" or asked.identity != state.identity or asked.sequence > state.last:
            raise invalid_parameter("position", "a position of this log")
        told = await feed.delivery(reads.receipts, reads.log, reads.feed, asked)
    except positions.InvalidPosition as error:
        raise invalid_parameter("position", str(error)) from error
    except feed.NotInFeed as error:
        detail = "Nothing was revoked up to there, or it is older than the feed keeps."
        raise Problem(404, "revocation_not_found", detail) from error
    except Unavailable as error:
        raise unavailable("The log cannot be reached.") from error
    return answer(told, Position("log", state.identity, state.last))


async def read_model_status(
    reads: Reads, read_model: ReadModel, row: Any, stream: StreamState | None
) -> ReadModelStatus:
    """How far a read model is. While the log cannot be reached, nothing is known to be missing.

    The lag in seconds is the age of the oldest event that was not applied.
    """
    applied: int = row["sequence"]
    behind = 0 if stream is None else max(0, stream.last - max(applied, stream.first - 1))
    seconds = 0.0
    if behind and stream is not None:
        reader = reads.log if read_model == "log" else reads.activity
        try:
            oldest = await reader.at_on_leader(max(applied + 1, stream.first))
        except Unavailable:
            oldest = None
        waits_since = row["moved_at"] if oldest is None else oldest.stored_at
        seconds = max(0.0, (reads.now() - waits_since).total_seconds())
    return ReadModelStatus(
        position=str(Position(read_model, row["identity"] or NO_IDENTITY, applied)),
        lag_events=behind,
        lag_seconds=round(seconds, 3),
        halted=UNSET if row["halted"] is None else row["halted"],
    )


async def _state(reader: LogReader) -> StreamState | None:
    try:
        return await reader.state()
    except Unavailable:
        return None


def _days(reads: Reads, count: int | None) -> list[date]:
    """So many days, the last of which is today."""
    today = reads.now().astimezone(UTC).date()
    return [today - timedelta(days=back) for back in reversed(range(count or 0))]


def _with_history(client: ClientDetail, told: list[Any]) -> ClientDetail:
    client.history.extend(told)
    return client


def _unknown() -> Problem:
    return Problem(404, "client_not_found", "No client was ever registered under this id.")


def _checked(family: str) -> str:
    """The name of a family, if it is such a name at all."""
    if _FAMILY.match(family) is None:
        raise _unknown_family()
    return family


def _unknown_family() -> Problem:
    return Problem(404, "family_not_found", "No client of this family was ever registered.")


ADMIN_ROUTES: Final = [
    list_clients,
    inspect_client,
    preview_client,
    list_grants_of_client,
    list_grants_of_user,
    list_users,
    show_trends,
    list_families,
    inspect_family,
    preview_family,
    list_stale_clients,
    show_status,
    show_delivery,
]
