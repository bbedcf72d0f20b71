"""SQL to the Structs of the read API. Pages are found by key: a row that did not change is never skipped or repeated.

Of what callers send, nothing becomes SQL: sorts and states are keys of the tables here, everything else is a parameter.
"""

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any, Final, Literal, cast

import asyncpg
import msgspec
from msgspec import UNSET, Struct, UnsetType, structs

from appraisal import flags
from grantbook import as_of, events, fingerprints, subjects
from grantbook.admin import (
    AuditEvent,
    AuditPage,
    ClientDetail,
    ClientItem,
    ClientPage,
    FamilyItem,
    FamilyPage,
    GrantItem,
    GrantPage,
    HistoryEntry,
    Preview,
    StaleClient,
    Totals,
    Trend,
    UserItem,
    UserPage,
)
from grantbook.positions import Position
from grantbook.sealed import Note, Sealed
from projector import cursors, finding, traits
from projector.db import AnyConnection
from projector.filters import ClientFilter
from projector.finding import position_after
from projector.pages import Cursors, Paging, Sort, Where, walk

MAX_HISTORY: Final = 1_000
"""Most entries of a client's history in one answer; of a longer one, the newest."""
SORTED_CHARACTERS: Final = 200
"""Names of users are sorted by so many of their characters: a cursor holds them."""
MAX_PREVIEWED_SCOPES: Final = 100
MAX_LAPSED: Final = 10_000
"""Grants that lapsed and were not swept yet: so many are looked at. There are more only while no projector runs."""

Row = asyncpg.Record


FLAG_CONDITIONS: Final[Mapping[str, str]] = {
    "new_redirect_host": "c.new_redirect_host",
    "many_registrations": "c.many_registrations",
    "never_used": f"""c.deleted_position IS NULL AND s.last_granted_at = '-infinity'
        AND s.last_activity_at = '-infinity' AND c.created_at < now() - interval '{flags.NEVER_USED_DAYS} days'""",
}
"""Flags that the metadata alone does not tell; the others stand in `c.flags`."""
GRANT_SORTS: Final[Mapping[str, Sort]] = {
    "issued_at": Sort("g.issued_at", "timestamptz"),
    "last_activity_at": Sort("g.last_activity_at", "timestamptz"),
    "expires_at": Sort("g.expires_at", "timestamptz"),
    "username": Sort(f"left(g.username_folded, {SORTED_CHARACTERS})", "text"),
}
GRANT_STATES: Final[Mapping[str, str]] = {
    "active": "g.active",
    "suspended": "g.stands AND NOT g.active",
    # What ended a grant is looked up row by row, so only where its expiry comes into question: of a client that was
    # deleted with a million grants a page, or their number, is wanted too.
    "expired": "NOT g.stands AND g.lapses_at <= now() AND g.status = 'expired'",
    "revoked": "NOT g.stands AND (g.lapses_at > now() OR g.status = 'revoked')",
    "any": "true",
}
STANDING: Final = ("active", "suspended")
"""States of grants that stand."""
_CLIENTS: Final = "clients c JOIN standings s USING (client_key)"
_CLIENT_COLUMNS: Final = """
    c.client_key, c.client_id, c.client_name, c.redirect_uris, c.scope, c.grant_types, c.token_endpoint_auth_method,
    c.created_at, c.source, c.suspended_position, c.deleted_position,
    nullif(s.last_activity_at, '-infinity') AS last_activity_at, c.family, c.flags,
    CASE s.status WHEN 'active' THEN s.open_users ELSE 0 END AS active_users, s.active_grants,
""" + ", ".join(f"({condition}) AS {name}" for name, condition in FLAG_CONDITIONS.items())
_LAST_USED_AT: Final = "greatest(s.last_activity_at, s.last_granted_at, s.created_at)"


class Stale(Struct, frozen=True):
    """A page of clients that nobody has used since a moment. `users` and `active_grants` are those of all pages."""

    items: list[StaleClient]
    cursors: "Cursors"
    unused_since: datetime
    total: int | UnsetType = UNSET
    active_grants: int | UnsetType = UNSET
    users: int | UnsetType = UNSET


class EventFilter(Struct, frozen=True, kw_only=True):
    """Which events of the log. `from_` is inclusive, `to` exclusive; both are the log's time."""

    after: int = 0
    client_id: str | None = None
    user_id: str | None = None
    grant_id: str | None = None
    types: Sequence[str] = ()
    from_: datetime | None = None
    to: datetime | None = None


