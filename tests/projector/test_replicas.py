"""Reading from a streaming replica of Postgres: it is late, cannot be told anything, and gives up what it must."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import asyncpg
import pytest
from litestar.datastructures import State
from nats.aio.client import Client

from deploy.dev.servers import Server, postgres_replica, postgres_server
from door.problems import Problem
from grantbook import subjects
from projector import app, db, queries, verify
from projector.db import Connection
from projector.reads import Reads, snapshot
from projector.run import Sources
from projector.settings import Settings
from projector.verify import Means
from tests.conftest import PASSWORD, execute, with_database
from tests.projector import given
from tests.projector.conftest import Api, caught_up, projecting, until

PATIENCE: Final = "'10ms'"
"""How long a replica, told so, waits for those who read before it gives them up."""
_numbers: Final = itertools.count()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """A primary and its replica."""
    folder = tmp_path_factory.mktemp("replica")
    with (
        postgres_server(folder / "primary", password=PASSWORD, durable=False) as primary,
        postgres_replica(folder / "replica", of=primary, durable=False) as replica,
    ):
        yield primary, replica


@pytest.fixture
async def empty_database_url(pair: tuple[Server, Server]) -> AsyncIterator[str]:
    """A database of the test's own, on the primary, in which there is nothing."""
    name = f"test_{next(_numbers)}"
    await execute(pair[0].url, f"create database {name}")
    yield with_database(pair[0].url, name)
    await execute(pair[0].url, f"drop database {name} with (force)")


@pytest.fixture
async def database_url(empty_database_url: str) -> str:
    """The same with the read models, empty."""
    connection = await db.connect(empty_database_url, db.SCHEMA, name="test")
    await db.ensure_schema(connection, db.SCHEMA)
    await connection.close()
    return empty_database_url


@pytest.fixture
async def replica_url(pair: tuple[Server, Server], database_url: str, database: Connection) -> str:
    """The same on the replica, which has the read models, empty."""
    url = with_database(pair[1].url, database_url.rpartition("/")[2])
    await replayed(database, pair[1])
    return url


@pytest.fixture
async def reads(settings: Settings, replica_url: str, log: Client) -> AsyncIterator[Reads]:
    """What routes read with: the replica."""
    chosen = Settings(nats_url=settings.nats_url, database_url="", read_database_url=replica_url)
    async with app.opened_reads(chosen) as opened:
        yield opened


@pytest.fixture
async def impatient(pair: tuple[Server, Server]) -> AsyncIterator[None]:
    """The replica waits for nobody who reads."""
    await execute(pair[1].url, f"alter system set max_standby_streaming_delay = {PATIENCE}")
    await execute(pair[1].url, "select pg_reload_conf()")
    yield
    await execute(pair[1].url, "alter system reset max_standby_streaming_delay")
    await execute(pair[1].url, "select pg_reload_conf()")


async def replayed(database: Connection, replica: Server) -> None:
    """Wait until the replica has all that the primary has done."""
    at = await database.fetchval("SELECT pg_current_wal_insert_lsn()")
    connection = await asyncpg.connect(replica.url)

    async def reached() -> bool:
        # What was committed without waiting for the disk is sent after the next write that waits.
        await database.execute("SELECT pg_logical_emit_message(true, 'test', '', true)")
        return bool(await connection.fetchval("SELECT pg_last_wal_replay_lsn() >= $1", at))

    await until(reached, "the replica")
    await connection.close()


async def test_a_replica_answers_at_least_as_of_what_is_asked(
    api: Api, log: Client, database_url: str, sources: Sources
) -> None:
    """Scripts: a list from a replica has what was acknowledged before, whichever replica answers, of either log."""
    async with projecting(database_url, sources):
        for number in range(10):
            _, last = await given.write(log, given.registered(f"c{number}"), given.issued(f"c{number}", "g", "u1"))
            page = await api.get("/admin/v1/clients", limit=200, at_least=await given.position(log, subjects.LOG, last))
            assert len(page["items"]) == number + 1
        (used,) = await given.write(log, given.used(("c7", "g"), count=3))
        at_least = await given.position(log, subjects.ACTIVITY, used)
        (grant,) = (await api.get("/admin/v1/clients/c7/grants", at_least=at_least))["items"]
        assert "last_activity_at" in grant


