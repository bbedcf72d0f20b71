"""How clients are found, ordered and counted, whatever Postgres believes of the data.

A page is looked for along its order first, for so many rows: where many clients pass, it is full at once. Where few do,
those are found by what they have, and sorted. Which of the two is known, and not guessed: texts are looked for among
those that clients have, each of which stands once in `names` or `redirections`, with how many have it.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Final, Literal, cast

import asyncpg
from msgspec import Struct, structs

from projector import filters, traits
from projector.db import AnyConnection
from projector.filters import ClientFilter, Of
from projector.pages import Cursors, Paging, Sort, Walk, Where, walk

Row = asyncpg.Record

LOOKED_AT: Final = 6_000
"""Rows of one table that a page is looked for among, along its order."""
LOOKED_AT_NAMES: Final = 2_000
"""The same for a name, before it is known how many have it: a common one fills a page at once."""
LOOKED_AT_BESIDE: Final = 2_000
"""The same where each has a row in the other table that is looked at, too."""
FARTHER: Final = 10
"""So many times as many, where clients that pass are many: those in front are new, perhaps, and all alike."""
FEW: Final = 2_000
"""Clients that are found by what they have, and sorted, rather than looked for any farther."""
SORTED: Final = 10_000
"""The same, where none of those farther along the order pass."""
READ: Final = 200_000
"""The same, where an index alone tells whether they pass."""
TEXTS: Final = 2_000
"""Names, or all that a client redirects to: more of them than these are not looked at to know how many have them."""
OTHERS: Final = 100_000
"""Clients that were used lately are counted instead of those that were not, unless they are more."""
SHARE: Final = 4
"""Clients of a name that are more than one in so many are counted by looking at all."""
FEWER: Final = 20
"""Clients that redirect elsewhere are taken from those of a name where they are so many times less."""

CLIENT_SORTS: Final[Mapping[str, Sort]] = {
    "created_at": Sort("l.created_at", "timestamptz"),
    "client_name": Sort("l.name", "text"),
    "last_activity_at": Sort("s.last_activity_at", "timestamptz"),
    "active_grants": Sort("s.active_grants", "bigint"),
}

Texts = Literal["names", "redirections"]
By = Literal["names", "redirections", "time", "standings", "traits"]


class Held(Struct, frozen=True):
    """What is known of something that is asked for. None: nobody counts so many."""

    clients: int | None
    """How many may pass, as far as this goes."""
    reached: int | None
    """How many are looked at where they are found by it."""
    texts: list[object] | None = None

    @property
    def most(self) -> float:
        """To compare by."""
        return float("inf") if self.reached is None else self.reached


class _Order(Struct, frozen=True):
    """The order of a page, which table has it, and from where in it the page is looked for."""

    sort: Sort
    of: Of
    way: Walk
    limit: int

    @property
    def column(self) -> str:
        """What is sorted by, of that table."""
        return self.sort.expression.partition(".")[2]

    def by(self, row: str) -> str:
        """As `ORDER BY` has it."""
        return f"{row}.{self.column} {self.way.direction}, {row}.registered_position {self.way.direction}"

    def place(self, row: str) -> str:
        """What cursors have of a row."""
        return f"{row}.{self.column}::text AS sorted_value, {row}.registered_position::text AS sorted_tie"


async def page(
    connection: AnyConnection, wanted: ClientFilter, paging: Paging, *, none: bool = False
) -> tuple[list[str], Cursors]:
    """The keys of a page's clients, in its order. `none`: it is known that there are none at all.

    Raises `cursors.InvalidCursor`.
    """
    name = f"clients {paging.sort}"
    sort = CLIENT_SORTS[paging.sort.removeprefix("-")]
    if sort.expression == "l.created_at" and (traits.TIMELY_FLAG in wanted.flags or wanted.has_active_grants):
        sort = Sort("s.created_at", sort.type)  # there is an index of those alone, in this order
    if sort.expression == "s.active_grants" and wanted.is_of_closed:
        # None of these has any: they are as they came, in an order that `listed` has, too.
        sort, name = Sort("l.registered_position", "bigint"), f"closed {name}"
    of: Of = "l" if sort.expression.startswith("l.") else "s"
    order = _Order(sort, of, walk(paging, name), paging.limit + 1)
    rows = [] if none or wanted.contradicts_itself else await _rows(connection, wanted, order)
    rows, around = order.way.turned(rows, name, paging, "")
    return [each["client_key"] for each in rows], around


async def _rows(connection: AnyConnection, wanted: ClientFilter, order: _Order) -> list[Row]:
    if wanted.asks_of_others:
        return await _among_all(connection, wanted, order)
    first = _looked_at_first(wanted, order)
    if first:
        rows = await _along(connection, wanted, order, {}, first)
        if rows is not None:
            return rows
    held = await _held(connection, wanted, order)
    if any(each.clients == 0 for each in held.values()):
        return []
    by = min(held, key=lambda each: held[each].most)
    if held[by].most > FEW:
        if wanted.name is not None and order.column == "name":
            return await _along_names(connection, wanted, order)
        rows = await _along(connection, wanted, order, held, FARTHER * LOOKED_AT)
        if rows is not None:
            return rows
    return await _far_back(connection, wanted, order, by, held)


def _looked_at_first(wanted: ClientFilter, order: _Order) -> int:
    """Rows of the order that are looked at before it is known how many clients have the texts that are asked for."""
    if wanted.name is not None:
        return 0 if order.column == "name" else LOOKED_AT_NAMES  # those of a name stand together, and seldom in front
    return 0 if wanted.asks_of_redirects else LOOKED_AT  # redirects are looked up, which takes as long as to find them


async def _far_back(
    connection: AnyConnection, wanted: ClientFilter, order: _Order, by: By, held: Mapping[By, Held]
) -> list[Row]:
    """The same, where hardly any of those in front pass."""
    if held[by].most <= SORTED:
        return await _found(connection, wanted, order, by, held)
    if order.of == "s" or wanted.asks_of_standing:
        return await _among_all(connection, wanted, order)
    if by in _TEXT and held[by].most <= READ:
        return await _found(connection, wanted, order, by, held)
    return await _along_listed(connection, wanted, order, None, held)


async def _along(
    connection: AnyConnection, wanted: ClientFilter, order: _Order, held: Mapping[By, Held], looked_at: int
) -> list[Row] | None:
    """The first that pass of so many rows along the order; None where too few of these do."""
    along = _along_listed if order.of == "l" else _along_standings
    rows = await along(connection, wanted, order, looked_at, held)
    return rows if len(rows) == order.limit else None


async def _along_listed(
    connection: AnyConnection,
    wanted: ClientFilter,
    order: _Order,
    looked_at: int | None,
    held: Mapping[By, Held],
) -> list[Row]:
    """The first that pass of so many rows along the order, by an index alone; None: of all."""
    inside = _on_the_way(wanted, order)
    where = Where(inside.parameters)
    _of_listed(where, wanted)
    walked = f"""
        SELECT {_NARROW} FROM (
            SELECT {_NARROW} FROM listed l WHERE {inside} ORDER BY {order.by("l")}
            {"OFFSET 0" if looked_at is None else f"LIMIT {looked_at}"}
        ) l
    """
    if wanted.asks_of_redirects:
        walked += _redirects(where, wanted, held)
    far = looked_at is None or looked_at > LOOKED_AT
    passing = LOOKED_AT_BESIDE * (FARTHER if far else 1) if wanted.asks_of_standing else order.limit
    rows = f"{walked} WHERE {where} ORDER BY {order.by('l')} LIMIT {passing}"
    return await _with_keys(connection, wanted, order, rows, Where(inside.parameters))


async def _along_standings(
    connection: AnyConnection,
    wanted: ClientFilter,
    order: _Order,
    looked_at: int,
    held: Mapping[By, Held],
) -> list[Row]:
    """The same along an order of `standings`: row by row where `listed` has to be asked, too."""
    inside = _on_the_way(wanted, order)
    where = Where(inside.parameters)
    filters.of_standing(where, wanted)
    filters.of_status(where, wanted)
    filters.of_time(where, wanted, "s")
    listed = Where(inside.parameters)
    passing, beside = order.limit, ""
    if wanted.name is not None or wanted.asks_of_redirects or filters.asks_of_traits(wanted):
        passing = LOOKED_AT_BESIDE * looked_at // LOOKED_AT
        _of_listed(listed, wanted)
        if wanted.asks_of_redirects:
            beside = _redirects(listed, wanted, held)
    return await connection.fetch(
        f"""
        SELECT l.client_key, {order.place("s")}
        FROM (
            SELECT * FROM (
                SELECT * FROM standings s WHERE {inside} ORDER BY {order.by("s")} LIMIT {looked_at}
            ) s
            WHERE {where} ORDER BY {order.by("s")} LIMIT {passing}
        ) s
        CROSS JOIN LATERAL ({_LISTED_OF_STANDING} OFFSET 0) l {beside}
        WHERE {listed} ORDER BY {order.by("s")} LIMIT {order.limit}
        """,
        *inside.parameters,
    )


async def _along_names(connection: AnyConnection, wanted: ClientFilter, order: _Order) -> list[Row]:
    """The same in the order of names: one name after the other of those that are asked for."""
    inside = _on_the_way(wanted, order)
    names = _texts(wanted, "names", inside.parameters)
    if order.way.place is not None:
        names.add(f"l.name {'<=' if order.way.descending else '>='} {{}}", order.way.place.value)
    where = Where(inside.parameters)
    _of_listed(where, wanted)
    beside = _looked_up(where, wanted) if wanted.asks_of_redirects else ""
    most = "OFFSET 0" if wanted.asks_of_standing else f"LIMIT {order.limit}"
    rows = f"""
        SELECT l.* FROM (SELECT DISTINCT l.name FROM names l WHERE {names}) d CROSS JOIN LATERAL (
            SELECT {_NARROW} FROM listed l {beside} WHERE l.name = d.name AND {inside} AND {where}
            ORDER BY l.registered_position {order.way.direction} {most}
        ) l
        ORDER BY d.name {order.way.direction}, l.registered_position {order.way.direction} {most}
    """
    return await _with_keys(connection, wanted, order, rows, Where(inside.parameters))


async def _found(
    connection: AnyConnection, wanted: ClientFilter, order: _Order, by: By, held: Mapping[By, Held]
) -> list[Row]:
    """All that pass, found by one thing that few have, and the first of them."""
    inside = _on_the_way(wanted, order)
    first = Where(inside.parameters)
    where = Where(inside.parameters)
    _of_listed(where, wanted)
    beside = _looked_up(where, wanted) if wanted.asks_of_redirects else ""
    match by:
        case "names" | "redirections":
            text, type_ = _TEXT[by]
            source = f"""unnest({first.parameter(held[by].texts)}::{type_}[]) d ({text})
                CROSS JOIN LATERAL (SELECT {_NARROW} FROM listed l WHERE l.{text} = d.{text} OFFSET 0) l"""
        case "time":
            filters.of_time(first, wanted, "l")
            source = f"(SELECT * FROM listed l WHERE {first} OFFSET 0) l"
        case "traits":
            filters.of_labels(first, wanted)
            source = f"(SELECT * FROM listed l WHERE {first} OFFSET 0) l"
        case "standings":
            filters.of_standing(first, wanted)
            source = f"""(SELECT * FROM standings s WHERE {first} OFFSET 0) s
                CROSS JOIN LATERAL ({_LISTED_OF_STANDING} OFFSET 0) l"""
    rows = f"SELECT {_NARROW} FROM {source} {beside} WHERE {where}"
    if order.of == "s" or wanted.asks_of_standing:
        return await _with_keys(connection, wanted, order, f"{rows} OFFSET 0", inside)
    rows += f" AND {inside} ORDER BY {order.by('l')} LIMIT {order.limit}"
    return await _with_keys(connection, wanted, order, rows, Where(inside.parameters))


async def _with_keys(
    connection: AnyConnection, wanted: ClientFilter, order: _Order, rows: str, where: Where
) -> list[Row]:
    """The first of these rows of `listed` whose `standings` are as asked for."""
    beside = ""
    if order.of == "s" or wanted.asks_of_standing:
        filters.of_standing(where, wanted)
        beside = _STANDING_OF_KEY
    return await connection.fetch(
        f"""
        SELECT k.client_key, {order.place(order.of)} FROM ({rows}) l {_KEY} {beside}
        WHERE {where} ORDER BY {order.by(order.of)} LIMIT {order.limit}
        """,
        *where.parameters,
    )


async def _among_all(connection: AnyConnection, wanted: ClientFilter, order: _Order) -> list[Row]:
    """The same by whichever way Postgres takes."""
    where = _on_the_way(wanted, order)
    source = _BOTH if order.of == "s" or wanted.asks_of_standing else "listed l"
    source += await _of_all(connection, where, wanted, order.of)
    return await connection.fetch(
        f"""
        SELECT client_key, {order.place("f")}
        FROM (SELECT {order.of}.* FROM {source} WHERE {where} OFFSET 0) f
        ORDER BY {order.by("f")} LIMIT {order.limit}
        """,
        *where.parameters,
    )


async def _of_all(connection: AnyConnection, where: Where, wanted: ClientFilter, of: Of) -> str:
    """All that is asked for, of a row of each table; and what is to be looked at beside."""
    _of_listed(where, wanted)
    beside = _looked_up(where, wanted) if wanted.asks_of_redirects else ""
    filters.of_standing(where, wanted)
    since = None if wanted.revoked_after is None else await position_after(connection, wanted.revoked_after)
    filters.of_others(where, wanted, of, since)
    return beside


async def _held(connection: AnyConnection, wanted: ClientFilter, order: _Order) -> dict[By, Held]:
    """How many clients have each of the things that are asked for."""
    held: dict[By, Held] = {"traits": await _having_traits(connection, wanted)}
    if wanted.name is not None:
        held["names"] = await _having(connection, wanted, "names")
    if wanted.asks_of_redirects:
        held["redirections"] = await _having(connection, wanted, "redirections")
    where = Where()
    if wanted.asks_of_time and order.column != "created_at":
        filters.of_time(where, wanted, "l")
        count = await _few(connection, f"listed l WHERE {where}", where, most=SORTED)
        held["time"] = Held(count, count)
    where = Where()
    if wanted.asks_of_standing:
        filters.of_standing(where, wanted)
        count = await _few(connection, f"standings s WHERE {where}", where, most=SORTED)
        held["standings"] = Held(count, count)
    return held


async def _having_traits(connection: AnyConnection, wanted: ClientFilter) -> Held:
    """How many have the traits that are asked for."""
    where = _with_traits(wanted)
    row = await connection.fetchrow(
        f"""
        SELECT coalesce(sum({filters.tallied(wanted)}), 0)::bigint, coalesce(sum(l.clients), 0)::bigint
        FROM tallies l WHERE {where}
        """,
        *where.parameters,
    )
    assert row is not None
    return Held(*row)


async def _having(connection: AnyConnection, wanted: ClientFilter, table: Texts) -> Held:
    """Which texts are those asked for, and how many clients have them, unless those are many."""
    where = Where()
    _of_text(where, wanted, table, by_index=True)
    passing = Where(where.parameters)
    filters.of_traits(passing, wanted)
    rows = await connection.fetch(
        f"""
        SELECT l.{_TEXT[table][0]} AS text, l.clients, {filters.tallied(wanted)} AS fit, ({passing}) AS passing
        FROM {table} l WHERE {where} LIMIT {TEXTS + 1}
        """,
        *where.parameters,
    )
    if len(rows) > TEXTS:
        return Held(None, None)
    texts = {each["text"] for each in rows if each["passing"] and each["fit"]}
    clients = sum(each["fit"] for each in rows if each["passing"])
    return Held(clients, sum(each["clients"] for each in rows if each["text"] in texts), list(texts))


async def _few(connection: AnyConnection, source: str, where: Where, *, most: int) -> int | None:
    """How many there are, unless they are more."""
    count = await connection.fetchval(
        f"SELECT count(*) FROM (SELECT FROM {source} LIMIT {most + 1}) t", *where.parameters
    )
    return None if count > most else count


async def _sum(connection: AnyConnection, table: str, where: Where, clients: str = "l.clients") -> int:
    query = f"SELECT coalesce(sum({clients}), 0)::bigint FROM {table} l WHERE {where}"
    return cast("int", await connection.fetchval(query, *where.parameters))


def _with_traits(wanted: ClientFilter) -> Where:
    where = Where()
    filters.of_traits(where, wanted)
    return where


def _texts(wanted: ClientFilter, table: Texts, parameters: list[object] | None = None) -> Where:
    """Those that are asked for, of clients with the traits that are asked for."""
    where = Where(parameters)
    _of_text(where, wanted, table)
    filters.of_traits(where, wanted)
    return where


def _of_text(where: Where, wanted: ClientFilter, table: Texts, *, by_index: bool = False) -> None:
    """Of a row `l` of the table. Where only some are looked for, and perhaps none, an index is to find them."""
    if table == "redirections":
        filters.of_redirects(where, wanted, "l")
    elif by_index:
        filters.of_name_by_index(where, wanted)
    else:
        filters.of_name(where, wanted)


async def total(connection: AnyConnection, wanted: ClientFilter) -> int:
    """How many there are: from the smallest table, or index, that has all that is asked for."""
    if wanted.contradicts_itself:
        return 0
    if wanted.asks_of_others:
        return await _counted_among_all(connection, wanted)
    texts = (wanted.name is not None) + wanted.asks_of_redirects
    if not wanted.asks_of_activity and not wanted.asks_of_time and texts < 2:
        return await _tallied(connection, wanted)
    if not wanted.asks_of_standing and not texts:
        return await _counted_by_days(connection, wanted)
    if wanted.asks_of_standing and not texts and not filters.asks_of_traits(wanted):
        return await _counted_of_standings(connection, wanted)
    return await _counted(connection, wanted)


async def _tallied(connection: AnyConnection, wanted: ClientFilter) -> int:
    """By one of the tables that say how many clients are alike."""
    clients = filters.tallied(wanted)
    if wanted.name is not None:
        return await _sum(connection, "names", _texts(wanted, "names"), clients)
    if wanted.asks_of_redirects:
        return await _sum(connection, "redirections", _texts(wanted, "redirections"), clients)
    return await _sum(connection, "tallies", _with_traits(wanted), clients)


async def _counted_by_days(connection: AnyConnection, wanted: ClientFilter) -> int:
    """Of whole days by what these have; of the days in which the time begins and ends, client by client."""
    if await _sum(connection, "tallies", _with_traits(wanted)) <= SORTED:
        return await _counted(connection, wanted)  # by an index of the traits: a day may have more than these are
    days = _with_traits(wanted)
    edges = []
    if wanted.created_after is not None:
        days.add(f"l.day > {_DAY}", wanted.created_after)
        edges.append(first := Where(days.parameters))
        first.add(f"l.created_at < {_MIDNIGHT_AFTER}", wanted.created_after)
    if wanted.created_before is not None:
        days.add(f"l.day < {_DAY}", wanted.created_before)
        edges.append(last := Where(days.parameters))
        last.add(f"l.created_at >= {_MIDNIGHT_BEFORE}", wanted.created_before)
        if wanted.created_after is not None:  # on the same day, perhaps: nobody is counted twice
            last.add(f"l.created_at >= {_MIDNIGHT_AFTER}", wanted.created_after)
    for edge in edges:
        filters.of_traits(edge, wanted)
        filters.of_time(edge, wanted, "l")
    counted = "".join(f" + (SELECT count(*) FROM listed l WHERE {edge})" for edge in edges)
    query = f"SELECT coalesce(sum(l.clients), 0)::bigint{counted} FROM days l WHERE {days}"
    return cast("int", await connection.fetchval(query, *days.parameters))


async def _counted_of_standings(connection: AnyConnection, wanted: ClientFilter) -> int:
    """Those that are asked for, by an index of `standings`; or, where the others are less, these, out of all."""
    where = Where()
    where.add("s.registered_position IS NOT NULL")
    if wanted.asks_of_grants != (wanted.last_activity_before is not None) and traits.TIMELY_FLAG not in wanted.flags:
        others = None
        if wanted.last_activity_before is not None:
            others = await _used_since(connection, wanted, wanted.last_activity_before)
        elif not wanted.has_active_grants:
            others = await _counted_of_standings(connection, structs.replace(wanted, has_active_grants=True))
        if others is not None:
            whatever_stands = structs.replace(wanted, last_activity_before=None, has_active_grants=None)
            return await total(connection, whatever_stands) - others
    filters.of_standing(where, wanted)
    filters.of_status(where, wanted)
    filters.of_time(where, wanted, "s")
    return await _count(connection, "standings s", where)


async def _used_since(connection: AnyConnection, wanted: ClientFilter, moment: datetime) -> int | None:
    """How many of that status and time were used at the moment or later; None where many were, of whichever status."""
    where = Where()
    where.add("s.last_activity_at >= {}", moment)
    fit = Where(where.parameters)
    fit.add("s.registered_position IS NOT NULL")
    filters.of_status(fit, wanted)
    filters.of_time(fit, wanted, "s")
    row = await connection.fetchrow(
        f"""
        SELECT count(*) AS used, count(*) FILTER (WHERE {fit}) AS fit FROM (
            SELECT s.registered_position, s.status, s.created_at FROM standings s WHERE {where} LIMIT {OTHERS + 1}
        ) s
        """,
        *where.parameters,
    )
    assert row is not None
    return None if row["used"] > OTHERS else row["fit"]


async def _counted(connection: AnyConnection, wanted: ClientFilter) -> int:
    """By indexes alone, as far as they go; from the names that are asked for, unless many have one of these."""
    where = Where()
    source = "listed l"
    if wanted.name is not None:
        names = _texts(wanted, "names")
        having = await _sum(connection, "names", names)
        if having * SHARE < await _sum(connection, "tallies", Where()):
            where = Where(names.parameters)
            source = f"(SELECT DISTINCT l.name FROM names l WHERE {names}) d JOIN listed l ON l.name = d.name"
        else:
            filters.of_name(where, wanted)
    elif wanted.asks_of_redirects:
        having = await _sum(connection, "redirections", _texts(wanted, "redirections"))
    else:
        having = await _sum(connection, "tallies", _with_traits(wanted))
        if having <= SORTED:
            filters.of_labels(where, wanted)
    filters.of_traits(where, wanted)
    filters.of_time(where, wanted, "l")
    if wanted.asks_of_redirects:
        share = await _share(connection, wanted) if having > SORTED else None
        if share == 1 and not wanted.asks_of_standing and not wanted.asks_of_time:
            elsewhere = await _elsewhere(connection, wanted, having)
            if elsewhere is not None:
                return having - elsewhere
        source += await _beside_redirects(connection, where, wanted, share)
    if wanted.asks_of_standing and having <= SORTED:
        source += _KEY + _STANDING_OF_KEY
        filters.of_standing(where, wanted)
    elif wanted.asks_of_standing:
        standing = Where(where.parameters)
        filters.of_standing(standing, wanted)
        source += f"""
            JOIN (SELECT s.registered_position FROM standings s WHERE {standing} OFFSET 0) s USING (registered_position)
        """
    return await _count(connection, source, where)


async def _elsewhere(connection: AnyConnection, wanted: ClientFilter, named: int) -> int | None:
    """How many of a name redirect elsewhere than asked for; None unless all who do are far fewer than have the name."""
    redirects = Where()
    filters.of_redirects(redirects, wanted, "l")
    others = Where(redirects.parameters)
    others.add(f"NOT ({redirects})")
    filters.of_traits(others, wanted)
    clients = await _sum(connection, "redirections", others)
    if clients * FEWER >= named:  # those of other names among them would be read, too
        return None
    if clients == 0:
        return 0
    where = Where(redirects.parameters)
    filters.of_name(where, wanted)
    source = f"""
        (SELECT l.redirects_key, l.traits FROM redirections l WHERE {others} OFFSET 0) r
        JOIN listed l USING (redirects_key, traits)
    """
    return await _count(connection, source, where)


async def _beside_redirects(connection: AnyConnection, where: Where, wanted: ClientFilter, share: float | None) -> str:
    """What rows `l` are joined with so that their redirects are those asked for; what that needs is added.

    Where few have a name (`share` is None), theirs are looked up; where many have it, all that are asked for are
    remembered, or all others, whichever are less.
    """
    others = share is not None and share > 0.5
    known = None if share is None else await _known_redirects(connection, wanted, others=others)
    if known is not None:
        where.add(f"{'NOT' if others else ''} (l.redirects_key = ANY({{}}::uuid[]))", known)
        return ""
    redirects = Where(where.parameters)
    filters.of_redirects(redirects, wanted)
    fit = f"NOT ({redirects})" if others else str(redirects)
    fence = "" if share is None else "OFFSET 0"
    if others:
        where.add("r.redirects_key IS NULL")
    return f"""
        {"LEFT" if others else ""} JOIN (
            SELECT r.redirects_key, r.traits FROM redirections r WHERE {fit} {fence}
        ) r ON r.redirects_key = l.redirects_key AND r.traits = l.traits
    """


async def _known_redirects(connection: AnyConnection, wanted: ClientFilter, *, others: bool) -> list[object] | None:
    """The keys of those that are asked for, or of all others, unless they are many."""
    if not others:
        return (await _having(connection, wanted, "redirections")).texts
    where = Where()
    filters.of_redirects(where, wanted)
    rows = await connection.fetch(
        f"SELECT r.redirects_key FROM redirections r WHERE NOT ({where}) LIMIT {TEXTS + 1}", *where.parameters
    )
    return None if len(rows) > TEXTS else list({each["redirects_key"] for each in rows})


async def _share(connection: AnyConnection, wanted: ClientFilter) -> float:
    """The share of redirects that are asked for, 0 to 1, by a sample of them: it is only about which way is faster."""
    where = Where()
    filters.of_redirects(where, wanted)
    query = f"SELECT coalesce(avg(({where})::int), 0)::float FROM redirections r TABLESAMPLE SYSTEM (1)"
    return cast("float", await connection.fetchval(query, *where.parameters))


async def _counted_among_all(connection: AnyConnection, wanted: ClientFilter) -> int:
    where = Where()
    source = _BOTH if wanted.asks_of_standing else "listed l"
    source += await _of_all(connection, where, wanted, "l")
    return await _count(connection, source, where)


async def _count(connection: AnyConnection, source: str, where: Where) -> int:
    return cast("int", await connection.fetchval(f"SELECT count(*) FROM {source} WHERE {where}", *where.parameters))


def _on_the_way(wanted: ClientFilter, order: _Order) -> Where:
    """The stretch of the order in which a page lies, as far as the order's index can tell."""
    where = Where()
    order.way.begin(where, order.sort, f"{order.of}.registered_position", "bigint")
    never_used = traits.TIMELY_FLAG in wanted.flags
    if order.of == "s":
        where.add("s.registered_position IS NOT NULL")
    match order.sort.expression:
        case "l.created_at":
            filters.of_time(where, wanted, "l")
        case "l.registered_position":  # in an index of those alone
            where.add(traits.has_any(*traits.CLOSED))
        case "s.created_at":  # in an index of those alone
            filters.of_time(where, wanted, "s")
            where.add(filters.NEVER_USED if never_used else "s.active_grants > 0")
        case "s.last_activity_at":
            if wanted.last_activity_before is not None:
                where.add("s.last_activity_at < {}", wanted.last_activity_before)
            if never_used:
                where.add("s.last_activity_at = '-infinity'")
        case "s.active_grants":
            if wanted.has_active_grants is not None:
                where.add("s.active_grants > 0" if wanted.has_active_grants else "s.active_grants = 0")
        case _:
            pass
    return where