async def clients(
    connection: AnyConnection, wanted: ClientFilter, paging: Paging, days: Sequence[date] = ()
) -> ClientPage:
    """A page of clients, with how often each was used on these days. Raises `cursors.InvalidCursor`."""
    total = await finding.total(connection, wanted) if paging.count else UNSET
    keys, around = await finding.page(connection, wanted, paging, none=total == 0)
    rows = await _clients_of(connection, keys)
    active = await _active(connection, rows)
    used = await _used(connection, rows, days)
    items = [_client_item(each, active, used) for each in rows]
    return ClientPage(items=items, total=total, **structs.asdict(around))


async def client(connection: AnyConnection, key: str, days: Sequence[date] = ()) -> ClientDetail | None:
    """One client, but for its history, with its use on these days. None where there never was one of this key."""
    row = await connection.fetchrow(
        f"SELECT {_CLIENT_COLUMNS}, c.metadata FROM {_CLIENTS} WHERE c.client_key = $1", key
    )
    if row is None:
        return None
    item = _client_item(row, await _active(connection, [row]), await _used(connection, [row], days))
    metadata = msgspec.json.decode(row["metadata"], type=events.ClientMetadata)
    return ClientDetail(
        **structs.asdict(item),
        metadata=as_of.registered_members(metadata),
        metadata_sha256=fingerprints.metadata_sha256(metadata),
        why_flagged={each: flags.SENTENCES[each] for each in item.flags if each in flags.SENTENCES} or UNSET,
        history=[],
    )


async def history_of(connection: AnyConnection, key: str) -> list[Row]:
    """What the log has about a client itself, oldest first: rows for `history`."""
    rows = await connection.fetch(
        """
        SELECT position, type, body FROM events WHERE client_key = $1 AND grant_key IS NULL
        ORDER BY position DESC LIMIT $2
        """,
        key,
        MAX_HISTORY,
    )
    return rows[::-1]


class _Told(Struct):
    """What events of a client say for its history."""

    at: datetime
    by: events.Actor
    reason: str | None = None
    note: Sealed | None = None
    changed: list[str] | None = None


def sealed_notes(rows: Sequence[Row]) -> list[Sealed]:
    """The notes that a history needs opened."""
    return [told.note for told in map(_told, rows) if told.note is not None]


def history(rows: Sequence[Row], notes: Mapping[Sealed, Note], identity: str) -> list[HistoryEntry]:
    """The history that rows of `history_of` tell. What is sealed and cannot be opened is absent."""
    return [_entry(row, _told(row), notes, identity) for row in rows]


async def client_exists(connection: AnyConnection, key: str) -> bool:
    """Whether there ever was a client of this key."""
    return bool(await connection.fetchval("SELECT true FROM clients WHERE client_key = $1", key))


async def grants_of_client(
    connection: AnyConnection, key: str, status: str, user: str | None, paging: Paging
) -> GrantPage:
    """A page of a client's grants. `user` is part of a name, or a whole id. Raises `cursors.InvalidCursor`."""
    where = Where()
    where.add("g.client_key = {}", key)
    if status in STANDING and await _is_deleted(connection, key):
        where.add("false")  # that none of them stands is known without looking at each
    total = None
    if user is None and paging.count:
        total = await _known_total(connection, key, status)
    if user is not None:
        where.add("strpos(g.username_folded, {}) > 0 OR g.user_key = {}", user.casefold(), subjects.token(user))
    return await _grants(connection, "client", where, status, paging, across_clients=False, total=total)


async def _known_total(connection: AnyConnection, key: str, status: str) -> int | None:
    """How many grants of a status a client has, where that is kept; None where it has to be counted."""
    if status == "any":
        return cast("int | None", await connection.fetchval("SELECT grants FROM standings WHERE client_key = $1", key))
    if status != "active":
        return None
    row = await connection.fetchrow(f"SELECT {_CLIENT_COLUMNS} FROM {_CLIENTS} WHERE c.client_key = $1", key)
    return None if row is None else (await _active(connection, [row]))[key][0]


async def _is_deleted(connection: AnyConnection, key: str) -> bool:
    deleted = await connection.fetchval("SELECT deleted_position IS NOT NULL FROM clients WHERE client_key = $1", key)
    return bool(deleted)


