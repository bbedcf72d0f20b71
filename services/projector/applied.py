"""How far the read models are, for those who wait: told by Postgres' NOTIFY, and looked at now and then beside.

A replica tells nobody (LISTEN is not for them): there it is looked at often, for as long as somebody waits.
"""

import asyncio
import contextlib
from types import TracebackType
from typing import Final, Self

import asyncpg
import structlog

from grantbook.positions import Position
from grantbook.sdk.tasks import end
from projector import db
from projector.db import ReadModel

WAIT_SECONDS: Final = 2.0
"""How long a caller's `at_least` is waited for."""
POLL_SECONDS: Final = 0.5
"""How often the checkpoints are looked at, in case a notice was lost."""
REPLICA_POLL_SECONDS: Final = 0.02
"""How often those of a replica are, while somebody waits: one statement, however many wait."""

_log = structlog.get_logger("projector")


class OtherLog(Exception):
    """The position is of another log than the one that is read from."""


class Applied:
    """Listens on a connection of its own. `async with` it."""

    def __init__(self, database_url: str, schema: str) -> None:
        self._url = database_url
        self._schema = schema
        self._known: dict[str, tuple[str, int]] = {}
        self._moved = asyncio.Event()
        self._waiting = 0
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._listen(), name="listen for positions")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            await end(self._task)

    async def reached(self, position: Position, seconds: float = WAIT_SECONDS) -> bool:
        """Wait until the position was applied: whether it was, in time. Raises `OtherLog`."""
        self._waiting += 1
        self._wanted.set()
        try:
            return await self._reached(position, seconds)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._wanted.clear()

    async def _reached(self, position: Position, seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            moved = self._moved
            identity, sequence = self._known.get(position.kind, ("", -1))
            if identity == position.identity and sequence >= position.sequence:
                return True
            try:
                await asyncio.wait_for(moved.wait(), max(0.0, deadline - loop.time()))
            except TimeoutError:
                if identity and identity != position.identity:
                    raise OtherLog from None
                return False

    async def _listen(self) -> None:
        while True:
            try:
                connection = await db.connect(self._url, self._schema, name="grantbook listener")
                try:
                    if await db.on_replica(connection):
                        await self._poll(connection)
                    else:
                        await connection.add_listener(db.CHANNEL, self._noticed)
                        while not connection.is_closed():
                            self._look(await db.seen(connection))
                            await asyncio.sleep(POLL_SECONDS)
                finally:
                    connection.terminate()
            except (*db.UNREACHABLE, asyncpg.PostgresError) as error:
                _log.warning("not listening to Postgres", why=str(error) or type(error).__name__)
            await asyncio.sleep(db.RETRY_SECONDS)

    async def _poll(self, connection: db.Connection) -> None:
        """Look, until this is a replica no more: it was made the primary, and can be listened to."""
        while True:
            seen = await db.seen(connection)
            self._look(seen)
            if not seen.on_replica:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), POLL_SECONDS)
            await asyncio.sleep(REPLICA_POLL_SECONDS)

    def _look(self, seen: db.Seen) -> None:
        self._seen("log", seen.log)
        self._seen("activity", seen.activity)

    def _noticed(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        notice = db.parsed_notice(str(payload), self._schema)
        if notice is not None:
            read_model, identity, sequence = notice
            self._seen(read_model, db.Checkpoint(sequence, "", identity))

    def _seen(self, read_model: ReadModel, checkpoint: db.Checkpoint) -> None:
        now = (checkpoint.identity, checkpoint.sequence)
        if self._known.get(read_model) != now:
            self._known[read_model] = now
            self._moved.set()
            self._moved = asyncio.Event()
