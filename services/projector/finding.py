"""How clients are found, ordered and counted: by `listed` and `standings`, and whatever Postgres believes of the data.

A page is looked for along its order first, for so many rows: where many clients pass, it is full at once. Where few do,
those are found by the index of what they have, and sorted. So no page hangs on an estimate of how many pass.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, cast

import asyncpg
from msgspec import UNSET, Struct, UnsetType, structs

from appraisal import flags
from projector import cursors, traits
from projector.cursors import Place
from projector.db import AnyConnection

Row = asyncpg.Record

LOOKED_AT: Final = 6_000
"""Rows of one table that a page is looked for among, along its order."""
LOOKED_AT_BESIDE: Final = 2_000
"""The same where each has a row in the other table that is looked at, too."""
SORTED: Final = 10_000
"""Clients that are found by what they have and sorted, before others are looked for along the order."""
FARTHER: Final = 10
"""So many times as many rows are then looked at."""
COMMON: Final = 0.05
"""A label that a larger share of all clients has is counted otherwise than by its index."""


class Sort(Struct, frozen=True):
    """What a list is sorted by: an expression without NULLs, and its type."""

    expression: str
    type: str


CLIENT_SORTS: Final[Mapping[str, Sort]] = {
    "created_at": Sort("l.created_at", "timestamptz"),
    "client_name": Sort("l.name", "text"),
    "last_activity_at": Sort("s.last_activity_at", "timestamptz"),
    "active_grants": Sort("s.active_grants", "bigint"),
}
CLIENT_STATES: Final = ("active", "suspended", "deleted", "any")


class Paging(Struct, frozen=True):
    """Which page of a list: `sort` is a name, with `-` in front for descending."""

    sort: str
    limit: int
    cursor: str | None
    count: bool
    key: bytes


class ClientFilter(Struct, frozen=True, kw_only=True):
    """Which clients. Repeated values must all hold."""

    name: str | None = None
    redirect_uri: str | None = None
    redirect_host: str | None = None
    grant_types: Sequence[str] = ()
    source: str | None = None
    status: str = "active"
    flags: Sequence[str] = ()
    created_after: datetime | None = None
    created_before: datetime | None = None
    last_activity_before: datetime | None = None
    has_active_grants: bool | None = None
    family: str | None = None
    needs_review: bool | None = None
    client_key: str | None = None
    revoked_after: datetime | None = None


class Cursors(Struct, frozen=True):
    """Those of a page: of the next one and of the one before, where there is one."""

    next_cursor: str | UnsetType
    previous_cursor: str | UnsetType


class Where:
    """Conditions and the parameters that they need."""

    def __init__(self, parameters: list[object] | None = None) -> None:
        self.parameters: list[object] = [] if parameters is None else parameters
        self._conditions: list[str] = []

    def add(self, condition: str, *values: object) -> None:
        """A condition in which each `{}` stands for a value."""
        self._conditions.append(condition.format(*(self.parameter(each) for each in values)))

    def parameter(self, value: object) -> str:
        """The place of a value."""
        self.parameters.append(value)
        return f"${len(self.parameters)}"

    def __str__(self) -> str:
        return " AND ".join(f"({each})" for each in self._conditions) or "true"


class Walk(Struct, frozen=True):
    """Which way a page goes, and from where: behind the cursor of one, or before it."""

    place: Place | None
    descending: bool

    @property
    def backward(self) -> bool:
        """Whether its rows come in the other order than they are shown in."""
        return self.place is not None and self.place.backward

    @property
    def direction(self) -> str:
        """As `ORDER BY` has it."""
        return "DESC" if self.descending else "ASC"

    def begin(self, where: Where, sort: Sort, tie: str, tie_type: str) -> None:
        """Only what lies behind the cursor. Sorted values travel as text: exact for every type here."""
        if self.place is not None:
            compare = "<" if self.descending else ">"
            where.add(
                f"({sort.expression}, {tie}) {compare} ({{}}::text::{sort.type}, {{}}::text::{tie_type})",
                self.place.value,
                self.place.tie,
            )

    def turned(self, rows: list[Row], order: str, paging: Paging, since: str) -> tuple[list[Row], Cursors]:
        """Rows as they are shown, without the one too many, and their cursors."""
        more, rows = len(rows) > paging.limit, rows[: paging.limit]
        if self.backward:
            rows.reverse()

        def at(row: Row, *, backward: bool) -> str:
            return cursors.encode(Place(order, row["sorted_value"], row["sorted_tie"], since, backward), paging.key)

        # On the side that this page was come to from there was a page.
        has_next, has_previous = (True, more) if self.backward else (more, self.place is not None)
        return rows, Cursors(
            at(rows[-1], backward=False) if rows and has_next else UNSET,
            at(rows[0], backward=True) if rows and has_previous else UNSET,
        )


def walk(paging: Paging, order: str) -> Walk:
    """The way of a page. Raises `cursors.InvalidCursor`."""
    place = None if paging.cursor is None else cursors.decode(paging.cursor, paging.key, order=order)
    backward = place is not None and place.backward
    return Walk(place, paging.sort.startswith("-") != backward)


async def page(connection: AnyConnection, wanted: ClientFilter, paging: Paging) -> tuple[list[str], Cursors]:
    """The keys of a page's clients, in its order. Raises `cursors.InvalidCursor`."""
    order = f"clients {paging.sort}"
    way = walk(paging, order)
    sort = CLIENT_SORTS[paging.sort.removeprefix("-")]
    if sort.expression == "l.created_at" and (traits.TIMELY_FLAG in wanted.flags or wanted.has_active_grants):
        sort = Sort("s.created_at", sort.type)  # there is an index of those alone, in this order
    of = sort.expression[0]
    since = None if wanted.revoked_after is None else await position_after(connection, wanted.revoked_after)
    rows = None
    if wanted.family is None and wanted.client_key is None and wanted.revoked_after is None:
        rows = await _along(connection, wanted, way, sort, of, paging.limit + 1)
        if rows is None:
            rows = await _by_index(connection, wanted, way, sort, of, paging.limit + 1, since, most=SORTED)
        if rows is None:
            # Many pass, and none of the first: those are new, perhaps, and all alike. The others are not far behind.
            rows = await _along(connection, wanted, way, sort, of, paging.limit + 1, times=FARTHER)
    if rows is None:
        rows = await _by_index(connection, wanted, way, sort, of, paging.limit + 1, since)
    assert rows is not None
    rows, around = way.turned(rows, order, paging, "")
    return [each["client_key"] for each in rows], around