async def grants_of_user(connection: AnyConnection, key: str, status: str, paging: Paging) -> GrantPage:
    """A page of a user's grants, across clients. Raises `cursors.InvalidCursor`."""
    where = Where()
    where.add("g.user_key = {}", key)
    return await _grants(connection, "user", where, status, paging, across_clients=True)


async def users(connection: AnyConnection, user: str | None, paging: Paging) -> UserPage:
    """A page of users, by their key. `user` is part of a name, or a whole id. Raises `cursors.InvalidCursor`.

    Names stand with the grants, so that one that was erased stands nowhere else: looking for one reads all of them.
    """
    where = Where()
    source = "users u"
    if user is not None:
        named = "SELECT user_key FROM grants WHERE strpos(username_folded, {}) > 0"
        where.add(f"u.user_key IN ({named} UNION SELECT {{}})", user.casefold(), subjects.token(user))
    where.add("u.granted")  # not of cut-offs alone
    total = await _count(connection, source, where) if paging.count else UNSET
    order = "users" if user is None else "users of a name"
    rows, around = await _page(
        connection,
        order,
        "u.user_key",
        source,
        where,
        Sort("u.user_key", "text"),
        "u.user_key",
        paging,
        tie_type="text",
    )
    found = await connection.fetch(
        """
        SELECT k.user_key, latest.user_id, latest.username, counted.*
        FROM unnest($1::text[]) WITH ORDINALITY AS k (user_key, place)
        CROSS JOIN LATERAL (
            SELECT g.user_id, g.username FROM grants g WHERE g.user_key = k.user_key
            ORDER BY g.issued_at DESC, g.issued_position DESC LIMIT 1
        ) latest
        CROSS JOIN LATERAL (
            SELECT count(*) AS grants, count(*) FILTER (WHERE g.active) AS active_grants,
                nullif(max(g.last_activity_at), '-infinity') AS last_activity_at
            FROM grant_states g WHERE g.user_key = k.user_key
        ) counted
        ORDER BY k.place
        """,
        [each["user_key"] for each in rows],
    )
    items = [
        UserItem(
            user_id=each["user_id"],
            user_key=each["user_key"] if each["user_key"] != each["user_id"] else UNSET,
            username=_set(each["username"]),
            active_grants=each["active_grants"],
            grants=each["grants"],
            last_activity_at=_set(each["last_activity_at"]),
        )
        for each in found
    ]
    return UserPage(items=items, total=total, **structs.asdict(around))


async def trends(connection: AnyConnection, unit: Literal["day", "hour"], since: datetime, count: int) -> list[Trend]:
    """How many events of each kind the log has in each of so many days or hours (UTC) from `since` on."""
    rows = await connection.fetch(
        """
        SELECT date_trunc($1, hour, 'UTC') AS since, type, sum(events)::bigint AS events FROM hours
        WHERE hour >= $2 AND type = ANY($3::text[]) GROUP BY 1, 2
        """,
        unit,
        since,
        list(_TRENDS),
    )
    counted = {(each["since"], _TRENDS[each["type"]]): each["events"] for each in rows}
    step = timedelta(**{f"{unit}s": 1})
    moments = [since + place * step for place in range(count)]
    return [Trend(since=each, **{name: counted.get((each, name), 0) for name in _TRENDS.values()}) for each in moments]


_TRENDS: Final[Mapping[str, str]] = {
    "client.registered": "registered",
    "grant.issued": "granted",
    "grant.revoked": "revoked",
    "user.grants_revoked": "users_cut_off",
    "client.suspended": "suspended",
    "client.deleted": "deleted",
}
"""Types of events, and what they count as."""


async def families(connection: AnyConnection, name: str | None, paging: Paging) -> FamilyPage:
    """A page of families of clients that are not deleted, the largest first. Raises `cursors.InvalidCursor`.

    `name` is part of the name of one of the clients.
    """
    where = Where()
    having = "true"
    if name is not None:
        having = f"bool_or(strpos(client_name_folded, {where.parameter(name.casefold())}) > 0)"
    source = f"({_FAMILIES.format(which='deleted_position IS NULL')} HAVING {having}) f"
    total = await _count(connection, source, where) if paging.count else UNSET
    order = "families" if name is None else "families of a name"
    rows, around = await _page(
        connection, order, "f.*", source, where, Sort("f.clients", "bigint"), "f.family", paging, tie_type="text"
    )
    return FamilyPage(items=await _family_items(connection, rows), total=total, **structs.asdict(around))


