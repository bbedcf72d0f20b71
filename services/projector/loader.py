"""Copy a part of the log into tables without indexes: what each of the processes of a bulk rebuild does.

A part is decoded and folded as the live projector does it. What a batch comes to is not applied, but copied as it is:
events and cut-offs to where they belong, all else to tables `loaded_...`, from which `bulk` makes the read models when
all parts are there.

`python -m projector.loader` reads lines of JSON, first a `Task` and then a `Part` after another, and answers each with
`Copied` as it goes on, or with `Failed`. It ends with its input, and so with whoever started it.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import asyncpg
import msgspec
import uvloop
from msgspec import Struct

from door import logs, serving
from grantbook.sdk.log import Unavailable
from grantbook.sdk.tasks import end
from projector import app, copying, db
from projector.applying import Halt, fitting
from projector.db import Checkpoint, Connection
from projector.projections import LogBatch, Row
from projector.run import Sources
from projector.settings import Settings

COPIED_AT_ONCE: Final = 10_000
"""Events. Each copy is an exchange with Postgres for every table."""
COPY_SECONDS: Final = 600.0

LOADED: Final = {
    "loaded_hours": "(LIKE hours)",
    "loaded_hosts": "(LIKE redirect_hosts)",
    "loaded_clients": "OF new_client",
    "loaded_metadata": "OF new_metadata",
    "loaded_gates": "OF new_gate",
    "loaded_grants": "OF new_grant",
    "loaded_extensions": "OF new_extension",
    "loaded_granted": "OF new_granted",
    "loaded_revocations": "OF new_revocation",
    "loaded_users": "OF new_user",
}
"""Tables for what was folded, and what their rows are like."""


class Task(Struct, frozen=True):
    """Where to read and write. It holds passwords, so it is sent, and stands in no command line."""

    nats_url: str
    database_url: str
    schema: str


class Part(Struct, frozen=True):
    """Positions of the log: those after `after`, up to `until`, of the stream with this identity."""

    after: int
    until: int
    identity: str


class Copied(Struct, frozen=True, tag="copied"):
    """So many more events are there, up to the one at `reached`."""

    events: int
    reached: Checkpoint


class Failed(Struct, frozen=True, tag="failed"):
    """The part cannot be loaded. `halt`: because of what stands in the log."""

    reason: str
    halt: bool


ANSWER: Final = msgspec.json.Decoder(Copied | Failed)
Told = Callable[[Copied], None]


async def load(connection: Connection, sources: Sources, part: Part, told: Told) -> None:
    """Copy a part of the log. Raises `Halt`, and one of `db.UNREACHABLE`; what was copied before stays there."""
    at = Checkpoint(0, "", "")
    if part.after:
        last = await sources.log.at_on_leader(part.after)
        at = Checkpoint(part.after, "" if last is None else (last.headers or {}).get("ce-id", ""), part.identity)
    feed = sources.feed("log", at, until=part.until)
    task = asyncio.create_task(feed.next())
    waiting: list[LogBatch] = []
    copied = at.sequence
    try:
        while at.sequence < part.until:
            prepared = await task
            if prepared is None:
                task = asyncio.create_task(feed.next())
                continue
            at = prepared.after
            if at.sequence < part.until:
                task = asyncio.create_task(feed.next())
            assert isinstance(prepared.batch, LogBatch)
            waiting.append(prepared.batch)
            if at.sequence - copied >= COPIED_AT_ONCE or at.sequence >= part.until:
                with fitting(connection, "log", copied, at.sequence):
                    await _copy(connection, waiting)
                told(Copied(at.sequence - copied, at))
                waiting, copied = [], at.sequence
    finally:
        await end(task)
        await feed.close()


async def _copy(connection: Connection, batches: list[LogBatch]) -> None:
    async def copy(table: str, rows: Iterable[Row]) -> None:
        records = list(rows)
        if records:
            await connection.copy_records_to_table(table, records=records, timeout=COPY_SECONDS)

    await copying.copy_events(connection, [each.events for each in batches], seconds=COPY_SECONDS)
    await copy("cut_offs", (row for each in batches for row in each.cut_offs.values()))
    await copy("loaded_hours", ((*key, number) for each in batches for key, number in each.hours.items()))
    await copy("loaded_hosts", (row for each in batches for row in each.hosts.values()))
    await copy("loaded_clients", (row for each in batches for row in each.clients.values()))
    await copy("loaded_metadata", (row for each in batches for row in each.metadata.values()))
    gates = (gate for each in batches for gate in each.client_gates.values())
    await copy("loaded_gates", map(msgspec.structs.astuple, gates))
    await copy("loaded_grants", (row for each in batches for row in each.grants.values()))
    await copy("loaded_extensions", (row for each in batches for row in each.extensions.values()))
    await copy("loaded_granted", (row for each in batches for row in each.granted))
    await copy("loaded_revocations", (row for each in batches for row in each.revocations.values()))
    users: dict[str, bool] = {}
    for each in batches:
        for user, granted in each.users.items():
            users[user] = granted or users.get(user, False)
    await copy("loaded_users", users.items())


@asynccontextmanager
async def _opened(task: Task) -> AsyncIterator[tuple[Connection, Sources]]:
    settings = Settings(nats_url=task.nats_url, database_url=task.database_url)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(app.connected(settings, name="grantbook loader"))
        sources = await stack.enter_async_context(app.opened_sources(client))
        connection = await db.connect(task.database_url, task.schema, name="grantbook loader")
        stack.callback(connection.terminate)
        yield connection, sources


def _say(answer: Copied | Failed) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


async def _work() -> None:
    lines = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(lines)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    task = msgspec.json.decode(await lines.readline(), type=Task)
    try:
        async with _opened(task) as (connection, sources):
            while line := await lines.readline():
                await load(connection, sources, msgspec.json.decode(line, type=Part), _say)
    except Halt as halt:
        _say(Failed(str(halt), halt=True))
    except (Unavailable, asyncpg.PostgresError, *db.UNREACHABLE, db.NotReached) as error:
        _say(Failed(str(error) or type(error).__name__, halt=False))


def main() -> None:
    """Load what is asked for."""
    logs.configure(level="WARNING")
    serving.collect_garbage_rarely()
    uvloop.run(_work())


if __name__ == "__main__":
    main()
