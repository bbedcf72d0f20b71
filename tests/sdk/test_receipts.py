"""Receipts: subscribers say how far they are, and go from the list only in good order."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.aio.client import Client

from grantbook import receipts, subjects
from grantbook.receipts import Receipt
from grantbook.sdk import revocations, subscription
from grantbook.sdk.log import Follower, LogReader, Raw
from grantbook.sdk.revocations import RevocationFeed
from grantbook.sdk.revocations_http import HttpRevocationFeed
from grantbook.sdk.subscription import Applications, Observer, Received, put_receipt, read_receipts, take_receipt_away
from projector import feed as projected_feed
from projector.api import revocations as api
from tests.sdk.given import LIFETIME, deleted, revoked, write
from tests.sdk.over_http import OTHER_FEED, SECONDS, TOKENS, Served, serving


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Feeds of tests are young and empty, and nobody has rebuilt them."""
    monkeypatch.setattr(revocations, "SETTLE_SECONDS", 0.0)


@pytest.fixture
async def served(log: Client) -> AsyncIterator[Served]:
    async with serving(log) as it:
        yield it


async def receipt_with(log: Client, log_sequence: int) -> Received:
    async with asyncio.timeout(SECONDS):
        while True:
            for each in (await read_receipts(log)).received:
                if each.receipt.log_sequence >= log_sequence:
                    return each
            await asyncio.sleep(0.01)


async def test_a_subscriber_says_what_it_has_applied_and_when(log: Client, nats_url: str) -> None:
    """Protects an admin who asks whether a revocation has arrived."""
    async with RevocationFeed(nats_url, LIFETIME, subscriber="mail", instance="one"):
        [first, last] = await write(log, revoked("c", "g"), deleted("d"))
        received = await receipt_with(log, last)
        receipt = received.receipt
        assert (receipt.name, receipt.instance, receipt.state) == ("mail", "one", "fresh")
        assert receipt.feed_sequence == 2
        async with LogReader(log, subjects.LOG) as reader:
            stored = await reader.at_on_leader(last)
        assert stored is not None
        applied_at = receipt.applied_at(last, received.stored_at)
        assert applied_at is not None
        assert timedelta(milliseconds=-2) < applied_at - stored.stored_at < timedelta(seconds=5)
        assert receipt.applied_at(first, received.stored_at) is not None
    assert (await read_receipts(log)).received == []


async def test_a_subscriber_over_http_says_the_same(served: Served) -> None:
    """Protects an admin whose token services do not speak NATS."""
    async with HttpRevocationFeed(served.url, TOKENS["feed"], LIFETIME, subscriber="mail", instance="two"):
        [last] = await write(served.log, deleted("d"))
        receipt = (await receipt_with(served.log, last)).receipt
        assert (receipt.name, receipt.instance, receipt.feed) == ("mail", "two", None)
    assert (await read_receipts(served.log)).received == []


async def test_a_receipt_over_http_is_of_who_it_says_and_well_formed(served: Served) -> None:
    """Protects the list of subscribers from what is none."""
    path = "/revocations/v1/subscribers/mail/one"
    good = Receipt(name="mail", instance="one", state="fresh", log_sequence=1)
    assert (await served.http.put(path, content=receipts.encode(good))).status_code == 204
    for bad in (
        b"",
        b"[]",
        b'{"name": "mail"}',
        receipts.encode(msgspec.structs.replace(good, name="other")),
        receipts.encode(msgspec.structs.replace(good, feed="00000000")),
        b'{"name":"a b","instance":"one","state":"fresh"}',
        b'{"name":"mail","instance":"one","state":"fine"}',
        b'{"name":"mail","instance":"one","state":"fresh","log_sequence":-1}',
        b'{"name":"mail","instance":"one","state":"fresh","recent":[[9223372036854775807,9007199254740992]]}',
    ):
        answer = await served.http.put(path, content=bad)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter"), bad
    assert (await served.http.delete("/revocations/v1/subscribers/a%20b/one")).status_code == 400
    assert (await served.http.delete(path)).status_code == 204
    headers = {"Authorization": f"Bearer {TOKENS['admin']}"}
    assert (await served.http.put(path, content=receipts.encode(good), headers=headers)).status_code == 403