async def family(connection: AnyConnection, name: str) -> FamilyItem | None:
    """One family; once all of its clients are deleted, as it was, with none. None where there never was one."""
    of_family = "family = $1"
    there_are = f"EXISTS (SELECT FROM clients WHERE {of_family} AND deleted_position IS NULL)"
    which = f"{of_family} AND (deleted_position IS NULL OR NOT {there_are})"
    items = await _family_items(connection, await connection.fetch(_FAMILIES.format(which=which), name))
    return items[0] if items else None


_FAMILIES: Final = """
    SELECT family, count(*) FILTER (WHERE deleted_position IS NULL) AS clients, min(c.created_at) AS first_seen_at,
        max(greatest(c.created_at, s.last_activity_at)) AS last_seen_at, min(c.registered_position) AS first_position,
        sum(s.active_grants)::bigint AS active_grants
    FROM clients c JOIN standings s USING (client_key) WHERE {which} GROUP BY family
"""


async def _family_items(connection: AnyConnection, rows: Sequence[Row]) -> list[FamilyItem]:
    names = [each["family"] for each in rows]
    first = {
        each["family"]: each
        for each in await connection.fetch(
            """
            SELECT family, client_name, redirect_uris FROM clients
            WHERE family = ANY($1::text[]) AND registered_position = ANY($2::bigint[])
            """,
            names,
            [each["first_position"] for each in rows],
        )
    }
    flagged: dict[str, set[str]] = {each: set() for each in names}
    for each in await connection.fetch(
        """
        SELECT family, flags, bool_or(new_redirect_host) AS new_redirect_host,
            bool_or(many_registrations) AS many_registrations
        FROM clients WHERE family = ANY($1::text[]) AND deleted_position IS NULL GROUP BY family, flags
        """,
        names,
    ):
        flagged[each["family"]].update(each["flags"], (name for name in _STORED_FLAGS if each[name]))
    return [
        FamilyItem(
            family=each["family"],
            client_name=_set(first[each["family"]]["client_name"]),
            redirect_uris=first[each["family"]]["redirect_uris"],
            clients=each["clients"],
            active_grants=each["active_grants"],
            flags=sorted(flagged[each["family"]], key=_place_of_flag),
            first_seen_at=each["first_seen_at"],
            last_seen_at=each["last_seen_at"],
        )
        for each in rows
    ]


_STORED_FLAGS: Final = ("new_redirect_host", "many_registrations")


def _place_of_flag(flag: str) -> tuple[int, str]:
    return (flags.ALL.index(flag) if flag in flags.ALL else len(flags.ALL), flag)


async def preview_of_family(connection: AnyConnection, name: str) -> Preview | None:
    """What deleting a family would end now. None where there never was a client of it."""
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM clients WHERE family = $1)", name):
        return None
    return Preview(family=name, **await _ended_by_deleting(connection, "c.family = $1", name))


async def preview_of_client(connection: AnyConnection, key: str) -> Preview | None:
    """What deleting a client would end now. None where there never was one of this key."""
    row = await connection.fetchrow("SELECT client_id, family FROM clients WHERE client_key = $1", key)
    if row is None:
        return None
    ended = await _ended_by_deleting(connection, "c.client_key = $1", key)
    return Preview(client_id=row["client_id"], family=row["family"], **ended)


async def _ended_by_deleting(connection: AnyConnection, which: str, value: str) -> dict[str, Any]:
    row = await connection.fetchrow(
        f"""
        WITH there AS MATERIALIZED (
            SELECT c.client_key, s.last_activity_at FROM {_CLIENTS} WHERE {which} AND c.deleted_position IS NULL
        ), standing AS MATERIALIZED (
            SELECT g.active, g.user_key, g.scopes FROM there JOIN grant_states g USING (client_key) WHERE g.stands
        )
        SELECT (SELECT count(*) FROM there) AS clients,
            (SELECT nullif(max(last_activity_at), '-infinity') FROM there) AS last_activity_at,
            count(*) FILTER (WHERE active) AS active_grants,
            count(*) FILTER (WHERE NOT active) AS suspended_grants,
            count(DISTINCT user_key) FILTER (WHERE active) AS users,
            ARRAY (
                SELECT DISTINCT scope COLLATE "C" AS scope
                FROM (SELECT DISTINCT scopes FROM standing WHERE active) s, unnest(s.scopes) AS scope
                ORDER BY scope LIMIT {MAX_PREVIEWED_SCOPES}
            ) AS scopes
        FROM standing
        """,
        value,
    )
    assert row is not None
    return {name: _set(value) for name, value in row.items()}


