"""Credentials that are kept ahead: never shown before their hashes are on disk, never twice, never old."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
from nats.aio.client import Client

from grantbook import subjects
from grantbook.sdk.log import LogReader
from grantbook.sdk.tasks import end
from registry import ahead as module
from registry import credentials
from registry.ahead import AHEAD_SECONDS, FRESH_SECONDS, Ahead, Blank
from registry.buckets import Bucket
from registry.commit import MAX_BATCH_MESSAGES, MIN_BATCH_MESSAGES, Full
from tests.registry.conftest import new_id
from tests.registry.over_http import Http, registered

MANY = 3 * MIN_BATCH_MESSAGES


class Clock:
    """Stands still, in the middle of a window, until it is set."""

    now = 1_000.5 * AHEAD_SECONDS

    def __call__(self) -> float:
        return self.now


class Watched(Bucket):
    """A bucket that tells what became of the batches that were kept ahead."""

    batches: tuple[bool | None, ...] = ()
    """Whether each was stored; None: something was raised."""
    lose_answers = False

    async def put_new(self, entries: Mapping[str, bytes]) -> bool:
        stored: bool | None = None
        try:
            stored = await super().put_new(entries) and not self.lose_answers
        finally:
            self.batches = (*self.batches, stored)
        return stored

    async def until(self, number: int) -> None:
        """Wait for so many batches. Who is called back with one puts it on its shelf before anybody else runs."""
        async with asyncio.timeout(20):
            while len(self.batches) < number:
                await asyncio.sleep(0.005)


@pytest.fixture
def clock() -> Clock:
    """When those that register do."""
    return Clock()


@pytest.fixture
async def bucket(nats: Client) -> AsyncIterator[Watched]:
    """The bucket of credentials, empty."""
    async with Watched(nats, subjects.CREDENTIALS, new_id=new_id) as found:
        yield found


@pytest.fixture
async def written(nats: Client) -> AsyncIterator[LogReader]:
    """The bucket's stream, whose last sequence tells how many keys were written."""
    async with LogReader(nats, subjects.bucket_stream(subjects.CREDENTIALS)) as reader:
        yield reader


@asynccontextmanager
async def kept_ahead(bucket: Bucket, clock: Clock) -> AsyncIterator[Ahead]:
    ahead = Ahead(bucket, new_id=new_id, random=secrets.token_bytes, clock=clock)
    task = asyncio.create_task(ahead.run())
    try:
        yield ahead
    finally:
        await end(task)


async def many(ahead: Ahead, number: int = MANY, *, with_secret: bool = False) -> list[Blank]:
    return list(await asyncio.gather(*(ahead.take(with_secret=with_secret) for _ in range(number))))


async def usable(bucket: Bucket, blank: Blank) -> bool:
    """Whether what the client is shown is what the leader has hashes of, and no more."""
    kept = await credentials.kept(bucket, subjects.token(blank.client_id))
    secret = blank.issued.client_secret
    return (
        kept is not None
        and credentials.matches(
            blank.issued.registration_access_token, kept.credentials.registration_access_token_sha256
        )
        and (secret is None) == (kept.credentials.client_secret_sha256 is None)
        and (secret is None or credentials.matches(secret, kept.credentials.client_secret_sha256))
    )


@pytest.mark.parametrize("with_secret", [False, True])
async def test_while_many_register_the_next_ones_find_theirs_kept(
    bucket: Watched, written: LogReader, clock: Clock, with_secret: bool
) -> None:
    """Agents: each of many waits for its event alone; and what it is shown works, and is nobody else's."""
    async with kept_ahead(bucket, clock) as ahead:
        first = await many(ahead, with_secret=with_secret)
        await bucket.until(1)
        clock.now += AHEAD_SECONDS
        second = await many(ahead, MIN_BATCH_MESSAGES, with_secret=with_secret)
        assert bucket.batches == (True,)
        assert (await written.state()).last == 2 * MANY
    given = [*first, *second]
    assert all([await usable(bucket, each) for each in given])
    assert len({each.client_id for each in given}) == len(given)
    assert len({each.issued.registration_access_token for each in given}) == len(given)
    assert len({each.issued.client_secret for each in given}) == (len(given) if with_secret else 1)
    assert all((each.issued.client_secret is not None) == with_secret for each in given)