async def test_a_replica_that_has_not_come_so_far_says_so(
    pair: tuple[Server, Server], api: Api, log: Client, database: Connection, database_url: str, sources: Sources
) -> None:
    """Scripts: a replica that is behind is not taken for a register in which nothing happened."""
    async with projecting(database_url, sources):
        await given.write(log, given.registered("c1"))
        await caught_up(database, log)
        await replayed(database, pair[1])
        await execute(pair[1].url, "select pg_wal_replay_pause()")
        try:
            (last,) = await given.write(log, given.registered("c2"))
            await caught_up(database, log)
            at_least = await given.position(log, subjects.LOG, last)
            refused = await api.ask("/admin/v1/clients", at_least=at_least)
            assert (refused.status_code, refused.json()["code"]) == (503, "not_yet_applied")
            assert refused.headers["retry-after"] == "1"
            behind = await api.ask("/admin/v1/clients")
            assert [each["client_id"] for each in behind.json()["items"]] == ["c1"]
            assert behind.headers["grantbook-position"] != at_least
        finally:
            await execute(pair[1].url, "select pg_wal_replay_resume()")
        assert len((await api.get("/admin/v1/clients", at_least=at_least))["items"]) == 2


async def test_a_replica_behind_the_one_that_was_looked_at_does_not_answer_for_it(
    monkeypatch: pytest.MonkeyPatch, api: Api, reads: Reads, log: Client, database: Connection, sources: Sources
) -> None:
    """Scripts: behind one address there may be several replicas, and the one that answers may be the last of them."""
    (last,) = await given.write(log, given.registered("c1"))

    async def there(*_: object) -> bool:
        return True

    monkeypatch.setattr(reads.applied, "reached", there)
    refused = await api.ask("/admin/v1/clients", at_least=await given.position(log, subjects.LOG, last))
    assert (refused.status_code, refused.json()["code"]) == (503, "not_yet_applied")


@pytest.mark.usefixtures("impatient")
async def test_what_a_replica_gives_up_is_asked_for_again(reads: Reads, database: Connection) -> None:
    """Admins: a replica that must follow the primary says when to come again; it is no error of ours."""

    async def read() -> None:
        async with snapshot(reads) as seen:
            await seen.connection.fetch("SELECT FROM clients")
            waiting = asyncio.create_task(seen.connection.execute("SELECT pg_sleep(60)"))
            await database.execute("ALTER TABLE clients ADD COLUMN more int")
            await waiting

    with pytest.raises(Problem, match="follow the database") as refused:
        await read()
    assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})


@pytest.mark.usefixtures("impatient")
async def test_a_reader_whose_connection_a_replica_ended_is_told_to_come_again(
    reads: Reads, database: Connection
) -> None:
    """Admins: between two statements a replica gives up the whole connection. The next reader gets another."""

    async def read() -> None:
        async with snapshot(reads) as seen:
            await seen.connection.fetch("SELECT FROM clients")
            await database.execute("ALTER TABLE clients ADD COLUMN more int")

            async def ended() -> bool:
                return seen.connection.is_closed()

            await until(ended, "the end of the connection")
            await seen.connection.fetch("SELECT FROM clients")

    with pytest.raises(Problem) as refused:
        await read()
    assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
    async with snapshot(reads) as seen:
        assert await queries.client_exists(seen.connection, "c1") is False