async def stale_clients(connection: AnyConnection, unused_for: timedelta, now: datetime, paging: Paging) -> Stale:
    """A page of clients that nobody has used for so long, the longest unused first. Raises `cursors.InvalidCursor`.

    "Since when" is kept in the cursor: a client does not become stale between two pages of one list.
    """
    order = f"stale clients of {unused_for.total_seconds():.0f} s"
    since = now - unused_for
    if paging.cursor is not None:
        since = datetime.fromisoformat(cursors.decode(paging.cursor, paging.key, order=order).since)
    where = Where()
    where.add("s.registered_position IS NOT NULL")
    where.add("s.status <> 'deleted'")
    where.add(f"{_LAST_USED_AT} < {{}}", since)
    counts = {}
    if paging.count:
        row = await connection.fetchrow(
            f"""
            WITH there AS MATERIALIZED (
                SELECT s.client_key, s.active_grants FROM standings s WHERE {where}
            )
            SELECT count(*) AS total, coalesce(sum(active_grants), 0)::bigint AS active_grants, (
                SELECT count(DISTINCT u.user_key) FROM there t JOIN client_users u USING (client_key)
                WHERE t.active_grants > 0 AND u.open_grants > 0
            ) AS users
            FROM there
            """,
            *where.parameters,
        )
        assert row is not None
        counts = dict(row)
    found, around = await _page(
        connection,
        order,
        f"s.client_key, {_LAST_USED_AT} AS last_used_at",
        "standings s",
        where,
        Sort(_LAST_USED_AT, "timestamptz"),
        "s.registered_position",
        paging,
        since=since.isoformat(),
    )
    used_at = {each["client_key"]: each["last_used_at"] for each in found}
    rows = await _clients_of(connection, list(used_at))
    active = await _active(connection, rows)
    items = [
        StaleClient(**structs.asdict(_client_item(each, active)), last_used_at=used_at[each["client_key"]])
        for each in rows
    ]
    return Stale(items, around, since, **counts)


async def totals(connection: AnyConnection) -> Totals:
    """Counts over the whole register: of small tables alone."""
    row = await connection.fetchrow(
        f"""
        WITH gates AS (
            SELECT t.traits & {traits.mask(*traits.CLOSED)} AS gate, t.clients FROM tallies t
        )
        SELECT coalesce(sum(clients), 0)::bigint AS clients,
            coalesce(sum(clients) FILTER (WHERE gate = 0), 0)::bigint AS active_clients,
            coalesce(sum(clients) FILTER (WHERE gate = {traits.mask("suspended")}), 0)::bigint AS suspended_clients,
            coalesce(sum(clients) FILTER (WHERE gate & {traits.mask("deleted")} <> 0), 0)::bigint AS deleted_clients,
            s.grants, s.active_grants, s.users
        FROM totals s LEFT JOIN gates ON true GROUP BY s.one
        """
    )
    assert row is not None
    return Totals(**dict(row))


async def checkpoints(connection: AnyConnection) -> dict[str, Row]:
    """The row of each read model in `checkpoints`."""
    rows = await connection.fetch("SELECT read_model, sequence, identity, moved_at, halted FROM checkpoints")
    return {each["read_model"]: each for each in rows}


async def audit_page(connection: AnyConnection, wanted: EventFilter, paging: Paging, identity: str) -> AuditPage:
    """A page of events in the order of the log. Raises `cursors.InvalidCursor`."""
    where = await _events_where(connection, wanted)
    total = await _count(connection, "events e", where) if paging.count else UNSET
    rows, around = await _page(
        connection,
        "events",
        _EVENT_COLUMNS,
        "events e",
        where,
        Sort("e.position", "bigint"),
        "e.position",
        paging,
    )
    return AuditPage(items=[audit_event(each, identity) for each in rows], total=total, **structs.asdict(around))


