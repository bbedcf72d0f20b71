"""Postgres: connections, the schema named by its hash, checkpoints, and the two locks.

- The *projector lock* is held by the session of the one projector that applies; a standby waits for it.
- The *swap lock* is taken, shared, by each transaction that applies or reads, and alone by `rebuild` and `verify` while
  they bring what they built to the same positions. So nobody uses a schema that is being renamed.

A streaming replica may be read from. It has neither lock of the primary's: see `swapped_since`.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar

import asyncpg
import structlog
from asyncpg.pool import PoolConnectionProxy
from msgspec import Struct

from grantbook.positions import Position
from projector import traits

ReadModel = Literal["log", "activity"]

READ_MODELS: Final[tuple[ReadModel, ...]] = ("log", "activity")
if TYPE_CHECKING:
    Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
    AnyConnection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
    Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
else:
    # Only their stubs can be subscripted, and Litestar has the types of what routes take resolved.
    Connection = AnyConnection = asyncpg.Connection
    Pool = asyncpg.Pool

SCHEMA_SQL: Final = "".join(
    (files("projector") / each)
    .read_text("utf-8")
    .replace(":traits", traits.COLUMN)
    .replace(":closed", traits.is_closed())
    for each in ("schema.sql", "apply.sql")
)
_RULES: Final = sorted(
    (each for each in files("appraisal").iterdir() if each.name.endswith((".py", ".json"))), key=lambda each: each.name
)
"""What families and flags are made by. Rows by other rules would group clients otherwise than the registry does."""
SCHEMA: Final = (
    f"grantbook_{hashlib.sha256(SCHEMA_SQL.encode() + b''.join(each.read_bytes() for each in _RULES)).hexdigest()[:12]}"
)
META_SCHEMA: Final = "grantbook_meta"
"""Holds what is not made from the log: the key of cursors."""
CHANNEL: Final = "grantbook_position"
"""Where a read model's moves are notified: `<schema> <read model> <identity> <sequence>`."""

CONNECT_SECONDS: Final = 5.0
COMMAND_SECONDS: Final = 60.0
START_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 0.5
POOL_CONNECTIONS: Final = 10
SWAP_WAIT_MILLISECONDS: Final = 1_000
DROP_WAIT_MILLISECONDS: Final = 100
"""Well below Postgres' `deadlock_timeout`: it is the one that drops who gives way, not a reader."""

_SQL_META: Final = f"""
CREATE SCHEMA IF NOT EXISTS {META_SCHEMA};
CREATE TABLE IF NOT EXISTS {META_SCHEMA}.cursor_keys (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    key text NOT NULL
);
INSERT INTO {META_SCHEMA}.cursor_keys (key) VALUES (gen_random_uuid()::text || gen_random_uuid()::text)
    ON CONFLICT DO NOTHING;
CREATE EXTENSION IF NOT EXISTS pg_trgm WITH SCHEMA {META_SCHEMA};
"""

_TRIGRAMS: Final = """
    SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'pg_trgm'
"""
"""Where the extension is: here, or where whoever runs the database has put it."""

UNREACHABLE: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the connection ended in the middle of a message
    asyncpg.PostgresConnectionError,
    asyncpg.exceptions.OperatorInterventionError,
    asyncpg.exceptions.InsufficientResourcesError,
    asyncpg.exceptions.UndefinedTableError,
    asyncpg.exceptions.InvalidSchemaNameError,
)
"""What Postgres being away, restarting, full, or having had its read models dropped looks like: try again later."""

T = TypeVar("T")
_log = structlog.get_logger("projector")


class NotReached(Exception):
    """A server did not answer in time at the start. Says which, and what to check."""


class Checkpoint(Struct, frozen=True):
    """How far a read model is: the last event applied, and the identity of the stream that it stands in."""

    sequence: int
    event_id: str
    identity: str


class Seen(Struct, frozen=True):
    """How far both read models are, as one statement sees them, and where it was asked."""

    log: Checkpoint
    activity: Checkpoint
    table: int
    """Which table of checkpoints it was (its oid): another one once the read models were made anew."""
    on_replica: bool

    def reached(self, position: Position) -> bool:
        """Whether the position was applied."""
        at = self.log if position.kind == "log" else self.activity
        return at.identity == position.identity and at.sequence >= position.sequence


class Moved(Exception):
    """The checkpoint is not what it was: another projector applied, or a rebuild was swapped in. Read it again."""


