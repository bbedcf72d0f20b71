"""The streams must be what they must be, or a registry does not start."""

import json

import pytest
from nats.aio.client import Client

from grantbook import subjects
from grantbook.events import UserGrantsRevoked
from grantbook.sdk.log import LogReader
from registry import streams
from registry.store import Log
from registry.streams import UnsafeStreams
from tests.registry.conftest import MAX_BYTES
from tests.registry.given import ADMIN, NOON, REGISTERED

ASK_SECONDS = 5.0


async def change(nats: Client, stream: str, **settings: object) -> None:
    config = next(each for each in streams.configs(replicas=1, log_max_bytes=1 << 28) if each["name"] == stream)
    answer = await nats.request(
        f"$JS.API.STREAM.UPDATE.{stream}", json.dumps(config | settings).encode(), timeout=ASK_SECONDS
    )
    assert "error" not in json.loads(answer.data), answer.data


async def test_ensuring_twice_makes_nothing_the_second_time(nats: Client) -> None:
    """Operators: the command may run at every start."""
    assert await streams.ensure(nats) == []
    await streams.check(nats)


@pytest.mark.parametrize(
    ("stream", "settings"),
    [
        (subjects.LOG, {"discard": "old"}),
        (subjects.LOG, {"max_age": 3_600_000_000_000}),
        (subjects.LOG, {"allow_atomic": False}),
        (subjects.LOG, {"duplicate_window": 1_000_000_000}),
        (subjects.ACTIVITY, {"allow_atomic": False}),
        (subjects.bucket_stream(subjects.CREDENTIALS), {"max_msgs_per_subject": 5}),
    ],
)
async def test_a_stream_with_other_settings_is_refused(nats: Client, stream: str, settings: dict[str, object]) -> None:
    """Users: a log that may forget is no log."""
    await change(nats, stream, **settings)
    with pytest.raises(UnsafeStreams, match=stream):
        await streams.check(nats)
    with pytest.raises(UnsafeStreams, match=stream):
        await streams.ensure(nats)


async def test_missing_streams_are_refused_with_what_to_do(nats_url: str) -> None:
    """Operators: the message names the command."""
    from grantbook.sdk import connection  # noqa: PLC0415  not the fixture, which makes the streams

    client = await connection.connect(nats_url, name="empty")
    with pytest.raises(UnsafeStreams, match="ensure-streams"):
        await streams.check(client)
    await client.close()


async def test_a_feed_of_another_past_is_refused_until_it_is_rebuilt(nats: Client, log: Log, reader: LogReader) -> None:
    """Token services: a log that was restored under a kept feed would say `lag 0` and never deny again."""
    await log.record_new(REGISTERED)
    position = await log.record_new(UserGrantsRevoked(user_key="ada", at=NOON, by=ADMIN))
    async with LogReader(nats, subjects.REVOCATIONS) as feed:
        while (await feed.state()).last < 1:
            pass
        await streams.check_feed(reader, feed)
        # The log as it would be after a restore to an earlier point, with other events since.
        await nats.request(f"$JS.API.STREAM.DELETE.{subjects.LOG}", b"", timeout=ASK_SECONDS)
        await streams.ensure(nats, log_max_bytes=MAX_BYTES)
        with pytest.raises(UnsafeStreams, match="--rebuild-feed"):
            await streams.check_feed(reader, feed)
        for number in range(position):
            await log.record_new(UserGrantsRevoked(user_key=f"u{number}", at=NOON, by=ADMIN))
        with pytest.raises(UnsafeStreams, match="--rebuild-feed"):
            await streams.check_feed(reader, feed)
        await streams.rebuild_feed(nats)
        while (await feed.state()).last < position:
            pass
        await streams.check_feed(reader, feed)


async def test_a_bucket_of_an_earlier_version_is_brought_up_to_date(nats: Client) -> None:
    """Operators: an update needs no hand on the streams where nothing of theirs changes."""
    name = subjects.bucket_stream(subjects.SUBSCRIBERS)
    await nats.jetstream().delete_stream(name)
    config = next(each for each in streams.configs(replicas=1, log_max_bytes=1 << 28) if each["name"] == name)
    earlier = {key: value for key, value in config.items() if key != "allow_msg_ttl"}
    answer = await nats.request(f"$JS.API.STREAM.CREATE.{name}", json.dumps(earlier).encode(), timeout=ASK_SECONDS)
    assert "error" not in json.loads(answer.data), answer.data
    with pytest.raises(UnsafeStreams, match="allow_msg_ttl"):
        await streams.check(nats)
    assert await streams.ensure(nats) == []
    await streams.check(nats)
