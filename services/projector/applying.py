"""How batches of a stream come into the read models: in their order, each in a transaction that moves the checkpoint.

What a batch of the log adds to `events` depends on nothing that stands before it, and is a third of what the batch
costs Postgres. So two connections take turns: while one applies a batch, the other has begun with the next.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Final

import asyncpg
from msgspec import Struct

from grantbook.sdk.tasks import end
from projector import copying, db, projections
from projector.db import Checkpoint, Connection, Moved, ReadModel
from projector.projections import ActivityBatch, LogBatch

TURNS: Final = 2
"""Connections that take turns."""
LOCK_SECONDS: Final = 5
"""How long a batch waits for a lock. Who has it may wait for a batch that is ahead, which Postgres cannot know."""


class Halt(Exception):
    """The read model must not go on. Says why, and what to do."""


class Prepared(Struct):
    """A batch that is ready to be applied between two checkpoints."""

    before: Checkpoint
    after: Checkpoint
    batch: LogBatch | ActivityBatch
    needs: int
    """Sequence of the log that must have been applied before."""
    events: int


@contextmanager
def fitting(connection: Connection, read_model: ReadModel, after: int, until: int) -> Iterator[None]:
    """While something is written that Postgres may refuse for what it is: that is a `Halt`."""
    try:
        yield
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.InterfaceError) as error:
        if isinstance(error, asyncpg.InterfaceError) and connection.is_closed():
            raise  # else it is what asyncpg says of values that it cannot send at all
        message = (
            f"positions {after + 1} to {until} of the {read_model} do not fit the read model: {error}. Nothing of them "
            "was applied; a version is needed that can"
        )
        raise Halt(message) from error


async def apply(
    connection: Connection, schema: str, read_model: ReadModel, prepared: Prepared, *, wait: bool = True
) -> bool:
    """Apply a batch and move the checkpoint, in one transaction.

    Returns whether it was: without `wait`, not while a rebuild wants to be alone. Raises `Moved`, `Halt`, and Postgres'
    errors.
    """
    with fitting(connection, read_model, prepared.before.sequence, prepared.after.sequence):
        async with connection.transaction():
            if not await db.share_swap_lock(connection, schema, wait=wait):
                return False
            await db.move_checkpoint(connection, schema, read_model, prepared.before, prepared.after)
            if isinstance(prepared.batch, LogBatch):
                await copying.copy_events(connection, [prepared.batch.events])
                await projections.apply(connection, prepared.batch)
            else:
                await projections.apply_activity(connection, prepared.batch)
    return True


class _Begun(Struct):
    connection: Connection
    after: Checkpoint
    turn: asyncio.Event
    task: asyncio.Task[None]


class Turns:
    """Connections that apply batches of the log, in the order in which these are begun. Made by `taking_turns`.

    Whoever has begun a batch shares the lock on the schema until it is applied, and that waits for the batch before it.
    So what is written on another connection meanwhile must not wait for that lock: a rebuild that wants to be alone
    stands between them. For the same reason a batch that is ahead waits for its turn first, where a rebuild waits.
    """

    def __init__(self, connections: Iterable[Connection], schema: str) -> None:
        self._idle = deque(connections)
        self._schema = schema
        self._begun: deque[_Begun] = deque()

    @property
    def can_begin(self) -> bool:
        """Whether a connection is idle."""
        return bool(self._idle)

    @property
    def first(self) -> asyncio.Task[None] | None:
        """What applies the earliest batch that was begun."""
        return self._begun[0].task if self._begun else None

    @property
    def resting(self) -> bool:
        """Whether no batch is having its turn."""
        return not self._begun or not self._begun[0].turn.is_set()

    def begin(self, prepared: Prepared) -> None:
        """Write what depends on nothing before it. All batches before it have been begun."""
        connection, turn = self._idle.popleft(), asyncio.Event()
        task = asyncio.create_task(self._applied(connection, prepared, turn), name="apply a batch of the log")
        self._begun.append(_Begun(connection, prepared.after, turn, task))

    def go_on(self) -> None:
        """Have the earliest batch applied."""
        if self._begun:
            self._begun[0].turn.set()

    def take(self) -> Checkpoint | None:
        """The checkpoint after the earliest batch, once it was applied: then the next is the earliest.

        Raises `Moved`, `Halt`, and Postgres' errors.
        """
        if not self._begun or not self._begun[0].task.done():
            return None
        begun = self._begun.popleft()
        self._idle.append(begun.connection)
        begun.task.result()
        return begun.after

    async def end(self) -> None:
        """Let go of what was begun: nothing of it is applied. Nor are its connections used again.

        What is cancelled as a transaction begins or ends may leave it open, and the next would be a part of it.
        """
        begun = list(self._begun)
        self._begun.clear()
        for each in begun:
            each.connection.terminate()  # else what is under way would be waited for
        await end(*(each.task for each in begun))
        for each in begun:
            if not each.task.cancelled():
                each.task.exception()  # looked at, or it would be told as forgotten

    async def _applied(self, connection: Connection, prepared: Prepared, turn: asyncio.Event) -> None:
        assert isinstance(prepared.batch, LogBatch)
        try:
            with fitting(connection, "log", prepared.before.sequence, prepared.after.sequence):
                # Each statement sees what is there by then: what was ahead goes on after the batch before it.
                async with connection.transaction(isolation="read_committed"):
                    if not await db.share_swap_lock(connection, self._schema, wait=False):
                        await turn.wait()
                        await db.share_swap_lock(connection, self._schema)
                    await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
                    await copying.copy_events(connection, [prepared.batch.events])
                    await turn.wait()
                    await db.move_checkpoint(connection, self._schema, "log", prepared.before, prepared.after)
                    await projections.apply(connection, prepared.batch)
        except Halt as halt:
            await turn.wait()
            if await db.checkpoint(connection, "log") != prepared.before:
                raise Moved from halt  # the same rows, and another projector's
            raise


@asynccontextmanager
async def taking_turns(database_url: str, schema: str) -> AsyncIterator[Turns]:
    """Open connections that take turns, for a session that has the projector lock.

    What they have begun, and not applied, is let go of at the end. Raises one of `db.UNREACHABLE`.
    """
    async with AsyncExitStack() as opened:
        connections = []
        for _ in range(TURNS):
            connections.append(await db.connect(database_url, schema, name="grantbook projector"))
            opened.callback(connections[-1].terminate)
            await db.assert_projector_lock_taken(connections[-1], schema)
        turns = Turns(connections, schema)
        try:
            yield turns
        finally:
            await turns.end()