def lock_key(purpose: str, schema: str) -> int:
    """Key of an advisory lock."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {schema}".encode()).digest()[:8], "big", signed=True)


def _session(schema: str, name: str) -> dict[str, str]:
    return {
        # "$user" and public are left out: nothing but our own schema is ever meant.
        "search_path": f'"{schema}"',
        "timezone": "UTC",
        "application_name": name,
        # A plan that was made while a table was empty reads all of it for ever after.
        "plan_cache_mode": "force_custom_plan",
        # Compiling takes a fifth of a second, and the statements here a few milliseconds.
        "jit": "off",
        # What is remembered while lists are counted, of two hundred thousand redirects or grants, stays in memory.
        "work_mem": "16MB",
        # What is read all the time is in memory, and there no page is nearer than another.
        "random_page_cost": "1.1",
        # A projector's connections may be silent for hours, and what stands between forgets those that are.
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
    }


async def connect(url: str, schema: str, *, name: str) -> Connection:
    """A connection whose names are those of `schema`. What it writes may be lost with the machine, and made anew.

    Raises one of `UNREACHABLE`.
    """
    # A checkpoint is in the transaction that it counts, so losing the last of them loses nothing.
    settings = _session(schema, name) | {"synchronous_commit": "off"}
    return await asyncpg.connect(
        url, timeout=CONNECT_SECONDS, command_timeout=COMMAND_SECONDS, server_settings=settings
    )


@asynccontextmanager
async def opened_pool(url: str, schema: str, *, name: str) -> AsyncIterator[Pool]:
    """A pool of connections for reading. Raises one of `UNREACHABLE`."""
    pool = asyncpg.create_pool(
        url,
        min_size=1,
        max_size=POOL_CONNECTIONS,
        timeout=CONNECT_SECONDS,
        command_timeout=COMMAND_SECONDS,
        server_settings=_session(schema, name),
    )
    await pool
    try:
        yield pool
    finally:
        pool.terminate()


async def within_start(what: str, attempt: Callable[[], Awaitable[T]], *, seconds: float = START_SECONDS) -> T:
    """Try until the server is there. Raises `NotReached` when it is not within `seconds`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        try:
            return await attempt()
        except (*UNREACHABLE, asyncpg.PostgresError) as error:
            if isinstance(error, asyncpg.exceptions.InvalidAuthorizationSpecificationError) or loop.time() >= deadline:
                message = f"{what} cannot be used: {str(error) or type(error).__name__}"
                raise NotReached(message) from error
            await asyncio.sleep(RETRY_SECONDS)