async def test_no_answer_is_of_two_read_models(
    pair: tuple[Server, Server],
    reads: Reads,
    log: Client,
    database: Connection,
    database_url: str,
    replica_url: str,
    sources: Sources,
) -> None:
    """Admins: while read models are made anew, no replica answers from new tables as of what the old ones said."""
    async with projecting(database_url, sources):
        await given.write(log, given.registered("c1"))
        await caught_up(database, log)
        await replayed(database, pair[1])
        then = await table_of_clients(replica_url)
        found: list[bool] = []

        async def renamed() -> bool:
            return await table_of_clients(replica_url) != then

        async def read() -> None:
            async with snapshot(reads) as seen:
                await verify.rebuild(Means(database_url, sources), lambda *_: None)
                # The drop of the old ones waits for this reader; that their names are on the new ones does not.
                await until(renamed, "the new read models on the replica")
                found.append(await queries.client_exists(seen.connection, "c1"))

        with pytest.raises(Problem, match="made anew") as refused:
            await read()
        assert found == [False], "what it saw is of before the new rows: this would have been a wrong answer"
        assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
        async with snapshot(reads) as seen:
            assert await queries.client_exists(seen.connection, "c1")


async def table_of_clients(url: str) -> int:
    """Which table the name is on now."""
    connection = await db.connect(url, db.SCHEMA, name="test looks")
    try:
        return int(await connection.fetchval("SELECT 'clients'::regclass::oid"))
    finally:
        connection.terminate()


async def test_a_replica_waits_until_a_projector_has_made_the_read_models(
    pair: tuple[Server, Server], nats_url: str, empty_database_url: str, log: Client
) -> None:
    """Operators: whatever is started first, nothing is made on a replica, and its readers begin once it is there."""
    primary = await db.connect(empty_database_url, db.SCHEMA, name="test")
    await replayed(primary, pair[1])
    replica_url = with_database(pair[1].url, empty_database_url.rpartition("/")[2])
    chosen = Settings(nats_url=nats_url, database_url="", read_database_url=replica_url)
    async with AsyncExitStack() as stack:
        opening = asyncio.create_task(stack.enter_async_context(app.opened_reads(chosen)))
        await asyncio.wait([opening], timeout=2 * db.RETRY_SECONDS)
        assert not opening.done()
        await db.ensure_schema(primary, db.SCHEMA)
        reads = await opening

        async def answers() -> bool:
            return await app.database_answers(State({"reads": reads})) is None

        await until(answers, "the replica")
    primary.terminate()


async def test_readers_of_a_replica_that_becomes_the_primary_go_on(
    tmp_path: Path, settings: Settings, log: Client, sources: Sources
) -> None:
    """Operators: after the loss of the primary the replica is promoted, and projected to. Nothing else is set."""
    with postgres_server(tmp_path / "primary", password=PASSWORD, durable=False) as primary:
        database = await db.connect(primary.url, db.SCHEMA, name="test")
        await db.ensure_schema(database, db.SCHEMA)
        with postgres_replica(tmp_path / "replica", of=primary, durable=False) as replica:
            chosen = Settings(nats_url=settings.nats_url, database_url="", read_database_url=replica.url)
            async with app.opened_reads(chosen) as reads:
                primary.kill()
                await execute(replica.url, "select pg_promote()")
                async with projecting(replica.url, sources):
                    (last,) = await given.write(log, given.registered("c1"))
                    at_least = await given.position(log, subjects.LOG, last)
                    await until(lambda: answered(reads, at_least), "the promoted replica")


async def answered(reads: Reads, at_least: str) -> bool:
    """Whether the position was waited for with success."""
    try:
        async with snapshot(reads, at_least) as seen:
            return await queries.client_exists(seen.connection, "c1")
    except Problem:
        return False


def test_whoever_only_reads_needs_no_address_of_the_primary() -> None:
    """Operators: a reader's machine need not know where the primary is."""
    nats, replica = {"GRANTBOOK_NATS_URL": "nats://n1"}, {"GRANTBOOK_READ_DATABASE_URL": "postgresql://pg2/grantbook"}
    primary = {"GRANTBOOK_DATABASE_URL": "postgresql://pg1/grantbook"}
    assert app.settings_from(nats | replica).read_database_url == "postgresql://pg2/grantbook"
    assert app.settings_from(nats | replica | primary).read_database_url == "postgresql://pg2/grantbook"
    assert app.settings_from(nats | primary).read_database_url is None
    with pytest.raises(KeyError, match="GRANTBOOK_DATABASE_URL"):
        app.settings_from(nats)