async def audit_stretch(connection: AnyConnection, wanted: EventFilter, until: int, limit: int) -> list[Row]:
    """The next `limit` events behind `wanted.after`, up to `until`, in the order of the log: for `audit_event`."""
    where = await _events_where(connection, wanted)
    where.add("e.position <= {}", until)
    return await connection.fetch(
        f"SELECT {_EVENT_COLUMNS} FROM events e WHERE {where} ORDER BY e.position LIMIT {where.parameter(limit)}",
        *where.parameters,
    )


_EVENT_COLUMNS: Final = "e.position, e.event_id, e.type, e.recorded_at, e.body"


def audit_event(row: Row, identity: str) -> AuditEvent:
    """An event as auditors read it."""
    data = msgspec.json.decode(row["body"])
    return AuditEvent(
        position=str(Position("log", identity, row["position"])),
        id=row["event_id"],
        type=row["type"],
        recorded_at=row["recorded_at"],
        actor=data["by"],
        data=data,
    )


async def _events_where(connection: AnyConnection, wanted: EventFilter) -> Where:
    where = Where()
    after = wanted.after
    if wanted.from_ is not None:
        # So the page's own index can start where the time does.
        first = await position_after(connection, wanted.from_)
        if first is None:
            where.add("false")
        else:
            after = max(after, first - 1)
            where.add("e.recorded_at >= {}", wanted.from_)
    where.add("e.position > {}", after)
    if wanted.to is not None:
        where.add("e.recorded_at < {}", wanted.to)
    for column, id_ in (("client", wanted.client_id), ("user", wanted.user_id), ("grant", wanted.grant_id)):
        if id_ is not None:
            where.add(f"e.{column}_key = {{}}", subjects.token(id_))
    if wanted.types:
        where.add("e.type = ANY({}::text[])", list(wanted.types))
    return where


async def _grants(
    connection: AnyConnection,
    of: str,
    where: Where,
    status: str,
    paging: Paging,
    *,
    across_clients: bool,
    total: int | None = None,
) -> GrantPage:
    where.add(GRANT_STATES[status])
    sort = GRANT_SORTS[paging.sort.removeprefix("-")]
    source = "grant_items g"
    if paging.count and total is None:
        total = await _count(connection, source, where)
    columns = """
        g.grant_id, g.client_id, g.client_name, g.user_id, g.username, g.scopes, g.issued_at,
        nullif(g.last_activity_at, '-infinity') AS last_activity_at, g.expires_at, g.status, g.ended_at, g.ended_reason,
        g.metadata_sha256
    """
    rows, around = await _page(
        connection, f"grants of a {of} {paging.sort}", columns, source, where, sort, "g.issued_position", paging
    )
    items = [
        GrantItem(
            grant_id=each["grant_id"],
            client_id=each["client_id"],
            client_name=_set(each["client_name"]) if across_clients else UNSET,
            user_id=each["user_id"],
            username=_set(each["username"]),
            scopes=each["scopes"],
            issued_at=each["issued_at"],
            last_activity_at=_set(each["last_activity_at"]),
            expires_at=each["expires_at"],
            status=each["status"],
            ended_at=_set(each["ended_at"]),
            ended_reason=_set(each["ended_reason"]),
            metadata_sha256=_set(each["metadata_sha256"]),
        )
        for each in rows
    ]
    return GrantPage(items=items, total=UNSET if total is None else total, **structs.asdict(around))


async def _page(
    connection: AnyConnection,
    order: str,
    columns: str,
    source: str,
    where: Where,
    sort: Sort,
    tie: str,
    paging: Paging,
    *,
    tie_type: str = "bigint",
    since: str = "",
) -> tuple[list[Row], Cursors]:
    """Rows behind the cursor, or before it."""
    way = walk(paging, order)
    way.begin(where, sort, tie, tie_type)
    rows = await connection.fetch(
        f"""
        SELECT {columns}, ({sort.expression})::text AS sorted_value, ({tie})::text AS sorted_tie
        FROM {source} WHERE {where} ORDER BY {sort.expression} {way.direction}, {tie} {way.direction}
        LIMIT {where.parameter(paging.limit + 1)}
        """,
        *where.parameters,
    )
    return way.turned(rows, order, paging, since)


async def _count(connection: AnyConnection, source: str, where: Where) -> int:
    return cast("int", await connection.fetchval(f"SELECT count(*) FROM {source} WHERE {where}", *where.parameters))