async def ensure_schema(connection: AnyConnection, schema: str) -> None:
    """Make the schema's tables, empty, where they are not there."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", lock_key("schema", META_SCHEMA))
        await connection.execute(_SQL_META)
        if await connection.fetchval("SELECT to_regnamespace($1) IS NULL", schema):
            await connection.execute(f'CREATE SCHEMA "{schema}"')
            trigrams = await connection.fetchval(_TRIGRAMS)
            await connection.execute(f'SET LOCAL search_path TO "{schema}", "{trigrams}"')
            await connection.execute(SCHEMA_SQL)
            _log.info("made the read models, empty", schema=schema)


async def drop_schema(connection: AnyConnection, schema: str) -> None:
    """Drop a schema with all that is in it, if it is there: once nobody uses it, and making nobody wait for long."""
    while True:
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {DROP_WAIT_MILLISECONDS}")
                await connection.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')
        except asyncpg.exceptions.LockNotAvailableError:
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return


async def on_replica(connection: AnyConnection) -> bool:
    """Whether the server follows another one (a hot standby): it can be read, and told nothing."""
    return bool(await connection.fetchval("SELECT pg_is_in_recovery()"))


async def cursor_key(connection: AnyConnection) -> bytes:
    """The key that authenticates cursors: one for all processes, and for as long as the database lives."""
    key: str = await connection.fetchval(f"SELECT key FROM {META_SCHEMA}.cursor_keys")
    return key.encode()


async def take_projector_lock(connection: AnyConnection, schema: str) -> None:
    """Wait until this session is the one projector of the schema."""
    told = False
    while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", lock_key("projector", schema)):
        if not told:
            _log.info("another projector is active: standing by", schema=schema)
            told = True
        await asyncio.sleep(RETRY_SECONDS)


async def assert_projector_lock_taken(connection: AnyConnection, schema: str) -> None:
    """That another session of this server has it: a connection beside the projector's may be to another server.

    Raises one of `UNREACHABLE`.
    """
    if await connection.fetchval("SELECT pg_try_advisory_lock($1)", lock_key("projector", schema)):
        message = "nobody on this server has the projector lock: it was lost, or is another server's"
        raise asyncpg.exceptions.ConnectionDoesNotExistError(message)


async def share_swap_lock(connection: AnyConnection, schema: str, *, wait: bool = True) -> bool:
    """In a transaction: keep `rebuild` from renaming the schema until it ends.

    Returns whether it is kept: without `wait`, not where a rebuild has the lock, or waits for it.
    """
    key = lock_key("swap", schema)
    if wait:
        await connection.execute("SELECT pg_advisory_xact_lock_shared($1)", key)
        return True
    return bool(await connection.fetchval("SELECT pg_try_advisory_xact_lock_shared($1)", key))


async def share_swap_lock_to_read(connection: AnyConnection, schema: str) -> None:
    """Before a transaction that reads: keep the schema's name on what it is on, until the pool has the connection back.

    In the transaction it would come too late: what that sees is fixed by its first statement, names are not.
    """
    await connection.execute("SELECT pg_advisory_lock_shared($1)", lock_key("swap", schema))


@asynccontextmanager
async def alone(connection: AnyConnection, schema: str) -> AsyncIterator[None]:
    """A transaction during which nobody else applies to the schema, or reads it.

    Whoever comes waits while this waits, so it waits shortly, and tries again.
    """
    while True:
        transaction = connection.transaction()
        await transaction.start()
        try:
            await connection.execute(f"SET LOCAL lock_timeout = {SWAP_WAIT_MILLISECONDS}")
            await connection.execute("SELECT pg_advisory_xact_lock($1)", lock_key("swap", schema))
            await connection.execute("SET LOCAL lock_timeout = 0")
        except asyncpg.exceptions.LockNotAvailableError:
            await transaction.rollback()
            await asyncio.sleep(RETRY_SECONDS)
            continue
        try:
            yield
        except BaseException:
            await transaction.rollback()
            raise
        await transaction.commit()
        return


async def checkpoint(connection: AnyConnection, read_model: ReadModel) -> Checkpoint:
    """How far the read model is."""
    row = await connection.fetchrow(
        "SELECT sequence, event_id, identity FROM checkpoints WHERE read_model = $1", read_model
    )
    assert row is not None
    return Checkpoint(row["sequence"], row["event_id"], row["identity"])


async def seen(connection: AnyConnection) -> Seen:
    """How far both read models are, and whether this is a replica."""
    rows = await connection.fetch(
        "SELECT read_model, sequence, event_id, identity, tableoid, pg_is_in_recovery() AS on_replica FROM checkpoints"
    )
    found = {row["read_model"]: Checkpoint(row["sequence"], row["event_id"], row["identity"]) for row in rows}
    if len(found) < len(READ_MODELS):
        # On a replica, where the name came to be on a table whose rows are later than what is seen here.
        raise asyncpg.exceptions.UndefinedTableError("the checkpoints are later than the snapshot")
    return Seen(found["log"], found["activity"], rows[0]["tableoid"], rows[0]["on_replica"])


async def swapped_since(connection: AnyConnection, seen: Seen) -> bool:
    """In the transaction that saw this: whether names mean other tables by now, so that what was read may be of both.

    A replica has the primary's renames, but not its advisory locks: nothing else keeps the two apart.
    """
    return bool(seen.table != await connection.fetchval("SELECT tableoid FROM checkpoints LIMIT 1"))


async def move_checkpoint(
    connection: AnyConnection, schema: str, read_model: ReadModel, before: Checkpoint, after: Checkpoint
) -> None:
    """Compare and set, in the transaction that applies what lies between, and before all that depends on what is there.

    Raises `Moved`.
    """
    moved = await connection.fetchval(
        """
        UPDATE checkpoints SET sequence = $5, event_id = $6, identity = $7, moved_at = now(), halted = NULL
        WHERE read_model = $1 AND sequence = $2 AND event_id = $3 AND identity = $4
        RETURNING pg_notify($8, $9)::text
        """,
        read_model,
        before.sequence,
        before.event_id,
        before.identity,
        after.sequence,
        after.event_id,
        after.identity,
        CHANNEL,
        notice(schema, read_model, after),
    )
    if moved is None:
        raise Moved


async def write_halted(connection: AnyConnection, read_model: ReadModel, reason: str | None) -> None:
    """Note beside the checkpoint why the read model stands still, for those who read it; None: it goes on."""
    if reason is not None:
        # It may repeat what stands in a log that nobody of ours wrote; `text` holds neither NUL nor half a surrogate.
        reason = reason.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "backslashreplace").decode()
    await connection.execute(
        "UPDATE checkpoints SET halted = $2 WHERE read_model = $1 AND halted IS DISTINCT FROM $2", read_model, reason
    )


def notice(schema: str, read_model: ReadModel, moved_to: Checkpoint) -> str:
    """What is said on `CHANNEL` when a checkpoint moves."""
    return f"{schema} {read_model} {moved_to.identity or '-'} {moved_to.sequence}"


def parsed_notice(payload: str, schema: str) -> tuple[ReadModel, str, int] | None:
    """Read model, identity and sequence that a notice says. None for other schemas, and for what anybody else said."""
    match payload.split(" "):
        case [said, ("log" | "activity") as read_model, identity, sequence] if said == schema and sequence.isdigit():
            return read_model, "" if identity == "-" else identity, int(sequence)
    return None


def rows_of(records: list[asyncpg.Record]) -> list[dict[str, Any]]:
    """Records as dictionaries."""
    return [dict(each) for each in records]
