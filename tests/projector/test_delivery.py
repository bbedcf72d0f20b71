"""Delivery: which token services have applied a revocation, as they say themselves."""

import asyncio
import math
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from nats.aio.client import Client

from grantbook import receipts, subjects
from grantbook.receipts import Receipt
from grantbook.sdk import revocations, subscription
from grantbook.sdk.log import LogReader, Unavailable
from grantbook.sdk.revocations import RevocationFeed
from grantbook.sdk.subscription import AllReceived, put_receipt
from projector import feed as projected_feed
from projector.db import Connection
from tests.projector.conftest import Api
from tests.projector.given import position
from tests.sdk.given import deleted, registered, revoked, sourced, suspended, write

LIFETIME = timedelta(hours=1)
SECONDS = 20.0


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Feeds of tests are young and empty, and nobody has rebuilt them."""
    monkeypatch.setattr(revocations, "SETTLE_SECONDS", 0.0)


@pytest.fixture
async def feed(log: Client, nats_url: str) -> AsyncIterator[RevocationFeed]:
    async with RevocationFeed(nats_url, LIFETIME, subscriber="mail", instance="one") as opened:
        yield opened


async def delivery(api: Api, log: Client, sequence: int, answers: int = 200) -> Any:
    at = await position(log, subjects.LOG, sequence)
    return await api.get(f"/admin/v1/revocations/{at}/delivery", answers=answers)


async def complete(api: Api, log: Client, sequence: int) -> Any:
    async with asyncio.timeout(SECONDS):
        while not (told := await delivery(api, log, sequence))["complete"]:
            await asyncio.sleep(0.02)
    return told


async def test_a_revocation_that_arrived_is_shown_so_with_its_time(log: Client, api: Api, feed: RevocationFeed) -> None:
    """Protects an admin who must be sure: the subscriber has it, and how long that took is said."""
    [first, last] = await write(log, registered("c"), deleted("c"))
    await sourced(log, 1)
    told = await complete(api, log, last)
    assert told["revocation"] == told["position"] == await position(log, subjects.LOG, last)
    assert (told["type"], told["delivered"], told["waiting"], told["gone"]) == ("client.deleted", 1, 0, 0)
    [subscriber] = told["subscribers"]
    assert (subscriber["name"], subscriber["instance"], subscriber["state"]) == ("mail", "one", "fresh")
    assert subscriber["delivered"] is True
    assert 0 <= subscriber["took_ms"] < 5_000
    assert told["slowest"] == subscriber
    assert "delivered_at" in subscriber
    # Nothing was revoked up to the registration.
    assert (await delivery(api, log, first, answers=404))["code"] == "revocation_not_found"


async def test_before_the_first_revocation_of_all_there_is_none(log: Client, api: Api) -> None:
    """Protects an admin of a new register, where "not found" would otherwise be "cannot be told right now"."""
    [only] = await write(log, registered("c"))
    assert (await delivery(api, log, only, answers=404))["code"] == "revocation_not_found"


async def test_a_position_that_revokes_nothing_is_about_what_was_revoked_before(
    log: Client, api: Api, feed: RevocationFeed
) -> None:
    """Protects an admin who has the position of some later command."""
    [gate, later] = await write(log, revoked("c", "g"), registered("d"))
    await sourced(log, 1)
    told = await complete(api, log, later)
    assert told["revocation"] == await position(log, subjects.LOG, gate)


async def test_who_is_behind_or_gone_is_not_shown_as_fine(
    log: Client, api: Api, feed: RevocationFeed, database: Connection, projected: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects an admin from a list on which only those are that answered."""
    [early, last] = await write(log, suspended("c"), deleted("c"))
    await sourced(log, 2)
    async with LogReader(log, subjects.REVOCATIONS) as reader:
        identity = (await reader.state()).identity
    async with LogReader(log, subjects.LOG) as reader:
        ours = (await reader.state()).identity
    await put_receipt(
        log, Receipt(name="slow", instance="one", state="stale", feed=identity, feed_sequence=1, log_sequence=early)
    )
    await put_receipt(log, Receipt(name="web", instance="one", state="fresh", log=ours, log_sequence=early))
    await put_receipt(
        log, Receipt(name="other", instance="one", state="fresh", feed="00000000", feed_sequence=9, log_sequence=9)
    )
    async with asyncio.timeout(SECONDS):
        while (told := await delivery(api, log, last))["delivered"] < 1:
            await asyncio.sleep(0.02)
    assert (told["complete"], told["delivered"], told["waiting"], told["gone"]) == (False, 1, 3, 0)
    assert [each["delivered"] for each in told["subscribers"]] == [False, False, False, True]
    [by_early] = [each for each in (await delivery(api, log, early))["subscribers"] if each["name"] == "web"]
    assert by_early["delivered"] is True
    assert "took_ms" not in by_early

    monkeypatch.setattr(receipts, "GONE_SECONDS", -1.0)  # as if they had been silent for so long
    told = await delivery(api, log, last)
    assert (told["complete"], told["waiting"], told["gone"]) == (False, 0, 3)
    monkeypatch.undo()

    status = {each["name"]: each for each in (await api.get("/admin/v1/status"))["subscribers"]}
    assert status["slow"]["state"] == "stale"
    assert status["slow"]["lag_events"] == status["web"]["lag_events"] == 1
    assert status["other"]["lag_events"] == 2
    assert status["mail"]["lag_events"] == 0
    monkeypatch.setattr(receipts, "GONE_SECONDS", -1.0)
    assert {each["state"] for each in (await api.get("/admin/v1/status"))["subscribers"]} == {"gone"}


