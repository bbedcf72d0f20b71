"""`python -m benchmarks.seed`: a register that has been used for a while, by so many clients and with so many grants.

The same seed gives the same history. It goes straight into the log, in atomic batches, from several processes; then the
read models are made from it, as `python -m projector rebuild` makes them. Meant for a register that is empty.
"""

import asyncio
import multiprocessing
import os
import random
import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import click
import msgspec
import nats
import uuid_utils
import uvloop
from msgspec import Struct
from nats.aio.client import Client
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from door import logs
from grantbook import subjects, wire
from grantbook.events import Actor, ClientDeleted, ClientMetadata, ClientRegistered, Event, GrantIssued, GrantRevoked
from grantbook.sdk.connection import connect
from grantbook.sdk.log import LogReader
from grantbook.sealed import KEY_BYTES, NONCE_BYTES, Sealed, seal, user_key_id
from projector import app, bulk, verify
from projector.settings import Settings
from registry import fanout

BATCH: Final = 500
UNDER_WAY: Final = 4
"""Batches of a process that are not acknowledged yet."""
MAX_USERS: Final = 50_000
GIANT: Final = "giant"
"""The client that a tenth of all grants are of."""
WEIGHTS: Final = (30, 8, 5, 3, 2, 1, 1, 0, 0, 0)
"""What clients have of the other grants, in turns: most have few or none, a few have many."""
AGENTS: Final = ("Claude", "Cursor", "ChatGPT", "MCP Inspector", "Visual Studio Code", "Goose", "Agent", "My agent")
REVOKED_SHARE: Final = 0.2
DELETED_SHARE: Final = 0.05
LIFETIME: Final = timedelta(days=30)
PAST: Final = timedelta(days=90)
"""Clients registered, by what they say, within so long."""
ACKNOWLEDGE_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.2