async def _along(
    connection: AnyConnection, wanted: ClientFilter, way: Walk, sort: Sort, of: str, limit: int, *, times: int = 1
) -> list[Row] | None:
    """The first that pass, of so many rows along the order. None where too few of these do."""
    inside = _on_the_way(wanted, way, sort, of)
    where = Where(inside.parameters)
    _conditions(where, wanted, of, None)
    both = _tables(where, of) == "ls"
    direction = f"{sort.expression} {way.direction}, {of}.registered_position {way.direction}"
    rows = await connection.fetch(
        f"""
        SELECT {of}.client_key, ({sort.expression})::text AS sorted_value,
            {of}.registered_position::text AS sorted_tie
        FROM (
            SELECT * FROM {_TABLES[of]} {of} WHERE {inside} ORDER BY {direction}
            LIMIT {times * (LOOKED_AT_BESIDE if both else LOOKED_AT)}
        ) {of} {_BESIDE[of] if both else ""}
        WHERE {where} ORDER BY {direction} LIMIT {where.parameter(limit)}
        """,
        *where.parameters,
    )
    return rows if len(rows) == limit else None


async def _by_index(
    connection: AnyConnection,
    wanted: ClientFilter,
    way: Walk,
    sort: Sort,
    of: str,
    limit: int,
    since: int | None,
    *,
    most: int | None = None,
) -> list[Row] | None:
    """All that pass, found by what they have, and the first of them: no plan for this goes along the order.

    None where more than `most` pass: to find and sort those takes longer than going on along the order.
    """
    where = _on_the_way(wanted, way, sort, of)
    _conditions(where, wanted, of, since, by_index=True)
    rows = await connection.fetch(
        f"""
        SELECT client_key, sorted::text AS sorted_value, tie::text AS sorted_tie, count(*) OVER () AS found
        FROM (
            SELECT {of}.client_key, {sort.expression} AS sorted, {of}.registered_position AS tie
            FROM {_FROM[_tables(where, of)]} WHERE {where}
            {"OFFSET 0" if most is None else f"LIMIT {most + 1}"}
        ) found
        ORDER BY sorted {way.direction}, tie {way.direction} LIMIT {where.parameter(limit)}
        """,
        *where.parameters,
    )
    return None if most is not None and rows and rows[0]["found"] > most else rows


