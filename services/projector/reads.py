"""What the read API reads with, and how: one snapshot an answer, at a position that the answer says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime

import asyncpg
from msgspec import Struct
from nats.aio.client import Client

from door.problems import Problem, invalid_parameter, unavailable
from grantbook import positions
from grantbook.positions import Position
from grantbook.sdk.log import LogReader
from projector import db
from projector.applied import REPLICA_POLL_SECONDS, WAIT_SECONDS, Applied, OtherLog
from projector.db import AnyConnection, Pool
from projector.feed import FeedHead, Receipts
from projector.keys import Keys


class Reads(Struct, frozen=True):
    """What routes read with. `now` is the clock (UTC); `cursor_key` authenticates cursors."""

    pool: Pool
    connection: Client
    log: LogReader
    activity: LogReader
    feed: LogReader
    feed_head: FeedHead
    receipts: Receipts
    keys: Keys
    applied: Applied
    cursor_key: bytes
    now: Callable[[], datetime]


class Snapshot(Struct, frozen=True):
    """A connection that sees the read models at one position of the log."""

    connection: AnyConnection
    position: Position


@asynccontextmanager
async def snapshot(reads: Reads, at_least: str | None = None) -> AsyncIterator[Snapshot]:
    """A snapshot of the read models, once they have applied `at_least`.

    Raises `Problem`: 400 for what is no position of ours, 503 when it was not applied in time or Postgres is away, and
    where a replica gave up what was being read.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WAIT_SECONDS
    wanted = None if at_least is None else await _reached(reads, at_least)
    try:
        while True:
            async with reads.pool.acquire(timeout=db.CONNECT_SECONDS) as connection:
                await db.share_swap_lock_to_read(connection, db.SCHEMA)  # the pool's reset lets go of it
                async with connection.transaction(isolation="repeatable_read", readonly=True):
                    seen = await db.seen(connection)
                    if wanted is None or seen.reached(wanted):
                        yield Snapshot(connection, Position("log", seen.log.identity or NO_IDENTITY, seen.log.sequence))
                        if seen.on_replica and await db.swapped_since(connection, seen):
                            raise made_anew()
                        return
            # It was reached where `applied` looks; with several replicas behind one address that may be another.
            if loop.time() >= deadline:
                raise not_yet_applied()
            await asyncio.sleep(REPLICA_POLL_SECONDS)
    except asyncpg.exceptions.InvalidCachedStatementError as error:
        raise made_anew() from error
    except asyncpg.exceptions.TransactionRollbackError as error:
        # "canceling statement due to conflict with recovery": what is only read conflicts with nothing else.
        raise unavailable("The replica had to follow the database, and could not keep what was being read.") from error
    except db.UNREACHABLE as error:
        raise unavailable("Postgres cannot be reached, or has no read models yet.") from error


NO_IDENTITY = "00000000"
"""In positions of a read model that has not seen its log yet."""


def made_anew() -> Problem:
    """503: names of tables have come to mean others while they were read."""
    return unavailable("The read models were made anew just now.")


def not_yet_applied() -> Problem:
    """503: the position was waited for in vain."""
    detail = "The read model has not come as far as at_least says."
    return Problem(503, "not_yet_applied", detail, headers={"Retry-After": "1"})


async def _reached(reads: Reads, at_least: str) -> Position:
    """The position that `at_least` says, once it was applied."""
    try:
        position = positions.parse(at_least)
    except positions.InvalidPosition as error:
        raise invalid_parameter("at_least", str(error)) from error
    try:
        reached = await reads.applied.reached(position)
    except OtherLog as error:
        raise invalid_parameter("at_least", "a position of this log; it was made by another") from error
    if not reached:
        raise not_yet_applied()
    return position
