"""Make the read models of the log in bulk: copy all of it into tables without indexes, then make rows, then indexes.

Row by row the same as what the live projector comes to, by other statements: those of `apply.sql` change what is there
for each batch, these see all of the log at once. That is faster where the log is long: each index is built once, from
sorted rows, and several processes read the log, a part of it each.
"""

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from graphlib import TopologicalSorter
from typing import Any, Final, Literal, Protocol

import asyncpg
import msgspec
from msgspec import Struct

from appraisal import flags
from grantbook.sdk.tasks import end, together
from projector import db, loader, projections
from projector.applying import Halt
from projector.db import Checkpoint, Connection
from projector.loader import Copied, Failed, Part
from projector.run import Sources

Unit = Literal["events", "rows"]
Told = Callable[[int, int, Unit], None]
"""Hears of progress: how many are done, of how many, of what. The rows that are made of the events come after them."""

BULK_EVENTS: Final = 20_000
"""From so many events on it is worth its start."""
MAX_PART: Final = 50_000
PARTS_A_LOADER: Final = 8
"""At least, so that none has much to do when the others are done."""
STEP_SECONDS: Final = 6 * 3_600.0
STOP_SECONDS: Final = 5.0
ROW_BY_ENTRY: Final = 8
"""What making a row costs, by what an entry of an index does, about."""


class LoaderFailed(Exception):
    """A process that loads a part of the log has ended. Says why."""


class Loader(Protocol):
    """Loads one part of the log after another."""

    async def load(self, part: Part, told: loader.Told) -> None:
        """Load it. Raises `Halt`, `LoaderFailed`, and one of `db.UNREACHABLE`."""


OpenLoader = Callable[[str], contextlib.AbstractAsyncContextManager[Loader]]
"""Opens a loader into a schema."""


class Here(Struct, frozen=True):
    """Loads in this process."""

    connection: Connection
    sources: Sources

    async def load(self, part: Part, told: loader.Told) -> None:
        """Load it."""
        await loader.load(self.connection, self.sources, part, told)


class Child(Struct, frozen=True):
    """Loads in a process of its own."""

    process: asyncio.subprocess.Process

    async def load(self, part: Part, told: loader.Told) -> None:
        """Have it loaded."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(ConnectionError):  # it has ended: what it said last tells why
            self.process.stdin.write(msgspec.json.encode(part) + b"\n")
            await self.process.stdin.drain()
        while line := await self.process.stdout.readline():
            answer: Copied | Failed = loader.ANSWER.decode(line)
            match answer:
                case Failed(reason, halt=True):
                    raise Halt(reason)
                case Failed(reason):
                    raise LoaderFailed(reason)
                case Copied() as copied:
                    told(copied)
                    if copied.reached.sequence >= part.until:
                        return
        message = f"a process that loads the log ended, status {await self.process.wait()}: its messages are above"
        raise LoaderFailed(message)


def children(nats_url: str, database_url: str) -> OpenLoader:
    """Loaders that are processes."""

    @asynccontextmanager
    async def opened(schema: str) -> AsyncIterator[Loader]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "projector.loader"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(loader.Task(nats_url, database_url, schema)) + b"\n")
            yield Child(process)
        finally:
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()

    return opened


def here(database_url: str, sources: Sources) -> OpenLoader:
    """Loaders in this process."""

    @asynccontextmanager
    async def opened(schema: str) -> AsyncIterator[Loader]:
        connection = await db.connect(database_url, schema, name="grantbook loader")
        try:
            yield Here(connection, sources)
        finally:
            connection.terminate()

    return opened


class Index(Struct, frozen=True):
    """An index of a table, and how it is made."""

    table: str
    name: str
    made_by: str


async def build(
    database_url: str, schema: str, loaders: Sequence[OpenLoader], identity: str, until: int, told: Told
) -> None:
    """Fill the schema's empty tables with what the log says up to a position, and move its checkpoint there.

    As many statements as there are loaders go side by side afterwards. `identity` is the log's. Raises `Halt`,
    `LoaderFailed`, and one of `db.UNREACHABLE`; what is there then is of no use.
    """
    async with AsyncExitStack() as stack:
        builders = []
        for _ in loaders:
            builder = await db.connect(database_url, schema, name="grantbook bulk")
            stack.callback(builder.terminate)
            await builder.execute(_SETTINGS)
            builders.append(builder)
        indexes = await _without_indexes(builders[0])
        await builders[0].execute("ALTER TABLE listed DISABLE TRIGGER USER")
        for name, like in loader.LOADED.items():
            # What is lost with the machine is made anew: nothing of it need be written twice.
            await builders[0].execute(f"CREATE UNLOGGED TABLE {name} {like} WITH (autovacuum_enabled = off)")
        opened = [await stack.enter_async_context(each(schema)) for each in loaders]
        reached = await _loaded(opened, identity, until, told)
        await _made(builders, indexes, until, told)
        for name in loader.LOADED:
            await builders[0].execute(f"DROP TABLE {name}")
        await builders[0].execute("ALTER TABLE listed ENABLE TRIGGER USER")
        async with builders[0].transaction():
            before = await db.checkpoint(builders[0], "log")
            await db.move_checkpoint(builders[0], schema, "log", before, reached)


_SETTINGS: Final = """
    SET maintenance_work_mem = '256MB'; SET work_mem = '64MB';
    -- As many steps as there are cores are under way already.
    SET max_parallel_workers_per_gather = 0; SET max_parallel_maintenance_workers = 0