async def total(connection: AnyConnection, wanted: ClientFilter) -> int:
    """How many there are: from the smallest table, or index, that has all that is asked for."""
    since = None if wanted.revoked_after is None else await position_after(connection, wanted.revoked_after)
    host = _host(wanted)
    common = host is not None and await _is_common(connection, host)
    if wanted.redirect_uri is None and not common:
        return await _counted(connection, wanted, since)
    # What an index holds of redirects is all that most clients have.
    alone = structs.replace(wanted, redirect_uri=None, redirect_host=None if common else wanted.redirect_host)
    short = Where()
    if wanted.redirect_uri is not None:
        short.add("l.short_redirects LIKE {}", _pattern(wanted.redirect_uri))
        if "\n" in wanted.redirect_uri:
            short.add("false")
    if host is not None and common:
        short.add("l.hosts LIKE {}", _pattern(f"\n{host}\n"))
    long = Where()
    long.add("l.short_redirects IS NULL")
    return await _counted(connection, alone, since, short) + await _counted(connection, wanted, since, long)


async def _counted(
    connection: AnyConnection, wanted: ClientFilter, since: int | None, more: Where | None = None
) -> int:
    for of in ("l", "s") if more is None else ("l",):
        where = Where() if more is None else more
        if of == "s":
            where.add("s.registered_position IS NOT NULL")
        _conditions(where, wanted, of, since, counted=True)
        tables = _tables(where, of)
        if tables == of:
            break
    query = f"SELECT count(*) FROM {_FROM[tables]} WHERE {where}"
    if tables == "l" and _only_traits(where):
        query = f"SELECT coalesce(sum(l.clients), 0)::bigint FROM tallies l WHERE {where}"
    return cast("int", await connection.fetchval(query, *where.parameters))


async def _is_common(connection: AnyConnection, label: str) -> bool:
    """Whether more than a twentieth of all clients have it, as far as Postgres knows."""
    share = await connection.fetchval(
        """
        SELECT most_common_elem_freqs[array_position(most_common_elems::text::text[], $1)] FROM pg_stats
        WHERE schemaname = current_schema() AND tablename = 'listed' AND attname = 'labels'
        """,
        label,
    )
    return share is not None and share > COMMON


_TABLES: Final = {"l": "listed", "s": "standings"}
_FROM: Final = {
    "l": "listed l",
    "s": "standings s",
    # Each table is found from the other by its own key.
    "ls": "listed l JOIN standings s ON s.client_key = l.client_key AND s.registered_position = l.registered_position",
}
_BESIDE: Final = {
    "l": "CROSS JOIN LATERAL (SELECT * FROM standings o WHERE o.client_key = l.client_key OFFSET 0) s",
    "s": "CROSS JOIN LATERAL (SELECT * FROM listed o WHERE o.registered_position = s.registered_position OFFSET 0) l",
}
"""The other table's row, for one row after the other."""


def _tables(where: Where, of: str) -> str:
    said = str(where)
    return "".join(each for each in "ls" if each == of or re.search(rf"\b{each}\.", said))