async def test_nobody_speaks_for_another(served: Served) -> None:
    """Protects an admin: a service that is gone is missed, even where another, with its own token, says goodbye."""
    path = "/revocations/v1/subscribers/mail/one"
    mine = receipts.encode(Receipt(name="mail", instance="one", state="fresh", log_sequence=1))
    assert (await served.http.put(path, content=mine)).status_code == 204
    other = {"Authorization": f"Bearer {OTHER_FEED}"}
    forged = receipts.encode(Receipt(name="mail", instance="one", state="fresh", by="the-feed", log_sequence=2**62))
    for answer in (
        await served.http.delete(path, headers=other),
        await served.http.put(path, content=forged, headers=other),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "not_permitted")
    [left] = (await read_receipts(served.log)).received
    assert (left.receipt.by, left.receipt.log_sequence) == ("the-feed", 1)
    # Nor for one that reports over NATS.
    await put_receipt(served.log, Receipt(name="mail", instance="nats", state="fresh"))
    assert (await served.http.delete("/revocations/v1/subscribers/mail/nats")).status_code == 403
    assert (await served.http.delete("/revocations/v1/subscribers/mail/nobody")).status_code == 204


async def test_a_caller_has_so_many_subscribers_and_no_more(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the list from one service that hands in receipts under a name of its own each time."""
    monkeypatch.setattr(api, "MAX_RECEIPTS_OF_A_CALLER", 2)
    monkeypatch.setattr(projected_feed, "RECEIPTS_SECONDS", -1.0)

    async def put(name: str, **headers: str) -> int:
        body = receipts.encode(Receipt(name=name, instance="one", state="fresh"))
        path = f"/revocations/v1/subscribers/{name}/one"
        return (await served.http.put(path, content=body, headers=headers)).status_code

    assert [await put(name) for name in ("a", "b", "c", "a")] == [204, 204, 403, 204]
    assert await put("c", Authorization=f"Bearer {OTHER_FEED}") == 204
    # Nor does it get in more at once than one after another.
    monkeypatch.setattr(projected_feed, "RECEIPTS_SECONDS", SECONDS)
    monkeypatch.setattr(api, "MAX_RECEIPTS_OF_A_CALLER", 4)
    assert sorted(await asyncio.gather(*(put(name) for name in "defgh"))) == [204, 204, 403, 403, 403]


async def test_an_empty_list_is_read_at_once(log: Client) -> None:
    """Protects the status page of whoever has no subscriber yet from waiting for one."""
    async with asyncio.timeout(1.0):
        assert (await read_receipts(log)).received == []
    await put_receipt(log, Receipt(name="mail", instance="one", state="fresh"))
    await take_receipt_away(log, "mail", "one")
    async with asyncio.timeout(1.0):
        assert (await read_receipts(log)).received == []


async def test_a_subscriber_that_dies_stays_on_the_list(log: Client, nats_url: str) -> None:
    """Protects an admin from a list that looks complete because somebody is missing."""
    feed = RevocationFeed(nats_url, LIFETIME, subscriber="mail", instance="one")
    await feed.__aenter__()
    [last] = await write(log, deleted("d"))
    await receipt_with(log, last)
    connection = feed._connected()
    await connection.close()  # as the network, or a crash, would
    await feed.__aexit__(None, None, None)
    [left] = (await read_receipts(log)).received
    assert left.receipt.instance == "one"
    await take_receipt_away(log, "mail", "one")
    assert (await read_receipts(log)).received == []


async def test_who_may_not_write_receipts_is_denied_nothing(nats_url: str, log: Client) -> None:
    """Protects a token service whose NATS user has fewer rights: it denies and allows as before."""

    class Hearing(Observer):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def receipt_failed(self, trouble: str) -> None:
            self.heard.append(trouble)

    await log.jetstream().delete_stream(subjects.bucket_stream(subjects.SUBSCRIBERS))
    observer = Hearing()
    async with RevocationFeed(nats_url, LIFETIME, subscriber="mail", observer=observer) as feed:
        async with asyncio.timeout(SECONDS):
            while not observer.heard:
                await asyncio.sleep(0.01)
        assert feed.state == "fresh"


TOO_OLD = b'{"name":"old","instance":"one","state":"fresh","recent":[[9223372036854775807,9007199254740992]]}'


async def test_what_cannot_be_read_in_the_bucket_hides_nobody(log: Client) -> None:
    """Protects an admin from a list without the service of a newer version, or whose receipt somebody overwrote."""
    manager = log.jetstream()
    mine = receipts.encode(Receipt(name="mail", instance="one", state="fresh", feed="00000000", feed_sequence=9))
    hashed = receipts.key("mail.example", "one")
    for key, value in (
        ("a.b", b"\xff{"),
        ("old.one", TOO_OLD),
        ("mail.two", mine),  # of another than it says
        ("mail.one", mine),
        (hashed, b'{"name":"mail.example","instance":"one","state":"resting"}'),
        ("a", mine),
        ("a.b.c", mine),
        ("=short.b", mine),
    ):
        await manager.publish(subjects.bucket_key(subjects.SUBSCRIBERS, key), value)
    told = {(each.receipt.name, each.receipt.instance): each.receipt for each in (await read_receipts(log)).received}
    assert told.pop(("mail", "one")).feed_sequence == 9
    name = hashed.partition(".")[0]
    assert set(told) == {("a", "b"), ("old", "one"), ("mail", "two"), (name, "one")}
    assert {(each.state, each.feed, each.log_sequence, each.by) for each in told.values()} == {("stale", None, 0, None)}
    await take_receipt_away(log, name, "one")  # by the name that it is shown with
    assert len((await read_receipts(log)).received) == 4


async def test_subscribers_that_report_while_they_are_read_are_on_the_list_once(
    log: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects an admin's counts, and the answer itself: with many subscribers, there is always one more receipt."""
    everyone = [Receipt(name="mail", instance=str(number), state="fresh") for number in range(5)]
    for each in everyone:
        await put_receipt(log, each)

    class Disturbed(Follower):
        pages = 0

        async def next(self, wait_seconds: float) -> list[Raw]:
            messages = await super().next(wait_seconds)
            self.pages += 1
            if self.pages == 1:
                self._broken = "the server lost the consumer"
            else:
                for each in everyone[: len(messages)]:
                    await put_receipt(log, each)
            return messages

    def follow(reader: LogReader, after: int, filters: Sequence[str], *, last_per_subject: bool) -> Follower:
        return Disturbed(log, reader.stream, after, tuple(filters), None, last_per_subject, 1)

    monkeypatch.setattr(LogReader, "follow", follow)
    monkeypatch.setattr(subscription, "MAX_SUBSCRIBERS", 5)
    async with asyncio.timeout(SECONDS):
        read = await read_receipts(log)
    assert [each.receipt for each in read.received] == everyone
    assert not read.truncated


@pytest.mark.parametrize("name", [".", "..", "", "a b", "x" * 65, "a/b", "a\n", "é"])
def test_a_name_that_is_no_name_is_refused(name: str) -> None:
    """Protects keys, paths and pages from names that mean something else there."""
    with pytest.raises(ValueError, match="no name"):
        RevocationFeed("nats://127.0.0.1:1", LIFETIME, subscriber=name)


def test_times_are_told_for_what_was_applied_lately_alone() -> None:
    """Protects an admin from a time that is a guess."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    receipt = Receipt(name="a", instance="b", state="fresh", recent=((30, 10), (20, 500), (10, 1_000)), recent_after=7)
    assert receipt.applied_at(30, at) == at - timedelta(milliseconds=10)
    assert receipt.applied_at(25, at) == at - timedelta(milliseconds=10)
    assert receipt.applied_at(20, at) == at - timedelta(milliseconds=500)
    assert receipt.applied_at(10, at) == at - timedelta(seconds=1)
    assert receipt.applied_at(8, at) == at - timedelta(seconds=1)
    assert receipt.applied_at(7, at) is None
    assert receipt.applied_at(31, at) is None


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), max_size=100))
@settings(max_examples=200, deadline=None)
def test_applications_are_bounded_and_never_told_too_early(steps: list[tuple[int, float]]) -> None:
    """Protects an admin from a delivery that looks quicker than it was, and the receipt from growing."""
    applications = Applications()
    now, sequence = 100.0, 0
    applied: dict[int, float] = {}
    for more, later in steps:
        sequence, now = sequence + more, now + later
        applied[sequence] = now
        applications.add(sequence, now)
    told = applications.told_in(Receipt(name="a", instance="b", state="fresh", log_sequence=sequence), now)
    assert len(told.recent) <= receipts.MAX_RECENT
    encoded = receipts.encode(told)
    receipt = receipts.decode(encoded)
    assert receipt is not None
    assert len(encoded) < receipts.MAX_BYTES
    at = datetime(2026, 1, 1, tzinfo=UTC)
    for place, when in applied.items():
        told_at = receipt.applied_at(place, at)
        if told_at is not None:
            ago = (at - told_at).total_seconds()
            assert now - when - 0.0215 <= ago + 0.0015
            assert ago <= now - when + 0.0015