"""


async def _without_indexes(connection: Connection) -> list[Index]:
    """Drop the indexes of the schema's tables, all but empty, save for the checkpoints'. What was dropped."""
    rows = await connection.fetch(
        """
        SELECT t.relname AS table, i.relname AS name, c.conname AS constraint,
            coalesce(pg_get_constraintdef(c.oid), pg_get_indexdef(i.oid)) AS definition
        FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
        LEFT JOIN pg_constraint c ON c.conindid = i.oid
        WHERE t.relnamespace = current_schema()::regnamespace AND t.relname <> 'checkpoints'
        ORDER BY i.relname
        """
    )
    indexes = []
    for row in rows:
        table, name, made_by = row["table"], row["name"], row["definition"]
        if row["constraint"] is None:
            await connection.execute(f'DROP INDEX "{name}"')
        else:
            await connection.execute(f'ALTER TABLE "{table}" DROP CONSTRAINT "{name}"')
            made_by = f'ALTER TABLE "{table}" ADD CONSTRAINT "{name}" {made_by}'
        indexes.append(Index(table, name, made_by))
    return indexes


async def _loaded(loaders: Sequence[Loader], identity: str, until: int, told: Told) -> Checkpoint:
    """Have all parts loaded. The checkpoint at the last."""
    size = max(1, min(MAX_PART, until // (PARTS_A_LOADER * len(loaders))))
    parts = deque(Part(after, min(after + size, until), identity) for after in range(0, until, size))
    done = 0
    last = Checkpoint(0, "", identity)

    def copied(what: Copied) -> None:
        nonlocal done, last
        done += what.events
        if what.reached.sequence > last.sequence:
            last = what.reached
        told(done, until, "events")

    async def work(each: Loader) -> None:
        while parts:
            await each.load(parts.popleft(), copied)

    await together(*(work(each) for each in loaders))
    if last.identity != identity:
        message = "the log was replaced while it was read: begin again"
        raise Halt(message)
    return last


class Rows(Struct, frozen=True):
    """How the rows of a table are made: of which loaded ones for the most part, and what must be there before."""

    of: str
    sql: str
    needs: tuple[str, ...] = ()
    values: tuple[object, ...] = ()


async def _made(builders: Sequence[Connection], indexes: Sequence[Index], events: int, told: Told) -> None:
    """Make the rows and the indexes of all tables, each as soon as what it needs is there, several at once."""
    loaded = await _looked_at(builders)
    made_by = {each.name: each for each in indexes}
    tables = sorted({each.table for each in indexes})
    weights = {each: loaded[_ROWS[each].of] if each in _ROWS else events for each in tables}
    weights |= {each.name: weights[each.table] for each in indexes}
    needs = {each: set(_ROWS[each].needs) if each in _ROWS else set() for each in tables}
    needs |= {each.name: {each.table} for each in indexes}
    needed = {made_by[need].table if need in made_by else need for each in _ROWS.values() for need in each.needs}
    swept = {f"vacuum {each}": each for each in tables}
    for step, table in swept.items():
        weights[step] = weights[table]
        needs[step] = {table, *(each.name for each in indexes if each.table == table)}

    async def make(step: str, builder: Connection) -> None:
        if step in made_by:
            await _make_index(builder, made_by[step])
        elif step in swept:
            # Pages that are known to be seen by all are what makes counting from an index alone possible.
            how = "" if swept[step] in needed else "(ANALYZE)"
            await builder.execute(f"VACUUM {how} {swept[step]}", timeout=STEP_SECONDS)
        elif step in _ROWS:
            await builder.execute(_ROWS[step].sql, *_ROWS[step].values, timeout=STEP_SECONDS)
            if step in needed:
                await builder.execute(f"ANALYZE {step}", timeout=STEP_SECONDS)

    await _in_order(needs, weights, builders, make, told)


async def _looked_at(builders: Sequence[Connection]) -> dict[str, int]:
    """Have Postgres look at what was loaded, so that it plans well. By table, about how many rows it has."""
    loaded: dict[str, int] = {}
    left = list(loader.LOADED)

    async def look(builder: Connection) -> None:
        while left:
            name = left.pop()
            await builder.execute(f"ANALYZE {name}", timeout=STEP_SECONDS)
            loaded[name] = max(0, int(await builder.fetchval(_ABOUT, name)))

    await together(*(look(each) for each in builders))
    return loaded


async def _in_order(
    needs: dict[str, set[str]],
    weights: dict[str, int],
    builders: Sequence[Connection],
    make: Callable[[str, Connection], Coroutine[Any, Any, None]],
    told: Told,
) -> None:
    """Make each step once all that it needs is made, as many at once as there are builders.

    First what the most is still to be made behind: else it would be made alone in the end, one step after the other.
    """
    ways = _ways(needs, {step: weight * (ROW_BY_ENTRY if step in _ROWS else 1) for step, weight in weights.items()})
    order = TopologicalSorter(needs)
    order.prepare()
    free = list(builders)
    ready: list[str] = []
    under_way: dict[asyncio.Task[None], tuple[str, Connection]] = {}
    done, total = 0, sum(weights.values())
    try:
        while order.is_active():
            ready = sorted([*ready, *order.get_ready()], key=ways.__getitem__)
            while free and ready:
                step, builder = ready.pop(), free.pop()
                under_way[asyncio.create_task(make(step, builder), name=step)] = (step, builder)
            ended, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            for each in ended:
                step, builder = under_way.pop(each)
                each.result()
                order.done(step)
                free.append(builder)
                done += weights[step]
                told(done, total, "rows")
    finally:
        for each in under_way:
            await end(each)


def _ways(needs: dict[str, set[str]], costs: dict[str, int]) -> dict[str, int]:
    """By step, what it costs with what comes behind it, one after the other, where that is the most."""
    ways = dict(costs)
    for step in reversed([*TopologicalSorter(needs).static_order()]):
        for each in needs[step]:
            ways[each] = max(ways[each], costs[each] + ways[step])
    return ways


async def _make_index(builder: Connection, index: Index) -> None:
    try:
        await builder.execute(index.made_by, timeout=STEP_SECONDS)
    except asyncpg.UniqueViolationError:
        if index.table != "grants":
            raise
        # An id is issued once. Should a second `issued` ever stand in the log, the first counts.
        await builder.execute(_FIRST_ISSUED, timeout=STEP_SECONDS)
        await builder.execute(index.made_by, timeout=STEP_SECONDS)


_ABOUT: Final = "SELECT reltuples FROM pg_class WHERE oid = $1::text::regclass"
_FIRST_ISSUED: Final = """
    DELETE FROM grants g USING (
        SELECT client_key, grant_key, min(issued_position) AS position FROM grants
        GROUP BY client_key, grant_key HAVING count(*) > 1
    ) f
    WHERE g.client_key = f.client_key AND g.grant_key = f.grant_key AND g.issued_position > f.position