def _on_the_way(wanted: ClientFilter, way: Walk, sort: Sort, of: str) -> Where:
    """The stretch of the order in which a page lies, as far as the order's index can tell."""
    where = Where()
    way.begin(where, sort, f"{of}.registered_position", "bigint")
    never_used = traits.TIMELY_FLAG in wanted.flags
    if of == "s":
        where.add("s.registered_position IS NOT NULL")
    if sort.expression.endswith(".created_at"):
        _created(where, wanted, of)
        if of == "s":  # for an index of those alone
            where.add(_NEVER_USED if never_used else "s.active_grants > 0")
    elif sort.expression == "s.last_activity_at":
        if wanted.last_activity_before is not None:
            where.add("s.last_activity_at < {}", wanted.last_activity_before)
        if never_used:
            where.add("s.last_activity_at = '-infinity'")
    elif sort.expression == "s.active_grants":
        if wanted.status in {"suspended", "deleted"}:
            where.add("s.active_grants = 0")
        if wanted.has_active_grants is not None:
            where.add("s.active_grants > 0" if wanted.has_active_grants else "s.active_grants = 0")
    return where


_NEVER_USED: Final = f"""
    s.last_granted_at = '-infinity' AND s.last_activity_at = '-infinity'
    AND s.created_at < now() - interval '{flags.NEVER_USED_DAYS} days'
"""


def _created(where: Where, wanted: ClientFilter, of: str) -> None:
    if wanted.created_after is not None:
        where.add(f"{of}.created_at > {{}}", wanted.created_after)
    if wanted.created_before is not None:
        where.add(f"{of}.created_at < {{}}", wanted.created_before)


def _conditions(  # noqa: C901, PLR0912  one filter after the other
    where: Where,
    wanted: ClientFilter,
    of: str,
    since: int | None,
    *,
    by_index: bool = False,
    counted: bool = False,
) -> None:
    """The conditions, on table `of` where both have it: as an index finds them, or as they are looked at fastest."""
    labels = _labels(wanted, by_index=by_index)
    known = [each for each in (*wanted.flags, *(f"grant:{each}" for each in wanted.grant_types)) if each in _TRAITS]
    if wanted.source is not None and f"source:{wanted.source}" in _TRAITS:
        known.append(f"source:{wanted.source}")
    if not by_index:
        if known:
            where.add(traits.has(*known))
        if wanted.source is not None and f"source:{wanted.source}" not in _TRAITS:
            where.add(traits.lacks("source:cimd", "source:manual"))
    if wanted.needs_review is not None:
        if by_index and wanted.needs_review:
            where.add("l.labels && {}", list(flags.TO_REVIEW))
        else:
            where.add((traits.has_any if wanted.needs_review else traits.lacks)(*flags.TO_REVIEW))
    if labels:
        where.add("l.labels @> {}", labels)
    if traits.TIMELY_FLAG in wanted.flags:
        where.add(f"{of}.status <> 'deleted'")
        where.add(_NEVER_USED)
    if wanted.name is not None:
        _part(where, wanted.name.casefold(), by_index=by_index)
    if wanted.redirect_uri is not None:
        where.add("l.redirects LIKE {}", _pattern(wanted.redirect_uri))
        if "\n" in wanted.redirect_uri:
            where.add("false")  # no URI has a line break, and nothing may be found across two
    # Of the two `listed` alone has an index by it; of clients never used, and of those in use, `standings` has one.
    narrow = traits.TIMELY_FLAG in wanted.flags or (of == "s" and wanted.has_active_grants)
    _created(where, wanted, "l" if by_index and not narrow else of)
    if wanted.last_activity_before is not None:
        where.add("s.last_activity_at < {}", wanted.last_activity_before)
    if wanted.has_active_grants is not None:
        where.add("s.active_grants > 0" if wanted.has_active_grants else "s.active_grants = 0")
    if wanted.client_key is not None:
        where.add(_AMONG[of].format("c.client_key = {}"), wanted.client_key)
    if wanted.family is not None:
        where.add(_AMONG[of].format("c.family = {}"), wanted.family)
    if wanted.revoked_after is not None:
        if since is None:
            where.add("false")
        else:
            where.add(_AMONG[of].format(_CUT_OFF_SINCE), since, since)
    if counted and of == "l" and _only_traits(where):
        where.add(_COUNTED_STATES[wanted.status])
    elif wanted.has_active_grants and wanted.status in {"active", "any"}:
        pass  # those of others are none
    elif wanted.status != "any" and not (by_index and wanted.status != "active"):
        where.add(f"{of}.status = {{}}", wanted.status)