async def test_more_are_kept_once_half_of_them_are_taken(bucket: Watched, clock: Clock) -> None:
    """Agents: while as many register all the time, hardly any of them finds nothing."""
    async with kept_ahead(bucket, clock) as ahead:
        await many(ahead)
        await bucket.until(1)
        clock.now += AHEAD_SECONDS
        await many(ahead, MANY // 2 - 1)
        await asyncio.sleep(0.05)
        assert bucket.batches == (True,)
        await ahead.take(with_secret=False)
        await bucket.until(2)


async def test_who_needs_no_secret_is_not_given_one_that_was_kept_for_others(bucket: Watched, clock: Clock) -> None:
    """Agents that are public clients: no hash of a secret, which nobody has, stands beside theirs."""
    async with kept_ahead(bucket, clock) as ahead:
        await many(ahead, with_secret=True)
        await bucket.until(1)
        public = await ahead.take(with_secret=False)
        assert public.issued.client_secret is None
        assert await usable(bucket, public)


async def test_who_registers_alone_leaves_nothing_behind(bucket: Watched, written: LogReader, clock: Clock) -> None:
    """Operators: a quiet register has as many credentials as clients, and no secret waits in memory."""
    async with kept_ahead(bucket, clock) as ahead:
        for _ in range(2 * MIN_BATCH_MESSAGES):
            await ahead.take(with_secret=False)
            clock.now += AHEAD_SECONDS
    assert (await written.state()).last == 2 * MIN_BATCH_MESSAGES
    assert not bucket.batches


async def test_a_flood_long_ago_keeps_nothing_ahead(bucket: Watched, clock: Clock) -> None:
    """Operators: what is kept goes by what registers now."""
    async with kept_ahead(bucket, clock) as ahead:
        await many(ahead, MIN_BATCH_MESSAGES)
        await bucket.until(1)
        clock.now += FRESH_SECONDS
        await many(ahead, MIN_BATCH_MESSAGES - 1)
        await asyncio.sleep(0.05)
    assert bucket.batches == (True,)


async def test_what_was_wanted_a_moment_ago_is_not_made_any_more(bucket: Watched, clock: Clock) -> None:
    """Operators: once a flood is over, what could not be kept during it is no orphan."""
    async with kept_ahead(bucket, clock) as ahead:
        await many(ahead)
        await bucket.until(1)
        for _ in range(MANY):
            await ahead.take(with_secret=False)  # from what is kept: nothing is waited for
        clock.now += AHEAD_SECONDS
        await asyncio.sleep(0.05)
    assert bucket.batches == (True,)


async def test_no_more_is_kept_ahead_than_a_batch(bucket: Watched, written: LogReader, clock: Clock) -> None:
    """Operators: a flood costs what it registers, and one batch."""
    async with kept_ahead(bucket, clock) as ahead:
        await many(ahead, 2 * MAX_BATCH_MESSAGES)
        await bucket.until(1)
        already = (await written.state()).last
        await many(ahead, MIN_BATCH_MESSAGES)
        await asyncio.sleep(0.05)
    assert (await written.state()).last == already == 3 * MAX_BATCH_MESSAGES


async def test_what_waited_too_long_is_given_to_nobody(bucket: Watched, written: LogReader, clock: Clock) -> None:
    """Auditors: a client's id is about as old as its registration."""
    async with kept_ahead(bucket, clock) as ahead:
        await many(ahead)
        await bucket.until(1)
        clock.now += FRESH_SECONDS
        late = await ahead.take(with_secret=False)
        assert await usable(bucket, late)
        assert (await written.state()).last == 2 * MANY + 1


async def test_secrets_that_nobody_takes_do_not_stay_in_memory(
    bucket: Watched, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agents to come: what is left of a flood is dropped, though nobody of its kind registers any more."""
    monkeypatch.setattr(module, "FRESH_SECONDS", 0.05)
    async with kept_ahead(bucket, clock) as ahead:
        await many(ahead, with_secret=True)
        await bucket.until(1)
        assert ahead.waiting == MANY
        clock.now += FRESH_SECONDS
        async with asyncio.timeout(10):
            while ahead.waiting:
                await asyncio.sleep(0.01)


async def test_what_nobody_knows_to_be_kept_is_given_to_nobody(bucket: Watched, clock: Clock) -> None:
    """Agents: an answer that was lost costs time, and no client whose credentials may not be there."""
    bucket.lose_answers = True
    async with kept_ahead(bucket, clock) as ahead:
        await many(ahead)
        await bucket.until(1)
        assert bucket.batches == (False,)
        assert not ahead.waiting


async def test_where_they_cannot_be_kept_whoever_registers_is_told(nats: Client, bucket: Watched, clock: Clock) -> None:
    """Agents: no client whose credentials were not kept; and once there is room again, all goes on."""
    stream = subjects.bucket_stream(subjects.CREDENTIALS)
    config = (await nats.jetstream().stream_info(stream)).config
    async with kept_ahead(bucket, clock) as ahead:
        await nats.jetstream().update_stream(config.evolve(max_msgs=MANY, discard="new"))
        await many(ahead)
        with pytest.raises(Full):
            await ahead.take(with_secret=False)
        await bucket.until(1)
        assert bucket.batches == (False,)
        assert not ahead.waiting
        await nats.jetstream().update_stream(config.evolve(max_msgs=-1))
        async with asyncio.timeout(20):
            while not any(bucket.batches):
                assert all([await usable(bucket, each) for each in await many(ahead)])
                clock.now += AHEAD_SECONDS
        assert ahead.waiting


async def test_a_registry_keeps_credentials_ahead_of_those_that_register(http: Http, written: LogReader) -> None:
    """Agents: it is what registration does, and each of many at once can manage its client."""
    clients: list[dict[str, str]] = []
    async with asyncio.timeout(30):
        while (await written.state()).last <= len(clients):
            clients += await asyncio.gather(*(registered(http) for _ in range(MANY)))
            await asyncio.sleep(0.05)
    for client in clients[-MANY:]:
        headers = {"Authorization": f"Bearer {client['registration_access_token']}"}
        answer = await http.get(f"/auth/connect/register/{client['client_id']}", headers=headers)
        assert answer.status_code == 200