async def _active(connection: AnyConnection, clients_: Sequence[Row]) -> dict[str, tuple[int, int]]:
    """Active grants, and the users who have some, of each client: as counted, or anew where some just lapsed."""
    active = {each["client_key"]: (each["active_grants"], each["active_users"]) for each in clients_}
    if not any(grants for grants, _ in active.values()):
        return active
    lapsed = await connection.fetch(
        """
        WITH due AS MATERIALIZED (
            SELECT client_key FROM grants WHERE open AND lapses_at <= now() ORDER BY lapses_at LIMIT $2
        )
        SELECT DISTINCT client_key FROM due WHERE client_key = ANY($1::text[])
        """,
        [key for key, (grants, _) in active.items() if grants],
        MAX_LAPSED,
    )
    if lapsed:
        for key in (each["client_key"] for each in lapsed):
            active[key] = (0, 0)
        rows = await connection.fetch(
            """
            SELECT client_key, count(*) AS grants, count(DISTINCT user_key) AS users FROM grant_states
            WHERE active AND client_key = ANY($1::text[]) GROUP BY client_key
            """,
            [each["client_key"] for each in lapsed],
        )
        active.update((each["client_key"], (each["grants"], each["users"])) for each in rows)
    return active


async def _clients_of(connection: AnyConnection, keys: Sequence[str]) -> list[Row]:
    """The rows of these clients, in this order. On a replica, in the middle of a swap, one may be missing."""
    if not keys:
        return []
    rows = await connection.fetch(
        f"SELECT {_CLIENT_COLUMNS} FROM {_CLIENTS} WHERE c.client_key = ANY($1::text[])", keys
    )
    by_key = {each["client_key"]: each for each in rows}
    return [by_key[each] for each in keys if each in by_key]


async def _used(
    connection: AnyConnection, clients_: Sequence[Row], days: Sequence[date]
) -> dict[str, list[int]] | None:
    """How often each of those clients was used on each of the days, where it ever was; None where no day is asked."""
    if not days:
        return None
    rows = await connection.fetch(
        "SELECT client_key, day, uses FROM client_days WHERE day = ANY($1::date[]) AND client_key = ANY($2::text[])",
        days,
        [each["client_key"] for each in clients_],
    )
    used: dict[str, list[int]] = {}
    places = {day: place for place, day in enumerate(days)}
    for each in rows:
        used.setdefault(each["client_key"], [0] * len(days))[places[each["day"]]] = each["uses"]
    return {each["client_key"]: used.get(each["client_key"], [0] * len(days)) for each in clients_}


def _client_item(
    row: Row, active: Mapping[str, tuple[int, int]], used: Mapping[str, list[int]] | None = None
) -> ClientItem:
    grants, users = active[row["client_key"]]
    gate = "suspended" if row["suspended_position"] is not None else "active"
    return ClientItem(
        client_id=row["client_id"],
        client_key=row["client_key"] if row["client_key"] != row["client_id"] else UNSET,
        client_name=_set(row["client_name"]),
        redirect_uris=row["redirect_uris"],
        scope=_set(row["scope"]),
        grant_types=row["grant_types"],
        token_endpoint_auth_method=row["token_endpoint_auth_method"],
        client_id_issued_at=int(row["created_at"].timestamp()),
        created_at=row["created_at"],
        source=row["source"],
        status="deleted" if row["deleted_position"] is not None else gate,
        active_grants=grants,
        active_users=users,
        last_activity_at=_set(row["last_activity_at"]),
        family=row["family"],
        flags=[*row["flags"], *(name for name in FLAG_CONDITIONS if row[name])],
        activity=UNSET if used is None else used[row["client_key"]],
    )


def _told(row: Row) -> _Told:
    return msgspec.json.decode(row["body"], type=_Told)


def _entry(row: Row, told: _Told, notes: Mapping[Sealed, Note], identity: str) -> HistoryEntry:
    note = notes.get(told.note) if told.note is not None else None
    actor = told.by.id or (note.by_id if note is not None else None)
    return HistoryEntry(
        position=str(Position("log", identity, row["position"])),
        type=row["type"],
        at=told.at,
        by={"kind": told.by.kind} | ({} if actor is None else {"id": actor}),
        reason=_set(told.reason),
        detail=_set(note.detail) if note is not None else UNSET,
        changed=_set(told.changed),
    )


def _set(value: Any) -> Any:
    """A member's value; unset for NULL and for the empty text, which are both absent in answers."""
    return UNSET if value is None or value == "" else value
