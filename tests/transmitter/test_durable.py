"""The durable consumer of an event stream, on a real feed."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from nats.aio.client import Client

from grantbook import subjects
from grantbook.sdk.log import LogReader, Unavailable
from tests.sdk.given import revoked, write
from transmitter import durable
from transmitter.durable import Durable

START = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
async def feed(log: Client) -> AsyncIterator[LogReader]:
    """The feed, with ten revocations in it."""
    await write(log, *(revoked("c", f"g{number}") for number in range(10)))
    async with LogReader(log, subjects.REVOCATIONS) as reader:
        while (await reader.state()).last < 10:
            pass
        yield reader


async def pulled(consumer: Durable, most: int = 20) -> list[int]:
    return [each.raw.sequence for each in await consumer.pull(most, 0.0)]


async def test_who_opens_it_takes_over_what_is_in_hand(log: Client, feed: LogReader) -> None:
    """Receivers: what a process that died had in its hands comes at once, in order, without a time-out."""
    first = Durable(log, "ssf-1", START)
    await first.open()
    handed = await first.pull(6, 0.0)
    for each in handed[:2]:
        await first.acknowledge(each.reply)
    assert await pulled(first) == [7, 8, 9, 10]
    second = Durable(log, "ssf-1", START)
    await second.open()
    assert await pulled(second) == list(range(3, 11))


async def test_one_that_skips_is_set_back(log: Client, feed: LogReader) -> None:
    """Users: a revocation that the server's consumer jumped over is noticed, and delivered after all."""
    consumer = Durable(log, "ssf-1", START)
    await consumer.open()
    for each in await consumer.pull(2, 0.0):
        await consumer.acknowledge(each.reply)
    await feed._ask(f"$JS.API.CONSUMER.RESET.{subjects.REVOCATIONS}.ssf-1", {"seq": 6})
    with pytest.raises(Unavailable, match="skipped from 2 to 6"):
        await pulled(consumer)
    await consumer.open()
    assert await pulled(consumer) == list(range(3, 11))


async def test_it_begins_where_its_stream_does(log: Client, feed: LogReader) -> None:
    """Receivers: a stream hears of what happens from its making on, and after being disabled from then on."""
    consumer = Durable(log, "ssf-1", (await feed.state()).now)
    await consumer.open()
    assert await pulled(consumer) == []
    again = Durable(log, "ssf-1", START)  # as if it had been another stream's
    await again.open()
    assert await pulled(again) == list(range(1, 11))
    await durable.remove(log, "ssf-1")
    await durable.remove(log, "ssf-1")
    with pytest.raises(Unavailable):
        await pulled(again)
