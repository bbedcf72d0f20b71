"""Make the read models anew from the log, beside the live ones: to take their place, or to compare.

Both build in a schema of their own while the live projector goes on. Only for the end they take the swap lock, which
holds it up for as long as the last few events take: then both schemas are at the same positions.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final, Literal

import asyncpg
import structlog
from msgspec import Struct

from grantbook.sdk.log import StreamState
from grantbook.sdk.tasks import end
from projector import bulk, db, run
from projector.applying import Halt, apply
from projector.bulk import OpenLoader, Told
from projector.db import Checkpoint, Connection, ReadModel
from projector.run import Sources

Purpose = Literal["rebuild", "verify"]
CLOSE_EVENTS: Final = 5_000
"""From so few events behind, the live projector is held up until the end."""
SHOWN_DIFFERENCES: Final = 10
COMPARE_SECONDS: Final = 3_600.0

_KEYS: Final = {
    "clients": "client_key",
    "listed": "registered_position",
    "tallies": "traits",
    "days": "day, traits",
    "names": "name, traits",
    "redirections": "redirects_key, traits",
    "redirect_hosts": "host",
    "standings": "client_key",
    "grants": "client_key, grant_key",
    "hours": "hour, type",
    "users": "user_key",
    "cut_offs": "user_key, position",
    "events": "position",
}
_ACTIVITY_COLUMNS: Final = ("last_activity_at", "activity_expires_at", "uses")
"""Not from the log, but from the activity, whose oldest events age out."""
_COUNTED: Final = ("open", "open_grants", "open_users", "active_grants", "in_use")
"""Not from the log alone, but from the time, too: looked at is whether they agree with each other and the rest."""
_DAYS: Final = "client_days"
"""From the activity alone. Compared from the first day on of which all is kept."""

_log = structlog.get_logger("projector")


class Busy(Exception):
    """Another run of the same is under way."""


class Difference(Struct, frozen=True):
    """Rows of a table that one side has and the other has not: how many, and the first few of them."""

    table: str
    side: Literal["live", "log"]
    """Where the rows are: in the live read models alone, or in those made from the log alone."""
    count: int
    rows: list[dict[str, object]]


class Verdict(Struct, frozen=True):
    """What a comparison found, and at which positions. `activity_since`: activity before it has aged out."""

    log: Checkpoint
    activity: Checkpoint
    differences: list[Difference]
    activity_since: datetime | None


class Means(Struct, frozen=True):
    """What read models are made by: from where, to where, and by which loaders in bulk (none: in this process)."""

    database_url: str
    sources: Sources
    loaders: Sequence[OpenLoader] = ()
    bulk_events: int = bulk.BULK_EVENTS
    """A log of fewer events is applied as it comes."""


class Workplace(Struct, frozen=True):
    """A connection to the live schema, one to the schema beside it, and what both are made from."""

    schema: str
    beside: str
    live: Connection
    builder: Connection
    means: Means

    @property
    def sources(self) -> Sources:
        """Where both are made from."""
        return self.means.sources


@asynccontextmanager
async def workplace(means: Means, purpose: Purpose, schema: str) -> AsyncIterator[Workplace]:
    """An empty schema beside the live one. Raises `Busy`, and one of `db.UNREACHABLE`."""
    beside = f"{schema}_{purpose}"
    live = await db.connect(means.database_url, schema, name=f"grantbook {purpose}")
    try:
        if not await live.fetchval("SELECT pg_try_advisory_lock($1)", db.lock_key("workplace", schema)):
            message = "another rebuild or verify runs: wait until it has ended"
            raise Busy(message)
        await db.ensure_schema(live, schema)
        await db.drop_schema(live, beside)
        await db.ensure_schema(live, beside)
        builder = await db.connect(means.database_url, beside, name=f"grantbook {purpose} beside")
        try:
            yield Workplace(schema, beside, live, builder, means)
        finally:
            builder.terminate()
    finally:
        # Let go of now: the server may notice that a connection has ended only after the next one asks.
        with contextlib.suppress(*db.UNREACHABLE, asyncpg.PostgresError):
            await live.execute("SELECT pg_advisory_unlock_all()")
        live.terminate()


async def rebuild(means: Means, told: Told, *, schema: str = db.SCHEMA) -> Checkpoint:
    """Put read models made anew from the log in the place of the live ones. The log's checkpoint that they are at.

    Raises `Halt` where the log cannot be applied, `Busy`, `Unavailable`, `LoaderFailed`, and one of `db.UNREACHABLE`.
    """
    sources = means.sources
    async with workplace(means, "rebuild", schema) as place:
        await _build(place, (await _heads(sources))["log"], told)
        while await _behind_head(place) > CLOSE_EVENTS:
            await _catch_up(place, await _heads(sources), told)
        old = f"{schema}_old"
        await db.drop_schema(place.live, old)
        async with db.alone(place.live, schema):
            # Nobody who has read at a position may find himself before it: the new ones are at least as far.
            await _catch_up(place, await _heads(sources), told)
            reached = await db.checkpoint(place.builder, "log")
            await place.live.execute(f'ALTER SCHEMA "{schema}" RENAME TO "{old}"')
            await place.live.execute(f'ALTER SCHEMA "{place.beside}" RENAME TO "{schema}"')
            await place.live.execute("SELECT pg_notify($1, $2)", db.CHANNEL, db.notice(schema, "log", reached))
        await db.drop_schema(place.live, old)
        return reached


async def verify(means: Means, told: Told, *, schema: str = db.SCHEMA) -> Verdict:
    """Compare the live read models with what the log says, at the live ones' position.

    Raises `Halt` where the log cannot be applied, or is not the one that was; `Busy`, `Unavailable`, `LoaderFailed`,
    and one of `db.UNREACHABLE`.
    """
    sources = means.sources
    async with workplace(means, "verify", schema) as place:
        try:
            for read_model in db.READ_MODELS:
                await run.continued(sources.reader(read_model), read_model, await db.checkpoint(place.live, read_model))
            await _build(place, (await _live(place))["log"], told)
            while await _behind_live(place) > CLOSE_EVENTS:
                await _catch_up(place, await _live(place), told)
            snapshot = await db.connect(means.database_url, schema, name="grantbook verify compare")
            try:
                async with snapshot.transaction(isolation="repeatable_read", readonly=True):
                    async with db.alone(place.live, schema):
                        await _catch_up(place, await _live(place), told)
                        log = await db.checkpoint(snapshot, "log")  # what the snapshot sees is fixed from here on
                        activity = await db.checkpoint(snapshot, "activity")
                    since = await _activity_since(sources)
                    return Verdict(log, activity, await _differences(snapshot, place, since), since)
            finally:
                snapshot.terminate()
        finally:
            place.builder.terminate()
            await db.drop_schema(place.live, place.beside)


async def _heads(sources: Sources) -> dict[ReadModel, int]:
    """Where the streams end. The activity is asked first: the log then has every grant that it names."""
    activity = (await sources.activity.state()).last
    return {"log": (await sources.log.state()).last, "activity": activity}


async def _live(place: Workplace) -> dict[ReadModel, int]:
    return {name: (await db.checkpoint(place.live, name)).sequence for name in db.READ_MODELS}


async def _behind_head(place: Workplace) -> int:
    return (await place.sources.log.state()).last - (await db.checkpoint(place.builder, "log")).sequence


async def _behind_live(place: Workplace) -> int:
    live = await db.checkpoint(place.live, "log")
    return live.sequence - (await db.checkpoint(place.builder, "log")).sequence


async def _build(place: Workplace, until: int, told: Told) -> None:
    """Make what the log says up to there in bulk, if it is worth it."""
    means = place.means
    if until < means.bulk_events:
        return
    named = await run.continued(means.sources.log, "log", Checkpoint(0, "", ""))
    loaders = means.loaders or [bulk.here(means.database_url, means.sources)]
    await bulk.build(means.database_url, place.beside, loaders, named.identity, until, told)


async def _catch_up(place: Workplace, until: dict[ReadModel, int], told: Told) -> None:
    """Bring what is built to these positions, and no further: the log first, whose grants the activity names."""
    for read_model in db.READ_MODELS:
        await _apply_until(place, read_model, until[read_model], told)


async def _apply_until(place: Workplace, read_model: ReadModel, until: int, told: Told) -> None:
    reader = place.sources.reader(read_model)
    at = await db.checkpoint(place.builder, read_model)
    if not at.identity:
        at = await _move(place, read_model, at, await run.continued(reader, read_model, at))
    feed = place.sources.feed(read_model, at, until=until)
    task = asyncio.create_task(feed.next())
    try:
        while at.sequence < until:
            prepared = await task
            if prepared is None:
                # Nothing came. Either it is on its way, or all of it has aged out.
                if (await reader.state()).first > until:
                    await _move(place, read_model, at, await _stored(place.live, read_model, at, until))
                    return
            else:
                at = prepared.after
            task = asyncio.create_task(feed.next())
            if prepared is not None:
                await apply(place.builder, place.beside, read_model, prepared)
            if read_model == "log":
                told(at.sequence, until, "events")
    finally:
        await end(task)
        await feed.close()


async def _stored(live: Connection, read_model: ReadModel, at: Checkpoint, until: int) -> Checkpoint:
    """The checkpoint at `until`, all of which has aged out: what the live one says of it, if it is there."""
    known = await db.checkpoint(live, read_model)
    if (known.sequence, known.identity) == (until, at.identity):
        return known
    return Checkpoint(until, "", at.identity)


async def _move(place: Workplace, read_model: ReadModel, before: Checkpoint, after: Checkpoint) -> Checkpoint:
    async with place.builder.transaction():
        await db.move_checkpoint(place.builder, place.beside, read_model, before, after)
    return after


async def _activity_since(sources: Sources) -> datetime | None:
    """When the oldest activity that is kept was stored; None where all of it is kept."""
    state: StreamState = await sources.activity.state()
    if state.first <= 1:
        return None
    oldest = await sources.activity.at_on_leader(state.first)
    return datetime.max.replace(tzinfo=state.created.tzinfo) if oldest is None else oldest.stored_at


async def _differences(snapshot: Connection, place: Workplace, since: datetime | None) -> list[Difference]:
    found: list[Difference] = []
    for table, key in _KEYS.items():
        columns = await _columns(snapshot, place.schema, table)
        kept = [each for each in columns if each not in _COUNTED and (since is None or each not in _ACTIVITY_COLUMNS)]
        found += await _compared(snapshot, place, table, key, kept)
        if since is not None and "last_activity_at" in columns:
            known = [*key.split(", "), "last_activity_at"]
            found += await _compared(snapshot, place, table, key, known, "last_activity_at >= $2", since)
    found += await _miscounted(snapshot)
    key = "day, client_key"
    columns = await _columns(snapshot, place.schema, _DAYS)
    if since is None:
        return found + await _compared(snapshot, place, _DAYS, key, columns)
    return found + await _compared(snapshot, place, _DAYS, key, columns, "day > $2", since.date())


async def _miscounted(snapshot: Connection) -> list[Difference]:
    """Counts of the live read models that are not what their own rows say."""
    found = []
    for table, query in _MISCOUNTED.items():
        rows = await snapshot.fetch(
            f"SELECT *, count(*) OVER () AS differences FROM ({query}) d LIMIT $1",
            SHOWN_DIFFERENCES,
            timeout=COMPARE_SECONDS,
        )
        if rows:
            shown = [{name: value for name, value in row.items() if name != "differences"} for row in rows]
            found.append(Difference(table, "live", rows[0]["differences"], shown))
    return found


_MISCOUNTED: Final = {
    "grants": """
        SELECT g.client_key, g.grant_key, g.open FROM grants g LEFT JOIN users u USING (user_key)
        WHERE CASE WHEN g.revoked_position IS NULL AND coalesce(u.cut_off_position, 0) < g.issued_position
            THEN NOT g.open AND g.lapses_at > now() ELSE g.open END
    """,
    "client_users": """
        (SELECT client_key, user_key, count(*) AS open_grants FROM grants WHERE open GROUP BY 1, 2
        EXCEPT SELECT client_key, user_key, open_grants FROM client_users)
        UNION ALL
        (SELECT client_key, user_key, open_grants FROM client_users WHERE open_grants <> 0
        EXCEPT SELECT client_key, user_key, count(*) FROM grants WHERE open GROUP BY 1, 2)
    """,
    "standings": """
        SELECT s.client_key, s.grants, s.open_grants, s.open_users, s.status
        FROM standings s LEFT JOIN to_list c USING (client_key) LEFT JOIN (
            SELECT client_key, count(*) AS grants, count(*) FILTER (WHERE open) AS open_grants,
                count(DISTINCT user_key) FILTER (WHERE open) AS open_users
            FROM grants GROUP BY client_key
        ) g USING (client_key)
        WHERE (s.grants, s.open_grants, s.open_users, s.status) IS DISTINCT FROM (coalesce(g.grants, 0),
            coalesce(g.open_grants, 0), coalesce(g.open_users, 0), coalesce(c.status, 'active'))
    """,
    "totals": """
        SELECT t.grants, t.active_grants, t.users
        FROM totals t, (
            SELECT coalesce(sum(grants), 0) AS grants, coalesce(sum(active_grants), 0) AS active_grants FROM standings
        ) s, (SELECT count(*) AS users FROM users) u
        WHERE (t.grants, t.active_grants, t.users) IS DISTINCT FROM (s.grants, s.active_grants, u.users)
    """,
    **{
        table: f"""
            SELECT t.*, coalesce(c.counted, 0) AS counted FROM {table} t LEFT JOIN (
                SELECT {_KEYS[table]}, count(*) AS counted FROM to_list JOIN standings s USING (client_key)
                WHERE s.active_grants > 0 GROUP BY {_KEYS[table]}
            ) c USING ({_KEYS[table]})
            WHERE t.in_use <> coalesce(c.counted, 0)
        """
        for table in ("tallies", "names", "redirections")
    },
}
"""By table, rows whose counts are wrong."""


async def _columns(snapshot: Connection, schema: str, table: str) -> list[str]:
    rows = await snapshot.fetch(
        """
        SELECT column_name FROM information_schema.columns WHERE table_schema = $1 AND table_name = $2
        ORDER BY ordinal_position
        """,
        schema,
        table,
    )
    return [each["column_name"] for each in rows]


async def _compared(
    snapshot: Connection,
    place: Workplace,
    table: str,
    key: str,
    columns: Sequence[str],
    condition: str = "",
    *values: object,
) -> list[Difference]:
    # `json` has no equality; the text of it is what stands in the log.
    said = ", ".join(f"{each}::text AS {each}" if each in {"body", "metadata"} else each for each in columns)
    where = f"WHERE {condition}" if condition else ""
    sides: tuple[tuple[Literal["live", "log"], str, str], ...] = (
        ("live", place.schema, place.beside),
        ("log", place.beside, place.schema),
    )
    found = []
    for side, one, other in sides:
        rows = await snapshot.fetch(
            f"""
            SELECT *, count(*) OVER () AS differences FROM (
                SELECT {said} FROM "{one}".{table} {where} EXCEPT SELECT {said} FROM "{other}".{table} {where}
            ) d ORDER BY {key} LIMIT $1
            """,
            SHOWN_DIFFERENCES,
            *values,
            timeout=COMPARE_SECONDS,
        )
        if rows:
            count: int = rows[0]["differences"]
            shown = [{name: value for name, value in row.items() if name != "differences"} for row in rows]
            found.append(Difference(table, side, count, shown))
    return found


__all__ = ["Busy", "Difference", "Halt", "Means", "Verdict", "rebuild", "verify"]