@pytest.mark.parametrize("text", ["42", "log-00000000-1", "activity-{identity}-1", "log-{identity}-99", "x" * 500])
async def test_a_position_that_means_nothing_here_is_refused(log: Client, api: Api, text: str) -> None:
    """Protects an admin from an answer about another log."""
    identity = (await position(log, subjects.LOG, 0)).split("-")[1]
    path = f"/admin/v1/revocations/{text.format(identity=identity)}/delivery"
    assert (await api.get(path, answers=400))["code"] == "invalid_parameter"


async def test_delivery_is_found_among_many(log: Client, api: Api, feed: RevocationFeed) -> None:
    """Protects the answer for each of many revocations: not one too early or too late."""
    written = await write(log, *(each for n in range(30) for each in (registered(f"r{n}"), revoked("c", f"g{n}"))))
    await sourced(log, 30)
    await complete(api, log, written[-1])
    for place in written[1:]:
        told = await delivery(api, log, place)
        gate = place if place % 2 == 0 else place - 1
        assert told["revocation"] == await position(log, subjects.LOG, gate)
        assert told["complete"]


async def claimed(bucket: Client, name: str, **members: Any) -> None:
    await put_receipt(bucket, Receipt(name=name, instance="one", state="fresh", **members))


async def test_what_cannot_be_is_no_delivery(log: Client, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects an admin from receipts that claim too much, of another log, or of none."""
    monkeypatch.setattr(projected_feed, "RECEIPTS_SECONDS", -1.0)
    [last] = await write(log, deleted("c"))
    await sourced(log, 1)
    async with LogReader(log, subjects.LOG) as reader, LogReader(log, subjects.REVOCATIONS) as feed_reader:
        ours, feed = (await reader.state()).identity, (await feed_reader.state()).identity
    await claimed(log, "honest", log=ours, log_sequence=last)
    await claimed(log, "no-log", log_sequence=last)
    await claimed(log, "other-log", log="00000000", log_sequence=last)
    await claimed(log, "ahead", log=ours, log_sequence=2**63 - 1)
    await claimed(log, "feed-ahead", feed=feed, feed_sequence=2**63 - 1)
    # What an older version let in, and made a 500 of.
    key = subjects.bucket_key(subjects.SUBSCRIBERS, receipts.key("huge", "one"))
    huge = b'{"name":"huge","instance":"one","state":"fresh","recent":[[9223372036854775807,9007199254740992]]}'
    await log.jetstream().publish(key, huge)
    await claimed(log, "old", log=ours, log_sequence=last, recent=((last, receipts.MAX_AGE_MILLISECONDS),))
    told = await delivery(api, log, last)
    assert {each["name"] for each in told["subscribers"] if each["delivered"]} == {"honest", "old"}
    assert "huge" in {each["name"] for each in told["subscribers"]}
    assert told["complete"] is False
    status = {each["name"]: each["lag_events"] for each in (await api.get("/admin/v1/status"))["subscribers"]}
    assert {name for name, lag in status.items() if lag == 0} == {"honest", "old"}


async def test_a_list_that_was_cut_is_never_complete(log: Client, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects an admin whose list somebody filled up: who is not on it may be the one without it."""
    monkeypatch.setattr(subscription, "MAX_SUBSCRIBERS", 2)
    [last] = await write(log, deleted("c"))
    await sourced(log, 1)
    async with LogReader(log, subjects.LOG) as reader:
        ours = (await reader.state()).identity
    for name in "abc":
        await claimed(log, name, log=ours, log_sequence=last)
    told = await delivery(api, log, last)
    assert (told["complete"], told["truncated"], told["waiting"], len(told["subscribers"])) == (False, True, 0, 2)


async def test_the_list_is_read_once_for_all_who_ask(log: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the status page: neither many who ask nor a server that does not answer makes them wait in a row."""
    readings = 0

    async def read(_: Client) -> AllReceived:
        nonlocal readings
        readings += 1
        await asyncio.sleep(0.05)
        if readings == 2:
            raise Unavailable("the server does not answer")
        return AllReceived([], truncated=readings == 3)

    monkeypatch.setattr(projected_feed, "read_receipts", read)
    kept = projected_feed.Receipts(log)
    told = await asyncio.gather(*(kept.all() for _ in range(20)))
    assert (readings, {each.truncated for each in told}) == (1, {False})
    kept._read_at = -math.inf  # as if it were long ago
    failed = await asyncio.gather(*(kept.all() for _ in range(20)), return_exceptions=True)
    assert (readings, {type(each) for each in failed}) == (2, {Unavailable})
    kept._read_at = -math.inf
    assert (await kept.all()).truncated


def test_places_that_were_not_looked_up_are_told_as_less() -> None:
    """Protects an admin: of very many subscribers some may look further behind than they are, and none further on."""
    places = [(5, 2), (9, 4), (20, 7)]
    assert [projected_feed._known_of(places, each) for each in (0, 4, 5, 8, 9, 19, 20, 99)] == [0, 0, 2, 2, 4, 4, 7, 7]


async def test_only_admins_may_ask(log: Client, api: Api) -> None:
    """Protects the list of an operator's services."""
    at = await position(log, subjects.LOG, 0)
    for role in ("feed", "idp", "auditor"):
        await api.get(f"/admin/v1/revocations/{at}/delivery", answers=403, role=role)