def _of_listed(where: Where, wanted: ClientFilter) -> None:
    """What is asked of a row `l`, but for its redirects."""
    filters.of_traits(where, wanted)
    filters.of_time(where, wanted, "l")
    filters.of_name(where, wanted)


def _looked_up(where: Where, wanted: ClientFilter) -> str:
    """The redirects of rows `l`, one row after the other, where they are asked for; that they are those is added."""
    redirects = Where(where.parameters)
    filters.of_redirects(redirects, wanted)
    where.add("r.fit")
    # Beside, and not among the conditions, so that Postgres remembers them: clients of a flood are alike.
    return f"""
        CROSS JOIN LATERAL (
            SELECT ({redirects}) AS fit FROM redirections r WHERE r.redirects_key = l.redirects_key LIMIT 1
        ) r
    """


def _redirects(where: Where, wanted: ClientFilter, held: Mapping[By, Held]) -> str:
    """The same, or that they are among those asked for, where these are known."""
    redirections = held.get("redirections")
    if redirections is None or redirections.texts is None:
        return _looked_up(where, wanted)
    where.add("l.redirects_key = ANY({}::uuid[])", redirections.texts)
    return ""


_DAY: Final = "({}::timestamptz AT TIME ZONE 'UTC')::date"
_MIDNIGHT_BEFORE: Final = f"({_DAY}::timestamp AT TIME ZONE 'UTC')"
_MIDNIGHT_AFTER: Final = f"(({_DAY} + 1)::timestamp AT TIME ZONE 'UTC')"
_BOTH: Final = (
    "listed l JOIN standings s ON s.client_key = l.client_key AND s.registered_position = l.registered_position"
)
"""Each is found from the other by its own key."""
_LISTED_OF_STANDING: Final = "SELECT * FROM listed o WHERE o.registered_position = s.registered_position"
_TEXT: Final = {"names": ("name", "text"), "redirections": ("redirects_key", "uuid")}
"""What `listed` has of a table's texts, and of which type."""
_NARROW: Final = "l.registered_position, l.created_at, l.traits, l.name, l.redirects_key"
"""What indexes of `listed` have."""
_KEY: Final = """
    CROSS JOIN LATERAL (
        SELECT o.client_key FROM listed o WHERE o.registered_position = l.registered_position OFFSET 0
    ) k
"""
_STANDING_OF_KEY: Final = "CROSS JOIN LATERAL (SELECT * FROM standings o WHERE o.client_key = k.client_key OFFSET 0) s"


async def position_after(connection: AnyConnection, moment: datetime) -> int | None:
    """The first position that was recorded then or later: those of the log are in the order of time."""
    position: int | None = await connection.fetchval(
        "SELECT position FROM events WHERE recorded_at >= $1 ORDER BY recorded_at, position LIMIT 1", moment
    )
    return position