def _only_traits(where: Where) -> bool:
    return set(re.findall(r"\b[ls]\.\w+", str(where))) <= {"l.traits"}


_TRAITS: Final = traits.CONDITIONS
_COUNTED_STATES: Final[Mapping[str, str]] = {
    "active": traits.lacks("suspended", "deleted"),
    "suspended": f"{traits.has('suspended')} AND {traits.lacks('deleted')}",
    "deleted": traits.has("deleted"),
    "any": "true",
}
_AMONG: Final = {
    "l": "l.registered_position IN (SELECT c.registered_position FROM clients c WHERE {})",
    "s": "s.client_key IN (SELECT c.client_key FROM clients c WHERE {})",
}
"""What only `clients` knows. It is asked for the few that have it."""


def _labels(wanted: ClientFilter, *, by_index: bool) -> list[str]:
    """The labels that a client must have; of those that `traits` has, only where it is to be found by them."""
    found = [each for each in wanted.flags if each != traits.TIMELY_FLAG]
    found += [f"grant:{each}" for each in wanted.grant_types]
    found = [each for each in found if by_index or each not in _TRAITS]
    if by_index and wanted.source is not None:
        found.append(f"source:{wanted.source}")
    if by_index and wanted.status in {"suspended", "deleted"}:
        found.append(f"status:{wanted.status}")
    host = _host(wanted)
    return found if host is None else [*found, host]


def _host(wanted: ClientFilter) -> str | None:
    """The label of the host that is asked for."""
    return None if wanted.redirect_host is None else f"host:{wanted.redirect_host.lower().strip('.').strip('[]')}"


_TRIGRAM: Final = re.compile("[0-9A-Za-z]{3}")


def _part(where: Where, name: str, *, by_index: bool) -> None:
    """Names with this in them. Where an index is to find them that has no trigrams of it: by pairs of characters."""
    if by_index and not _TRIGRAM.search(name):
        # Not `LIKE`, which the index would be asked, too, and have to be read whole for.
        where.add("pairs(l.name) @@ {}::text::tsquery AND strpos(l.name, {}) > 0", _pairs(name), name)
    else:
        where.add("l.name LIKE {}", _pattern(name))


def _pattern(text: str) -> str:
    """What `LIKE` is asked for any text with this one in it."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def _pairs(text: str) -> str:
    """What asks for all pairs of characters of a text; of a single character, for those that it begins."""
    pairs = [text[each : each + 2].replace("\\", "\\\\").replace("'", "''") for each in range(max(1, len(text) - 1))]
    return " & ".join(f"'{each}'" for each in pairs) + (":*" if len(text) == 1 else "")


async def position_after(connection: AnyConnection, moment: datetime) -> int | None:
    """The first position that was recorded then or later: those of the log are in the order of time."""
    position: int | None = await connection.fetchval(
        "SELECT position FROM events WHERE recorded_at >= $1 ORDER BY recorded_at, position LIMIT 1", moment
    )
    return position


_CUT_OFF_SINCE: Final = """
    c.client_key IN (
        SELECT e.client_key FROM events e
        WHERE e.position >= {} AND e.type IN ('grant.revoked', 'client.suspended', 'client.deleted')
        UNION
        SELECT g.client_key FROM cut_offs k JOIN grants g ON g.user_key = k.user_key
        WHERE k.position >= {} AND g.issued_position < k.position AND g.lapses_at > k.recorded_at
            AND (g.revoked_position IS NULL OR g.revoked_position > k.position)
    )
"""
"""Clients that lost a grant by a revocation since, or were suspended or deleted."""
