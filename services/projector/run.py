"""Follow the log and the activity, apply them to the read models, and stop where going on would be a lie.

Pulling, decoding and folding the next batch overlaps the transactions of those before it. The session of one connection
holds the projector lock, and applies activity while no batch of the log is applied: at most one batch of it for each of
the log that waits, and only once the log's grants that it names are there. No flood of activity delays a revocation.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

import asyncpg
import structlog
from msgspec import Struct

from grantbook import wire
from grantbook.sdk.log import Follower, Gap, LogReader, Raw, Unavailable, assert_dense
from grantbook.sdk.tasks import end
from projector import db, projections
from projector.applying import Halt, Prepared, Turns, apply, taking_turns
from projector.db import AnyConnection, Checkpoint, Connection, Moved, ReadModel
from projector.keys import Keys
from projector.projections import ActivityBatch, LogBatch, NotOfThisLog, UnknownType

PULL_MESSAGES: Final = 4_000
ACTIVITY_PULL_MESSAGES: Final = 20
"""An activity event has up to 500 windows, so this is up to 10,000 of them."""
FOLDED_AT_ONCE: Final = 20
"""Events decoded before others in the same process get their turn."""
WAIT_SECONDS: Final = 1.0
"""After so long without an event the stream is checked to be the one that was followed."""
CONFIRM_SECONDS: Final = 5.0
"""A stream that looks shorter than what was applied must look so for this long: a new leader may need a moment."""
AHEAD: Final = 1
"""Batches of each read model that may wait, ready to be applied: making them goes on while Postgres works.