"""
_COUNTS: Final = """
    count(*) AS clients, count(*) FILTER (WHERE s.active_grants > 0) AS in_use
    FROM listed l JOIN standings s USING (registered_position)
"""
_ROWS: Final = {
    "redirect_hosts": Rows(
        "loaded_hosts",
        """
        INSERT INTO redirect_hosts
        SELECT DISTINCT ON (host) host, first_position, first_seen_at FROM loaded_hosts ORDER BY host, first_position
        """,
    ),
    "hours": Rows(
        "loaded_hours", "INSERT INTO hours SELECT hour, type, sum(events) FROM loaded_hours GROUP BY hour, type"
    ),
    "users": Rows(
        "loaded_users",
        """
        INSERT INTO users (user_key, granted, cut_off_position)
        SELECT user_key, bool_or(granted), coalesce(max(position), 0)
        FROM loaded_users LEFT JOIN (
            SELECT user_key, max(position) AS position FROM cut_offs GROUP BY user_key
        ) c USING (user_key)
        GROUP BY user_key
        """,
    ),
    "clients": Rows(
        "loaded_clients",
        """
        INSERT INTO clients (client_key, client_id, registered_position, registered_at, created_at, source,
            client_name, client_name_folded, redirect_uris, redirect_text, labels, scope, grant_types,
            token_endpoint_auth_method, family, registered_family, flags, metadata, new_redirect_host,
            many_registrations, suspended_position, deleted_position, deleted_at)
        WITH registered AS MATERIALIZED (  -- no more of them than this needs: all that clients say is a lot to sort
            SELECT DISTINCT ON (client_key) client_key, position, family, registered_at FROM loaded_clients
            ORDER BY client_key, position
        ), paced AS (
            SELECT position, coalesce(registered_at - lag(registered_at, $2) OVER (
                PARTITION BY family ORDER BY position
            ) <= $3, false) AS many
            FROM registered
        ), gates AS (
            SELECT DISTINCT ON (g.client_key) g.* FROM loaded_gates g JOIN registered r USING (client_key)
            WHERE g.position > r.position
            ORDER BY g.client_key, g.deleted_position, g.position DESC  -- those without a deletion come last
        ), changed AS (
            SELECT DISTINCT ON (m.client_key) m.* FROM loaded_metadata m JOIN registered r USING (client_key)
            WHERE m.position > r.position
            ORDER BY m.client_key, m.position DESC
        )
        SELECT l.client_key, l.client_id, l.position, l.registered_at, l.created_at, l.source,
            n.client_name, n.folded, n.redirect_uris::text[], n.redirect_text,
            n.labels::text[] || ('source:' || l.source), n.scope, n.grant_types::text[],
            n.auth_method, n.family, l.family, n.flags::text[], n.metadata,
            EXISTS (
                SELECT FROM redirect_hosts h
                WHERE h.host = ANY(n.redirect_hosts::text[]) AND h.first_seen_at > n.said_at - $1::interval
            ),
            p.many, g.suspended_position, g.deleted_position, g.deleted_at
        FROM loaded_clients l JOIN paced p ON p.position = l.position
        LEFT JOIN gates g ON g.client_key = l.client_key LEFT JOIN changed m ON m.client_key = l.client_key
        CROSS JOIN LATERAL (
            SELECT m.changed_at AS said_at, m.client_name, m.folded, m.redirect_uris, m.redirect_text, m.labels,
                m.scope, m.grant_types, m.auth_method, m.family, m.flags, m.metadata, m.redirect_hosts
            WHERE m.position IS NOT NULL
            UNION ALL
            SELECT l.registered_at, l.client_name, l.folded, l.redirect_uris, l.redirect_text, l.labels,
                l.scope, l.grant_types, l.auth_method, l.family, l.flags, l.metadata, l.redirect_hosts
            WHERE m.position IS NULL
        ) n
        """,
        ("redirect_hosts_pkey",),
        (projections.NEW_HOST, flags.BURST_CLIENTS, projections.BURST),
    ),
    "listed": Rows(
        "loaded_clients",
        """
        INSERT INTO listed (registered_position, client_key, created_at, traits, name, redirects_key, labels)
        SELECT registered_position, client_key, created_at, traits, name, redirects_key, labels FROM to_list
        ORDER BY registered_position
        """,
        ("clients",),
    ),
    "tallies": Rows(
        "loaded_clients",
        f"INSERT INTO tallies (traits, clients, in_use) SELECT l.traits, {_COUNTS} GROUP BY 1",
        ("listed", "standings"),
    ),
    "days": Rows(
        "loaded_clients",
        """
        INSERT INTO days (day, traits, clients)
        SELECT (created_at AT TIME ZONE 'UTC')::date, traits, count(*) FROM listed GROUP BY 1, 2
        """,
        ("listed",),
    ),
    "names": Rows(
        "loaded_clients",
        f"INSERT INTO names (name, traits, clients, in_use) SELECT l.name, l.traits, {_COUNTS} GROUP BY 1, 2",
        ("listed", "standings"),
    ),
    "redirections": Rows(
        "loaded_clients",
        f"""
        INSERT INTO redirections (redirects_key, traits, clients, in_use, redirects, hosts)
        SELECT l.redirects_key, l.traits, l.clients, l.in_use, n.redirects, n.hosts
        FROM (
            SELECT l.redirects_key, l.traits, min(registered_position) AS registered_position, {_COUNTS} GROUP BY 1, 2
        ) l JOIN to_list n USING (registered_position)
        """,
        ("listed", "standings"),
    ),
    "grants": Rows(
        "loaded_grants",
        """
        INSERT INTO grants (client_key, grant_key, grant_id, client_id, user_key, user_id, username,
            username_folded, scopes, issued_position, issued_at, logged_expires_at, lapses_at, metadata_sha256,
            revoked_position, revoked_at, revoked_reason, open)
        WITH revoked AS (
            SELECT DISTINCT ON (r.client_key, r.grant_key) r.*
            FROM loaded_revocations r JOIN loaded_grants g USING (client_key, grant_key)
            WHERE r.position > g.position
            ORDER BY r.client_key, r.grant_key, r.position
        ), extended AS (
            SELECT DISTINCT ON (client_key, grant_key) * FROM loaded_extensions
            ORDER BY client_key, grant_key, position DESC
        )
        SELECT g.client_key, g.grant_key, coalesce(g.grant_id, g.grant_key), coalesce(g.client_id, g.client_key),
            g.user_key, coalesce(g.user_id, g.user_key), g.username, coalesce(g.folded, g.username),
            g.scopes::text[], g.position, g.issued_at, coalesce(e.expires_at, g.expires_at),
            coalesce(e.lapses_at, g.lapses_at), g.metadata_sha256, r.position, r.at, r.reason,
            r.position IS NULL AND coalesce(u.cut_off_position, 0) < g.position
                AND coalesce(e.lapses_at, g.lapses_at) > now()
        FROM loaded_grants g
        LEFT JOIN revoked r USING (client_key, grant_key)
        LEFT JOIN extended e
            ON e.client_key = g.client_key AND e.grant_key = g.grant_key AND e.position > g.position
        LEFT JOIN users u ON u.user_key = g.user_key
        """,
        ("users",),
    ),
    "client_users": Rows(
        "loaded_grants",
        """
        INSERT INTO client_users (client_key, user_key, open_grants)
        SELECT client_key, user_key, count(*) FROM grants WHERE open GROUP BY client_key, user_key
        """,
        ("grants_pkey",),
    ),
    "standings": Rows(
        "loaded_grants",
        """
        INSERT INTO standings (client_key, registered_position, created_at, status, grants, open_grants, open_users,
            last_granted_at)
        WITH granted AS (
            SELECT client_key, count(*) AS grants, count(*) FILTER (WHERE open) AS opened
            FROM grants GROUP BY client_key
        ), used_by AS (
            SELECT client_key, count(*) AS users FROM client_users GROUP BY client_key
        ), latest AS (
            SELECT client_key, max(at) AS at
            FROM (
                SELECT client_key, position, issued_at AS at FROM loaded_grants
                UNION ALL SELECT client_key, position, at FROM loaded_granted
            ) n JOIN clients c USING (client_key)
            WHERE c.registered_position < n.position
            GROUP BY client_key
        )
        SELECT client_key, c.registered_position, c.created_at, coalesce(c.status, 'active'), coalesce(g.grants, 0),
            coalesce(g.opened, 0), coalesce(u.users, 0), coalesce(l.at, '-infinity')
        FROM to_list c FULL JOIN granted g USING (client_key)
        LEFT JOIN used_by u USING (client_key) LEFT JOIN latest l USING (client_key)
        """,
        ("clients", "grants_pkey", "client_users"),
    ),
    "totals": Rows(
        "loaded_clients",
        """
        UPDATE totals SET grants = s.grants, active_grants = s.active_grants, users = s.users
        FROM (
            SELECT coalesce(sum(grants), 0) AS grants, coalesce(sum(active_grants), 0) AS active_grants,
                (SELECT count(*) FROM users) AS users
            FROM standings
        ) s
        """,
        ("standings", "users"),
    ),
}
"""By table. The others were loaded as they are, or are filled from the activity."""
