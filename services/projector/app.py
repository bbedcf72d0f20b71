"""The projector's composition root: the real clock and real connections; nobody else makes them."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import asyncpg
import structlog
import uuid_utils
from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide
from nats.aio.client import Client
from nats.errors import Error as NatsError

from door import front, health, problems, roles
from grantbook import subjects
from grantbook.sdk import connection
from grantbook.sdk.log import LogReader, Unavailable
from grantbook.sdk.tasks import end
from projector import db, queries, run
from projector.api.admin import ADMIN_ROUTES, read_model_status
from projector.api.audit import AUDIT_ROUTES
from projector.api.parameters import the_reads
from projector.api.revocations import FEED_ROUTES, opened_streams
from projector.applied import Applied
from projector.feed import FeedHead, Receipts
from projector.keys import Keys
from projector.reads import Reads, snapshot
from projector.settings import Settings as Settings

MAX_BEHIND_EVENTS: Final = 10_000
MAX_BEHIND_SECONDS: Final = 5.0
"""A read model that is further behind is not ready to be read."""

ROUTES: Final = [*ADMIN_ROUTES, *AUDIT_ROUTES, *FEED_ROUTES]
DEPENDENCIES: Final = {"reads": Provide(the_reads)}
LIFESPANS: Final = [opened_streams]
ANSWERS: Final[dict[type[Exception], Callable[[Exception], problems.Problem]]] = {}
"""Nothing: the read API raises problems itself."""

_log = structlog.get_logger("projector")


def now() -> datetime:
    """UTC, in microseconds."""
    return datetime.now(UTC)


def settings_from(environment: Mapping[str, str]) -> Settings:
    """Settings out of `GRANTBOOK_...` variables. Raises `KeyError` with the name of a variable that is missing.

    Whoever only reads from a replica needs no address of the database itself.
    """
    tokens_file = environment.get("GRANTBOOK_TOKENS_FILE")
    replica = environment.get("GRANTBOOK_READ_DATABASE_URL") or None
    return Settings(
        nats_url=environment["GRANTBOOK_NATS_URL"],
        database_url=replica or environment["GRANTBOOK_DATABASE_URL"],
        read_database_url=replica,
        tokens_file=None if tokens_file is None else Path(tokens_file),
    )


@asynccontextmanager
async def connected(settings: Settings, *, name: str) -> AsyncIterator[Client]:
    """A connection to NATS. Raises `db.NotReached`."""
    closing = False

    def tell(what: str) -> None:
        if not closing:
            _log.warning("nats", what=what)

    async def attempt() -> Client:
        try:
            return await connection.connect(settings.nats_url, name=name, on_trouble=tell)
        except NatsError as error:
            raise ConnectionError(str(error) or type(error).__name__) from error

    client = await db.within_start("NATS", attempt)
    try:
        yield client
    finally:
        closing = True
        await connection.close(client)


@asynccontextmanager
async def opened_sources(client: Client) -> AsyncIterator[run.Sources]:
    """What a projector reads from, over a connection."""
    async with (
        LogReader(client, subjects.LOG) as log,
        LogReader(client, subjects.ACTIVITY) as activity,
        LogReader(client, subjects.bucket_stream(subjects.USER_KEYS)) as keys,
    ):
        yield run.Sources(log, activity, Keys(keys))


@asynccontextmanager
async def running_projector(settings: Settings) -> AsyncIterator[None]:
    """A projector at work in this event loop. At the end it stops between two transactions, or takes one back.

    Raises `db.NotReached` when NATS is not there at the start; later it waits for it, and for Postgres always.
    """
    async with connected(settings, name="grantbook projector") as client, opened_sources(client) as sources:
        task = asyncio.create_task(run.project(settings.database_url, sources), name="projector")
        try:
            yield
        finally:
            await end(task)


@asynccontextmanager
async def opened_reads(settings: Settings) -> AsyncIterator[Reads]:
    """All that the read API needs, for `app.state.reads`. Raises `db.NotReached`."""
    database_url = settings.read_database_url or settings.database_url

    async def prepared() -> bytes:
        made = await db.connect(database_url, db.SCHEMA, name="grantbook reads")
        try:
            if not await db.on_replica(made):
                await db.ensure_schema(made, db.SCHEMA)
            return await db.cursor_key(made)
        except asyncpg.exceptions.UndefinedTableError as error:
            raise ConnectionError("no projector has made the read models of which this is a replica") from error
        finally:
            made.terminate()

    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connected(settings, name="grantbook reads"))
        sources = await stack.enter_async_context(opened_sources(client))
        feed = await stack.enter_async_context(LogReader(client, subjects.REVOCATIONS))
        key = await db.within_start("Postgres", prepared)
        pool = await stack.enter_async_context(db.opened_pool(database_url, db.SCHEMA, name="grantbook reads"))
        applied = await stack.enter_async_context(Applied(database_url, db.SCHEMA))
        yield Reads(
            pool=pool,
            connection=client,
            log=sources.log,
            activity=sources.activity,
            feed=feed,
            feed_head=FeedHead(feed),
            receipts=Receipts(client),
            keys=sources.keys,
            applied=applied,
            cursor_key=key,
            now=now,
        )


async def database_answers(state: State) -> str | None:
    """Readiness: Postgres answers, and has the read models."""
    reads: Reads = state.reads
    try:
        async with snapshot(reads):
            return None
    except problems.Problem as problem:
        return problem.detail


async def log_answers(state: State) -> str | None:
    """Readiness: NATS answers."""
    reads: Reads = state.reads
    try:
        await asyncio.gather(reads.log.state(), reads.activity.state())
    except Unavailable:
        return "NATS does not answer"
    return None


async def read_models_keep_up(state: State) -> str | None:
    """Readiness: no read model has halted, and none is far behind."""
    reads: Reads = state.reads
    try:
        async with snapshot(reads) as seen:
            rows = await queries.checkpoints(seen.connection)
        streams = {"log": await reads.log.state(), "activity": await reads.activity.state()}
    except (problems.Problem, Unavailable):
        return None  # the other checks say so
    for name in db.READ_MODELS:
        status = await read_model_status(reads, name, rows[name], streams[name])
        if rows[name]["halted"] is not None:
            return f"the read model of the {name} has halted: {rows[name]['halted']}"
        if status.lag_events > MAX_BEHIND_EVENTS or status.lag_seconds > MAX_BEHIND_SECONDS:
            return f"the read model of the {name} is {status.lag_events} events, {status.lag_seconds:.0f} s behind"
    return None


READY: Final[dict[str, health.Check]] = {
    "postgres": database_answers,
    "nats": log_answers,
    "read_models": read_models_keep_up,
}
WARN: Final[dict[str, health.Check]] = {}


def create_app(settings: Settings | None = None) -> Litestar:
    """The read API as an ASGI application of its own, for any server. Without settings: from the environment.

    Raises `KeyError` with the name of a variable that is missing, and `roles.TokensRefused`.
    """
    chosen = settings or settings_from(os.environ)
    if chosen.tokens_file is None:
        raise KeyError("GRANTBOOK_TOKENS_FILE")

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with opened_reads(chosen) as reads:
            app.state.reads = reads
            yield

    keyring = roles.load(chosen.tokens_file, allow_development=chosen.allow_development_tokens)
    return application(keyring, lifespan, *LIFESPANS)


def application(keyring: roles.Keyring, *lifespan: Callable[[Litestar], AbstractAsyncContextManager[None]]) -> Litestar:
    """The same for whoever has this keyring. Its state gets `reads`, and what `LIFESPANS` make, before it is asked."""
    return front.litestar_app(
        ROUTES,
        name="projector",
        keyring=keyring,
        mint_request_id=lambda: str(uuid_utils.uuid7()),
        ready=READY,
        warn=WARN,
        lifespan=lifespan,
        dependencies=DEPENDENCIES,
        answers=ANSWERS,
    )