More would need a look at what waits: nothing is made after a `Halt`.
"""
RETRY_SECONDS: Final = 0.25
HALTED_POLL_SECONDS: Final = 1.0
SWEEP_SECONDS: Final = 1.0
"""So often grants whose time is over are taken out of the counts."""

_log = structlog.get_logger("projector")


async def continued(reader: LogReader, read_model: ReadModel, at: Checkpoint) -> Checkpoint:
    """Check that the stream is the one that was applied up to `at`, which is returned with the stream's identity.

    Raises `Halt`: it was replaced, or restored to an earlier time. Raises `Unavailable`.
    """
    deadline = asyncio.get_running_loop().time() + CONFIRM_SECONDS
    while True:
        state = await reader.state()
        if not at.identity:
            return Checkpoint(0, "", state.identity)
        if state.identity != at.identity:
            message = (
                f"{reader.stream} is another stream than the one that was applied (identity {state.identity}, applied "
                f"{at.identity}). {_WAY_OUT}"
            )
            raise Halt(message)
        if at.sequence == 0:
            return at
        found = await reader.at_on_leader(at.sequence)
        if found is not None and (found.headers or {}).get("ce-id", "") != at.event_id:
            message = (
                f"{reader.stream} has another event at position {at.sequence} than the one that was applied: it was "
                f"restored to an earlier time, and written since. {_WAY_OUT}"
            )
            raise Halt(message)
        aged_out = read_model == "activity" and state.first > at.sequence
        if found is not None or (aged_out and state.last >= at.sequence):
            return at
        if asyncio.get_running_loop().time() >= deadline:
            message = (
                f"{reader.stream} has nothing at position {at.sequence}, which was applied; it ends at {state.last}. "
                f"It was restored to an earlier time. {_WAY_OUT}"
            )
            raise Halt(message)
        await asyncio.sleep(RETRY_SECONDS)


_WAY_OUT: Final = (
    "If that was meant, make the read models anew: `python -m projector rebuild`. "
    "Else point GRANTBOOK_NATS_URL at the right servers, and start again"
)


class Feed:
    """One stream from a checkpoint on, as batches that are ready to be applied. `close` it."""

    def __init__(
        self,
        read_model: ReadModel,
        reader: LogReader,
        log_reader: LogReader,
        keys: Keys,
        at: Checkpoint,
        *,
        until: int | None = None,
    ) -> None:
        self.at = at
        """Where the next batch begins."""
        self._read_model = read_model
        self._reader = reader
        self._log_reader = log_reader
        self._keys = keys
        self._until = until
        self._follower: Follower = reader.follow(
            at.sequence, messages=PULL_MESSAGES if read_model == "log" else ACTIVITY_PULL_MESSAGES
        )
        self._trouble: str | None = None

    async def close(self) -> None:
        """Let go of the consumer."""
        await self._follower.close()

    async def next(self) -> Prepared | None:
        """The next batch, or None when nothing came for a while. Waits while NATS is away. Raises `Halt`."""
        raws: Sequence[Raw]
        try:
            raws = await self._follower.next(WAIT_SECONDS)
        except Gap:
            raws = []  # restored, or another stream: that it is not the checkpoint's is seen, and said, below
        if self._until is not None:
            raws = [each for each in raws if each.sequence <= self._until]
        self._tell_trouble(self._follower.trouble)
        while True:
            try:
                return await self._prepared(raws)
            except Unavailable as error:
                self._tell_trouble(str(error))
                await asyncio.sleep(RETRY_SECONDS)
            except UnknownType as error:
                message = f"{error}. Run a version that does; it goes on from there"
                raise Halt(message) from error
            except (wire.Malformed, NotOfThisLog, Gap) as error:
                message = (
                    f"{error}. Only the registry may write to {self._reader.stream}: find out who else did. "
                    "To go on, a version is needed that knows what to do with it"
                )
                raise Halt(message) from error

    async def _prepared(self, raws: Sequence[Raw]) -> Prepared | None:
        # The consumer may have been made anew since the last batch, on a stream that was restored meanwhile.
        checked = asyncio.create_task(continued(self._reader, self._read_model, self.at), name="check the stream")
        try:
            if not raws:
                self.at = await checked
                return None
            if self._read_model == "log":
                assert_dense(raws, self.at.sequence)
                needs = 0
                batch: LogBatch | ActivityBatch = await self._folded(raws)
            else:
                await self._assert_aged(raws)
                # The registry knows a grant before it records its use, so by now the log has all that this names.
                needs = (await self._log_reader.state()).last
                batch = await self._folded_activity(raws)
            before = await checked
        except (wire.Malformed, NotOfThisLog, UnknownType, Gap):
            await checked  # what it says of another stream explains more
            raise
        finally:
            await end(checked)
        after = Checkpoint(raws[-1].sequence, (raws[-1].headers or {}).get("ce-id", ""), before.identity)
        self.at = after
        return Prepared(before, after, batch, needs, len(raws))

    async def _folded(self, raws: Sequence[Raw]) -> LogBatch:
        batch = LogBatch()
        records = []
        for start in range(0, len(raws), FOLDED_AT_ONCE):
            records += [each.recorded() for each in raws[start : start + FOLDED_AT_ONCE]]
            await asyncio.sleep(0)
        usernames = await self._keys.usernames(projections.sealed_usernames(records))
        for start in range(0, len(records), FOLDED_AT_ONCE):
            for each in records[start : start + FOLDED_AT_ONCE]:
                projections.fold(batch, each, usernames)
            await asyncio.sleep(0)
        return batch

    async def _folded_activity(self, raws: Sequence[Raw]) -> ActivityBatch:
        batch = ActivityBatch()
        for each in raws:
            projections.fold_activity(batch, each.recorded())
            await asyncio.sleep(0)
        return batch

    async def _assert_aged(self, raws: Sequence[Raw]) -> None:
        """Activity ages out of its stream. What is missing must have aged out, and nothing else."""
        first = raws[0].sequence
        if first != self.at.sequence + 1:
            state = await self._reader.state()
            if state.first < first:
                assert_dense(raws, self.at.sequence)
            _log.warning("activity aged out before it was applied", after=self.at.sequence, first=first)
        assert_dense(raws, first - 1)

    def _tell_trouble(self, trouble: str | None) -> None:
        if trouble != self._trouble and trouble is not None:
            _log.warning("waiting for NATS", why=trouble)
        self._trouble = trouble


class Sources(Struct, frozen=True):
    """Where a projector reads from: the two streams, and the keys of people."""

    log: LogReader
    activity: LogReader
    keys: Keys

    def reader(self, read_model: ReadModel) -> LogReader:
        """The reader of the stream that the read model is made from."""
        return self.log if read_model == "log" else self.activity

    def feed(self, read_model: ReadModel, at: Checkpoint, *, until: int | None = None) -> Feed:
        """A feed of one of the two."""
        return Feed(read_model, self.reader(read_model), self.log, self.keys, at, until=until)


class Lane:
    """One read model of a running projector: what it follows, what it has ready, or why it stands still."""

    def __init__(self, read_model: ReadModel, connection: Connection, schema: str, sources: Sources) -> None:
        self.read_model: ReadModel = read_model
        self.applied = Checkpoint(0, "", "")
        self.ready: deque[Prepared | Halt] = deque()
        """In their order. Nothing comes after a `Halt`."""
        self.task: asyncio.Task[Prepared | None] | None = None
        self._connection = connection
        self._schema = schema
        self._sources = sources
        self._feed: Feed | None = None
        self._halted = False

    async def start(self) -> None:
        """Begin from the checkpoint that is stored."""
        self.applied = await db.checkpoint(self._connection, self.read_model)
        await db.write_halted(self._connection, self.read_model, None)
        if not self.applied.identity:
            # An empty read model knows which stream it is of before it has applied anything.
            self.applied = await self._identified()
        self._feed = self._sources.feed(self.read_model, self.applied)
        self.prepare_next()

    async def stop(self) -> None:
        """Let go of what is under way."""
        task, self.task = self.task, None
        if task is not None:
            await end(task)
        feed, self._feed = self._feed, None
        if feed is not None:
            await feed.close()

    async def collect(self) -> None:
        """Take what the task has come to, and start the next. Raises `Moved`."""
        if self.task is None or not self.task.done():
            return
        if self._halted:
            # A rebuild may have put other read models here, from which it goes on.
            if await db.checkpoint(self._connection, self.read_model) != self.applied:
                raise Moved
            self._wait_halted()
            return
        try:
            prepared: Prepared | Halt | None = self.task.result()
        except Halt as halt:
            prepared = halt
        except Exception as error:  # noqa: BLE001  what is not understood must not be skipped, and not be retried for ever
            _log.exception("cannot go on", read_model=self.read_model)
            after = self.applied.sequence if self._feed is None else self._feed.at.sequence
            prepared = Halt(f"unexpected {type(error).__name__} after position {after}: see the logs")
        self.task = None
        if prepared is not None:
            self.ready.append(prepared)
        self.prepare_next()

    @property
    def next(self) -> Prepared | None:
        """The next batch, if it is ready."""
        return first if self.ready and isinstance(first := self.ready[0], Prepared) else None

    def take_next(self) -> None:
        """It is being applied, or was: the one after those that are ready is made ready meanwhile."""
        self.ready.popleft()
        self.prepare_next()

    async def stop_where_it_must(self) -> None:
        """Halt, where that is what comes next. What stands before it has been applied."""
        if self.ready and isinstance(halt := self.ready[0], Halt):
            await self.halt(str(halt))

    async def halt(self, reason: str) -> None:
        """Stand still, and say why where all can read it."""
        await self.stop()
        self._halted = True
        self.ready.clear()
        _log.error("halted", read_model=self.read_model, reason=reason)
        await db.write_halted(self._connection, self.read_model, reason)
        self._wait_halted()

    async def _identified(self) -> Checkpoint:
        named = await continued(self._sources.reader(self.read_model), self.read_model, self.applied)
        async with self._connection.transaction():
            await db.share_swap_lock(self._connection, self._schema)
            await db.move_checkpoint(self._connection, self._schema, self.read_model, self.applied, named)
        return named

    def prepare_next(self) -> None:
        """Have the next batch made ready, unless one is being made, or as many as may wait do."""
        if self.task is not None or len(self.ready) >= AHEAD or self._feed is None:
            return
        self.task = asyncio.create_task(self._feed.next(), name=f"next of the {self.read_model}")

    def _wait_halted(self) -> None:
        async def wait() -> None:
            await asyncio.sleep(HALTED_POLL_SECONDS)

        self.task = asyncio.create_task(wait(), name=f"halted {self.read_model}")


async def project(database_url: str, sources: Sources, *, schema: str = db.SCHEMA) -> None:
    """Keep the read models up with the log, through restarts of Postgres and NATS. Ends by being cancelled."""
    while True:
        try:
            await _session(database_url, sources, schema)
        except Moved:
            _log.info("the read models were moved; going on from where they are now")
            continue
        except Unavailable as error:
            _log.warning("waiting for NATS", why=str(error))
        except (*db.UNREACHABLE, asyncpg.PostgresError) as error:
            _log.warning("waiting for Postgres", why=str(error) or type(error).__name__)
        except Exception:  # noqa: BLE001  logged whole; the checkpoint makes it safe to begin again
            _log.exception("the projector failed; it begins again from its checkpoint")
        await asyncio.sleep(db.RETRY_SECONDS)


async def _session(database_url: str, sources: Sources, schema: str) -> None:
    """Project on connections of its own, until one breaks."""
    connection = await db.connect(database_url, schema, name="grantbook projector")
    try:
        await db.take_projector_lock(connection, schema)
        await db.ensure_schema(connection, schema)
        log = Lane("log", connection, schema, sources)
        activity = Lane("activity", connection, schema, sources)
        lost = asyncio.get_running_loop().create_future()

        def tell(_: AnyConnection) -> None:
            if not lost.done():
                lost.set_result(None)

        connection.add_termination_listener(tell)
        async with taking_turns(database_url, schema) as turns:
            try:
                await log.start()
                await activity.start()
                _log.info("projecting", schema=schema, log=log.applied.sequence, activity=activity.applied.sequence)
                swept_at = -math.inf
                while True:
                    await _step(connection, schema, log, activity, turns)
                    if turns.resting and time.monotonic() - swept_at >= SWEEP_SECONDS:
                        swept = await _sweep(connection, schema, wait=turns.first is None)
                        swept_at = time.monotonic() if swept else swept_at
                    turns.go_on()
                    await _more(log, activity, turns, lost)
                    if lost.done():
                        message = "the connection that has the projector lock is lost, and the lock with it"
                        raise asyncpg.exceptions.ConnectionDoesNotExistError(message)
            finally:
                await log.stop()
                await activity.stop()
    finally:
        connection.terminate()


async def _sweep(connection: Connection, schema: str, *, wait: bool) -> bool:
    """Close what lapsed. Whether that was all of it."""
    async with connection.transaction():
        if not await db.share_swap_lock(connection, schema, wait=wait):
            return False
        return await projections.sweep(connection) < projections.SWEPT_AT_ONCE


async def _step(connection: Connection, schema: str, log: Lane, activity: Lane, turns: Turns) -> None:
    """Take what has come; begin with batches of the log; apply one of the activity, where none of the log is."""
    await log.collect()
    await activity.collect()
    try:
        log.applied = turns.take() or log.applied
    except Halt as halt:
        await turns.end()
        await log.halt(str(halt))
    if turns.first is None:
        await log.stop_where_it_must()
    while turns.can_begin and log.next is not None:
        turns.begin(log.next)
        log.take_next()
    await activity.stop_where_it_must()
    prepared = activity.next
    if prepared is None or not turns.resting or prepared.needs > log.applied.sequence:
        return
    try:
        applied = await apply(connection, schema, "activity", prepared, wait=turns.first is None)
    except Halt as halt:
        await activity.halt(str(halt))
    else:
        if applied:
            activity.take_next()
            activity.applied = prepared.after


async def _more(log: Lane, activity: Lane, turns: Turns, lost: asyncio.Future[None]) -> None:
    """Wait for something to take or to apply, or for the connection that has the lock to be lost."""
    waits = activity.next is not None and activity.next.needs <= log.applied.sequence
    await asyncio.wait(
        [each for each in (log.task, activity.task, turns.first, lost) if each is not None],
        timeout=0 if waits and turns.first is None else None,
        return_when=asyncio.FIRST_COMPLETED,
    )