class History(Struct, frozen=True):
    """What is made: the same for the same numbers."""

    clients: int
    grants: int
    at: datetime
    dice: int = 7

    @property
    def users(self) -> int:
        """How many people let clients in."""
        return max(1, min(MAX_USERS, self.grants // 4))

    def data_keys(self) -> list[tuple[str, bytes]]:
        """Users, and the data keys that their names are sealed with."""
        dice = random.Random(self.dice)
        return [(f"user-{number}", dice.randbytes(KEY_BYTES)) for number in range(self.users)]

    def grants_of(self, client: int) -> int:
        """How many grants the client with this number has: of all together, exactly `grants`."""
        giants = self.grants // 10
        if client == 0:
            return giants
        rest, others = self.grants - giants, self.clients - 1

        def before(number: int) -> int:
            turns, left = divmod(number, len(WEIGHTS))
            turns_of_all, left_of_all = divmod(others, len(WEIGHTS))
            weight = turns * sum(WEIGHTS) + sum(WEIGHTS[:left])
            of_all = turns_of_all * sum(WEIGHTS) + sum(WEIGHTS[:left_of_all])
            return rest * weight // of_all if of_all else 0

        return before(client) - before(client - 1)

    def events(self, share: int = 0, shares: int = 1) -> Iterator[Event]:
        """One of so many shares of the events, in an order that can happen."""
        dice = random.Random(self.dice * 1_000 + share)
        people = [(user, _sealed(user, key, dice)) for user, key in self.data_keys()]
        for client in range(share, self.clients, shares):
            yield from self._of_client(client, dice, people)

    def _of_client(self, client: int, dice: random.Random, people: list[tuple[str, Sealed]]) -> Iterator[Event]:
        client_id = f"seed-{client}" if client else GIANT
        metadata = ClientMetadata(
            redirect_uris=(
                f"https://{f'own-{client}' if client % 5 == 0 else f'agent-{client % 50}'}.example/callback",
            ),
            token_endpoint_auth_method="none",  # noqa: S106  a method, no password
            grant_types=("authorization_code", "refresh_token"),
            response_types=("code",),
            client_name=f"{AGENTS[client % len(AGENTS)]} {client % 997}",
            scope="read write",
        )
        at = self.at - PAST + client * PAST / self.clients
        yield ClientRegistered(client_id=client_id, source="dcr", metadata=metadata, at=at, by=Actor("agent"))
        open_grants: list[tuple[str, str]] = []
        for grant in range(self.grants_of(client)):
            user, username = dice.choice(people)
            grant_id = f"{client_id}-{grant}"
            yield GrantIssued(
                client_id=client_id,
                grant_id=grant_id,
                user_id=user,
                username=username,
                scopes=("read", "write"),
                expires_at=self.at + LIFETIME,
                at=self.at,
                by=Actor("idp", "seed"),
            )
            if dice.random() < REVOKED_SHARE:
                yield GrantRevoked(
                    client_id=client_id, grant_id=grant_id, user_id=user, reason="user", at=self.at, by=Actor("idp")
                )
            elif client:
                open_grants.append((grant_id, user))
        if client and dice.random() < DELETED_SHARE:
            yield ClientDeleted(client_id=client_id, reason="admin", at=self.at, by=Actor("admin"))
            for grant_id, user in open_grants:
                yield GrantRevoked(
                    client_id=client_id,
                    grant_id=grant_id,
                    user_id=user,
                    reason="client_deleted",
                    at=self.at,
                    by=Actor("system"),
                )


def _sealed(user: str, key: bytes, dice: random.Random) -> Sealed:
    name = f"{user}@example.com".encode()
    return seal(name, key_id=user_key_id(user), key=key, nonce=dice.randbytes(NONCE_BYTES))


async def write_keys(connection: Client, history: History) -> None:
    """Put the data keys of all users where they belong: before them, no name can be opened."""
    for user, key in history.data_keys():
        await connection.publish(subjects.bucket_key(subjects.USER_KEYS, user_key_id(user)), key)
    await connection.flush()


async def append(connection: Client, events: Iterator[Event], batch_id: str) -> int:
    """Append events in atomic batches, a few under way at a time. How many there were."""
    number = written = 0
    acknowledged: deque[asyncio.Task[None]] = deque()
    held: wire.Outgoing | None = None
    headers: dict[str, str] = {}
    for event in events:
        if held is not None:
            if number < BATCH - 1:
                number += 1
                await connection.publish(
                    held.subject, held.body, headers=headers | held.headers | {"Nats-Batch-Sequence": str(number)}
                )
            else:
                acknowledged.append(_committed(connection, held, headers, number + 1))
                number = 0
        if number == 0:
            headers = {"Nats-Batch-Id": f"{batch_id}-{written}"}
            if len(acknowledged) >= UNDER_WAY:
                await acknowledged.popleft()
        held = wire.encode(event, event_id=str(uuid_utils.uuid7()))
        written += 1
    if held is not None:
        acknowledged.append(_committed(connection, held, headers, number + 1))
    await asyncio.gather(*acknowledged)
    return written


def _committed(connection: Client, last: wire.Outgoing, headers: dict[str, str], number: int) -> "asyncio.Task[None]":
    async def request() -> None:
        said = headers | last.headers | {"Nats-Batch-Sequence": str(number), "Nats-Batch-Commit": "1"}
        answer = await connection.request(last.subject, last.body, headers=said, timeout=ACKNOWLEDGE_SECONDS)
        assert b'"error"' not in answer.data, answer.data

    return asyncio.create_task(request())


async def fill(nats_url: str, history: History, *, processes: int = 1) -> int:
    """Write a history into the log. How many events the log has then."""
    connection = await nats.connect(nats_url.split(","))
    try:
        await write_keys(connection, history)
        context = multiprocessing.get_context("spawn")
        work = [
            context.Process(target=_fill, args=(nats_url, history, share, processes), daemon=True)
            for share in range(processes)
        ]
        for each in work:
            each.start()
        async with LogReader(connection, subjects.LOG) as log:
            with _progress() as shown:
                # About: each grant that is revoked is an event more.
                about = history.clients + history.grants * (1 + REVOKED_SHARE) + history.clients * DELETED_SHARE
                task = shown.add_task("events", total=int(about))
                while any(each.is_alive() for each in work):
                    shown.update(task, completed=(await log.state()).last)
                    await asyncio.sleep(POLL_SECONDS)
            failed = [each.exitcode for each in work if each.exitcode != 0]
            assert not failed, f"processes ended with {failed}: what they said is above"
            await _fan_out_done(connection, log)
            return (await log.state()).last
    finally:
        await connection.close()


async def _fan_out_done(connection: Client, log: LogReader) -> None:
    """Say, as the registry that had lived through it, that the grants of all deleted clients are ended: they are."""
    for last in (await log.last_on_leader([subjects.CLIENT_GATES])).values():
        event_id = (last.headers or {})["ce-id"]
        done = fanout.Checkpoint((await log.state()).identity, last.sequence, event_id=event_id)
        await connection.request(
            subjects.bucket_key(subjects.FANOUT, fanout.CHECKPOINT),
            msgspec.json.encode(done),
            timeout=ACKNOWLEDGE_SECONDS,
        )


def _fill(nats_url: str, history: History, share: int, shares: int) -> None:
    async def work() -> None:
        connection = await connect(nats_url, name="grantbook seed")
        await append(connection, history.events(share, shares), f"seed-{share}")
        await connection.close()

    uvloop.run(work())


async def project(nats_url: str, database_url: str, loaders: int) -> int:
    """Make the read models from the log, in bulk. How many events they were made from."""
    settings = Settings(nats_url=nats_url, database_url=database_url)
    async with app.connected(settings, name="grantbook seed") as client, app.opened_sources(client) as sources:
        with _progress() as shown:
            tasks = {unit: shown.add_task(unit, total=None) for unit in ("events", "rows")}
            means = verify.Means(database_url, sources, [bulk.children(nats_url, database_url)] * loaders)
            reached = await verify.rebuild(
                means, lambda done, total, unit: shown.update(tasks[unit], completed=done, total=total)
            )
            return reached.sequence


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@click.command()
@click.option("--clients", type=click.IntRange(1), default=10_000, show_default=True, help="Clients that registered.")
@click.option("--grants", type=click.IntRange(0), default=100_000, show_default=True, help="Grants, of all clients.")
@click.option("--nats-url", envvar="GRANTBOOK_NATS_URL", required=True, show_envvar=True, help="The NATS server.")
@click.option(
    "--database-url", envvar="GRANTBOOK_DATABASE_URL", required=True, show_envvar=True, help="The Postgres database."
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=os.cpu_count() or 1,
    show_default="the number of cores",
    help="Processes that write, and then that read.",
)
def main(clients: int, grants: int, nats_url: str, database_url: str, processes: int) -> None:
    """Fill the log, and the read models, with what so many clients and grants come to.

    A tenth of the grants are those of one client, `giant`. A fifth of the grants is revoked, and a twentieth of the
    clients deleted.
    """
    logs.configure(level="WARNING")
    history = History(clients, grants, datetime.now(UTC))
    started = time.perf_counter()
    written = uvloop.run(fill(nats_url, history, processes=processes))
    seconds = time.perf_counter() - started
    click.echo(f"log: {written:,} events in {seconds:,.1f} s, {written / seconds:,.0f}/s")
    started = time.perf_counter()
    reached = uvloop.run(project(nats_url, database_url, processes))
    seconds = time.perf_counter() - started
    click.echo(f"read models: {reached:,} events in {seconds:,.1f} s, {reached / seconds:,.0f}/s")


if __name__ == "__main__":
    main()
