"""Credentials that are kept ahead: never shown before their hashes are on disk, never twice, never old."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from nats.aio.client import Client

from grantbook import subjects
from grantbook.sdk.log import LogReader
from grantbook.sdk.tasks import end
from registry import credentials
from registry.ahead import AHEAD_SECONDS, FRESH_SECONDS, Ahead, Blank
from registry.buckets import Bucket
from registry.commit import MAX_BATCH_MESSAGES, MIN_BATCH_MESSAGES, Full
from tests.registry.conftest import new_id

MANY = 3 * MIN_BATCH_MESSAGES


class Clock:
    """Stands still until it is set."""

    now = 1_000 * AHEAD_SECONDS

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """When those that register do."""
    return Clock()


@pytest.fixture
async def bucket(nats: Client) -> AsyncIterator[Bucket]:
    """The bucket of credentials, empty."""
    async with Bucket(nats, subjects.CREDENTIALS, new_id=new_id) as found:
        yield found


@pytest.fixture
async def written(nats: Client) -> AsyncIterator[LogReader]:
    """The bucket's stream, whose last sequence tells how many writes there were."""
    async with LogReader(nats, subjects.bucket_stream(subjects.CREDENTIALS)) as reader:
        yield reader


@asynccontextmanager
async def kept_ahead(bucket: Bucket, clock: Clock) -> AsyncIterator[Ahead]:
    ahead = Ahead(bucket, new_id=new_id, random=secrets.token_bytes, clock=clock)
    task = asyncio.create_task(ahead.run())
    yield ahead
    await end(task)


async def many(ahead: Ahead, number: int = MANY, *, with_secret: bool = False) -> list[Blank]:
    return list(await asyncio.gather(*(ahead.take(with_secret=with_secret) for _ in range(number))))


async def until(written: LogReader, writes: int) -> None:
    """Wait for so many writes."""
    async with asyncio.timeout(10):
        while (await written.state()).last < writes:
            await asyncio.sleep(0.01)


async def usable(bucket: Bucket, blank: Blank) -> bool:
    """Whether what the client is shown is what the leader has a hash of."""
    kept = await credentials.kept(bucket, subjects.token(blank.client_id))
    return (
        kept is not None
        and credentials.matches(
            blank.issued.registration_access_token, kept.credentials.registration_access_token_sha256
        )
        and (blank.issued.client_secret is None) == (kept.credentials.client_secret_sha256 is None)
        and (
            blank.issued.client_secret is None
            or credentials.matches(blank.issued.client_secret, kept.credentials.client_secret_sha256)
        )
    )


@pytest.mark.parametrize("with_secret", [False, True])
async def test_while_many_register_the_next_ones_find_theirs_kept(
    bucket: Bucket, written: LogReader, clock: Clock, with_secret: bool
) -> None:
    """Agents: each of many waits for its event alone; and what it is shown works, and is nobody else's."""
    async with kept_ahead(bucket, clock) as ahead:
        first = await many(ahead, with_secret=with_secret)
        await until(written, 2 * MANY)
        clock.now += AHEAD_SECONDS
        second = [await ahead.take(with_secret=with_secret) for _ in range(MIN_BATCH_MESSAGES)]
        assert (await written.state()).last == 2 * MANY
        assert all([await usable(bucket, each) for each in (*first, *second)])
        assert len({each.client_id for each in (*first, *second)}) == len(first) + len(second)
        assert all((each.issued.client_secret is not None) == with_secret for each in second)


async def test_who_needs_no_secret_is_not_given_one_that_was_kept_for_others(
    bucket: Bucket, written: LogReader, clock: Clock
) -> None:
    """Agents that are public clients: no hash of a secret, which nobody has, stands beside theirs."""
    async with kept_ahead(bucket, clock) as ahead:
        await many(ahead, with_secret=True)
        await until(written, 2 * MANY)
        public = await ahead.take(with_secret=False)
        assert public.issued.client_secret is None
        assert await usable(bucket, public)


async def test_who_registers_alone_leaves_nothing_behind(bucket: Bucket, written: LogReader, clock: Clock) -> None:
    """Operators: a quiet register has as many credentials as clients, and no secret waits in memory."""
    async with kept_ahead(bucket, clock) as ahead:
        for _ in range(MIN_BATCH_MESSAGES):
            await ahead.take(with_secret=False)
            clock.now += AHEAD_SECONDS
            await asyncio.sleep(0)
    assert (await written.state()).last == MIN_BATCH_MESSAGES


async def test_no_more_is_kept_ahead_than_registers_in_a_moment(
    bucket: Bucket, written: LogReader, clock: Clock
) -> None:
    """Operators: a flood costs what it registers, and one batch."""
    async with kept_ahead(bucket, clock) as ahead:
        await many(ahead, 2 * MAX_BATCH_MESSAGES)
        await until(written, 3 * MAX_BATCH_MESSAGES)
        await many(ahead, MIN_BATCH_MESSAGES)
    assert (await written.state()).last == 3 * MAX_BATCH_MESSAGES


async def test_what_waited_too_long_is_given_to_nobody(bucket: Bucket, written: LogReader, clock: Clock) -> None:
    """Auditors: a client's id is about as old as its registration."""
    async with kept_ahead(bucket, clock) as ahead:
        await many(ahead)
        await until(written, 2 * MANY)
        clock.now += FRESH_SECONDS
        late = await ahead.take(with_secret=False)
        assert await usable(bucket, late)
        assert (await written.state()).last == 2 * MANY + 1


async def test_where_they_cannot_be_kept_whoever_registers_is_told(
    nats: Client, bucket: Bucket, written: LogReader, clock: Clock
) -> None:
    """Agents: no client whose credentials were not kept; and once there is room again, all goes on."""
    stream = subjects.bucket_stream(subjects.CREDENTIALS)
    config = (await nats.jetstream().stream_info(stream)).config
    async with kept_ahead(bucket, clock) as ahead:
        await nats.jetstream().update_stream(config.evolve(max_msgs=MANY, discard="new"))
        await many(ahead)
        with pytest.raises(Full):
            await ahead.take(with_secret=False)
        await nats.jetstream().update_stream(config.evolve(max_msgs=-1))
        async with asyncio.timeout(10):
            while (await written.state()).last < 2 * MANY:
                assert all([await usable(bucket, each) for each in await many(ahead)])
                clock.now += AHEAD_SECONDS
