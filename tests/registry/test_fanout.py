"""The fan-out, on a real nats-server: every grant that stood gets its event, once, whoever stops in between."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from nats.aio.client import Client
from nats.js.api import StreamSource

from grantbook import subjects, wire
from grantbook.events import CLIENT_DELETED, GrantExtended, GrantIssued, GrantRevoked, UserGrantsRevoked
from grantbook.sdk.log import LogReader
from grantbook.sdk.tasks import end
from registry import clients, fanout, grants, lease, store
from registry.buckets import Bucket
from registry.fanout import Checkpoint, Fanout, UnderWay
from registry.pace import BESIDE_OTHERS_MESSAGES
from registry.store import Log
from tests.registry.conftest import new_id
from tests.registry.given import ADMIN, BY_ADMIN, ISSUED, REGISTERED
from tests.registry.test_store import everything

DEADLINE_SECONDS = 20.0
LATER = datetime.now(UTC) + timedelta(days=30)


def now() -> datetime:
    return datetime.now(UTC)


@asynccontextmanager
async def fanning_out(
    nats: Client, log: Log, holder: str, pace_per_second: int = 100_000, feed: str = subjects.REVOCATIONS
) -> AsyncIterator[Fanout]:
    async with Bucket(nats, subjects.FANOUT, new_id=new_id) as bucket, LogReader(nats, feed) as feed_:
        it = Fanout(log, feed_, bucket, holder=holder, now=now, pace_per_second=pace_per_second)
        task = asyncio.create_task(it.run())
        try:
            yield it
        finally:
            await end(task)


async def until(condition: Callable[[list[wire.Recorded]], bool], reader: LogReader) -> list[wire.Recorded]:
    """Follow the log until the condition holds. All that the log has then."""
    recorded: list[wire.Recorded] = []
    async with asyncio.timeout(DEADLINE_SECONDS), reader.follow(0) as follower:
        while not condition(recorded):
            recorded += [each.recorded() for each in await follower.next(DEADLINE_SECONDS)]
    return await everything(reader)


def revocations(recorded: list[wire.Recorded]) -> list[GrantRevoked]:
    return [each.event for each in recorded if isinstance(each.event, GrantRevoked)]


async def given_grants(log: Log, client: str, number: int, *, expires_at: datetime = LATER) -> None:
    await log.record_new(msgspec.structs.replace(REGISTERED, client_id=client))
    proposed = [
        msgspec.structs.replace(ISSUED, client_id=client, grant_id=f"{client}-g{each}", at=now(), expires_at=expires_at)
        for each in range(number)
    ]
    assert None not in await log.record_all(proposed)


async def delete(log: Log, client: str) -> None:
    await log.transact(store.client(client), lambda state: clients.delete(state, BY_ADMIN))


async def test_every_grant_that_stood_gets_one_event(nats: Client, log: Log, reader: LogReader) -> None:
    """Auditors: a deleted client's grants are ended by name, caused by the deletion; others are untouched."""
    await given_grants(log, "c1", 1_200)
    await given_grants(log, "c2", 3)
    await log.transact(store.holding("c1", "c1-g7"), lambda state: grants.revoke(state, BY_ADMIN))
    async with fanning_out(nats, log, "a"):
        await delete(log, "c1")
        recorded = await until(lambda all_: len(revocations(all_)) >= 1_200, reader)
    ended = revocations(recorded)
    assert sorted(each.grant_id for each in ended) == sorted(f"c1-g{each}" for each in range(1_200))
    deletion = next(each for each in recorded if each.type == "client.deleted")
    assert {each.caused_by for each in ended if each.reason == CLIENT_DELETED} == {deletion.id}
    assert [each.grant_id for each in ended if each.reason != CLIENT_DELETED] == ["c1-g7"]


async def test_a_grant_that_had_expired_gets_none(nats: Client, log: Log, reader: LogReader) -> None:
    """Auditors: what ended by itself is not said to have been revoked."""
    await given_grants(log, "c1", 1, expires_at=now() - timedelta(days=1))
    await given_grants(log, "c2", 1)
    async with fanning_out(nats, log, "a"):
        await delete(log, "c1")
        await delete(log, "c2")
        recorded = await until(lambda all_: len(revocations(all_)) == 1, reader)
    assert [each.client_id for each in revocations(recorded)] == ["c2"]


async def test_a_grant_that_its_users_cut_off_had_ended_gets_none(nats: Client, log: Log, reader: LogReader) -> None:
    """Auditors: the log says of each grant what ended it, and not what came later."""
    await given_grants(log, "c1", 2)
    await log.record_new(UserGrantsRevoked(user_key="ada", user_id="ada", at=now(), by=ADMIN))
    later = msgspec.structs.replace(ISSUED, client_id="c1", grant_id="later", at=now(), expires_at=LATER)
    await log.record_all([later])
    async with fanning_out(nats, log, "a"):
        await delete(log, "c1")
        recorded = await until(lambda all_: len(revocations(all_)) == 1, reader)
    assert [each.grant_id for each in revocations(recorded)] == ["later"]


async def test_a_fan_out_that_was_cut_off_is_finished_by_another(nats: Client, log: Log, reader: LogReader) -> None:
    """Auditors: a registry that dies in the middle loses nothing, and nothing is said twice."""
    await given_grants(log, "c1", 3_000)
    await delete(log, "c1")
    async with fanning_out(nats, log, "a", pace_per_second=1_000):
        await until(lambda all_: len(revocations(all_)) > 500, reader)
    assert len(revocations(await everything(reader))) < 3_000
    async with fanning_out(nats, log, "b"):
        recorded = await until(lambda all_: len(revocations(all_)) >= 3_000, reader)
    assert len({each.grant_id for each in revocations(recorded)}) == len(revocations(recorded)) == 3_000


async def test_the_next_batch_waits_for_the_feed_to_have_the_one_before(
    nats: Client, log: Log, reader: LogReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everyone else's token services: a feed that is far behind the log proves nothing, and soon all is denied."""
    monkeypatch.setattr(fanout, "FEED_SECONDS", DEADLINE_SECONDS)
    manager = nats.jetstream()
    slow = await manager.add_stream(name="SLOW", subjects=["slow"])
    await given_grants(log, "c1", 3 * BESIDE_OTHERS_MESSAGES)
    await delete(log, "c1")
    batches: list[int] = []
    async with fanning_out(nats, log, "a", feed="SLOW") as it:
        while sum(batches) < 3 * BESIDE_OTHERS_MESSAGES:
            there = await everything(reader)
            for each in there[-2:]:  # without the last it is not all of it
                assert len(revocations(await everything(reader))) == sum(batches)
                from_there = StreamSource(subjects.LOG, opt_start_seq=each.position, filter_subject=each.subject)
                await manager.update_stream(slow.config.evolve(subjects=[], sources=[from_there]))
                await asyncio.sleep(5 * fanout.LOOK_SECONDS)  # enough to be seen, if it is not the last
            there = await until(lambda all_: len(revocations(all_)) > sum(batches), reader)
            batches.append(len(revocations(there)) - sum(batches))
            assert it.trouble is None
    assert len(batches) > 1


async def test_a_feed_that_moves_is_waited_for_however_slow_it_is(
    nats: Client, log: Log, reader: LogReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same services: a feed that is slow for a while is not flooded for that."""
    monkeypatch.setattr(fanout, "FEED_SECONDS", 2.0)
    manager = nats.jetstream()
    slow = await manager.add_stream(name="SLOW", subjects=["slow"])
    await given_grants(log, "c1", 6)
    await delete(log, "c1")
    there = await everything(reader)
    async with fanning_out(nats, log, "a", feed="SLOW"):
        for each in there:  # which takes longer than one that does not move is waited for
            assert len(await everything(reader)) == len(there)
            from_there = StreamSource(subjects.LOG, opt_start_seq=each.position, filter_subject=each.subject)
            await manager.update_stream(slow.config.evolve(subjects=[], sources=[from_there]))
            await asyncio.sleep(fanout.FEED_SECONDS / 5)
        await until(lambda all_: len(revocations(all_)) == 6, reader)


async def test_where_the_feed_stands_still_the_fan_out_goes_on(
    nats: Client, log: Log, reader: LogReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Auditors: the log has what ended, whatever becomes of the feed, which is made from it. No stream is none, too."""
    monkeypatch.setattr(fanout, "FEED_SECONDS", 0.1)
    await nats.jetstream().add_stream(name="STILL", subjects=["still"])
    for client, feed in (("c1", "STILL"), ("c2", "NOWHERE")):
        await given_grants(log, client, 2 * BESIDE_OTHERS_MESSAGES)
        await delete(log, client)
        async with fanning_out(nats, log, "a", feed=feed) as it:
            ended = await until(
                lambda all_: sum(each.client_id == client for each in revocations(all_)) >= 2 * BESIDE_OTHERS_MESSAGES,  # noqa: B023
                reader,
            )
            assert it.trouble is None
            await it.release()
    assert len({each.grant_id for each in revocations(ended)}) == 4 * BESIDE_OTHERS_MESSAGES


async def test_what_somebody_else_has_ended_meanwhile_is_done(nats: Client, log: Log, reader: LogReader) -> None:
    """Auditors: the fan-out goes on, whoever was faster, be it a try of its own of which nobody knew."""
    await given_grants(log, "c1", 3)
    ends = [
        GrantRevoked(client_id="c1", grant_id=f"c1-g{each}", user_id=ISSUED.user_id, reason="test", at=now(), by=ADMIN)
        for each in range(3)
    ]
    stored = await log.record_all(ends)
    async with fanning_out(nats, log, "a") as it:
        assert await it._end_each(ends) == stored[-1]


async def saved(nats: Client) -> Checkpoint | None:
    async with Bucket(nats, subjects.FANOUT, new_id=new_id) as bucket:
        entry = await bucket.get("checkpoint")
    return None if entry is None or entry.value is None else msgspec.json.decode(entry.value, type=Checkpoint)


async def save(nats: Client, checkpoint: Checkpoint) -> None:
    async with Bucket(nats, subjects.FANOUT, new_id=new_id) as bucket:
        assert await bucket.put("checkpoint", msgspec.json.encode(checkpoint), revision=0) is not None


async def issued(reader: LogReader) -> list[str]:
    return [each.event.grant_id for each in await everything(reader) if isinstance(each.event, GrantIssued)]


async def half_done(reader: LogReader, client: str, grant_id: str) -> Checkpoint:
    """A checkpoint that says that the client's deletion is under way, and done up to where this grant was issued."""
    recorded = await everything(reader)
    deletion = next(each for each in recorded if each.type == "client.deleted")
    record = next(each for each in recorded if each.subject == subjects.grant_record(client, grant_id))
    identity = (await reader.state()).identity
    return Checkpoint(identity, 0, under_way=UnderWay(deletion.position, deletion.id, record.position))


async def test_a_fan_out_says_how_far_it_got_inside_a_deletion(nats: Client, log: Log, reader: LogReader) -> None:
    """Operators: a registry that is restarted in the middle of a million grants leaves a second of work to do again."""
    await given_grants(log, "c1", 3_000)
    await delete(log, "c1")
    async with fanning_out(nats, log, "a", pace_per_second=1_000), asyncio.timeout(DEADLINE_SECONDS):
        while (found := await saved(nats)) is None or found.under_way is None:
            await asyncio.sleep(0.05)
    recorded = await everything(reader)
    records = {each.subject: each for each in recorded if each.type == "grant.issued"}
    ended = {wire.subject_of(each) for each in revocations(recorded)}
    done = [each for each in records.values() if each.position <= found.under_way.reached]
    assert done
    assert all(each.subject.removesuffix("record") + "gate" in ended for each in done)


async def test_what_was_done_of_a_deletion_is_not_looked_at_again(nats: Client, log: Log, reader: LogReader) -> None:
    """Operators: who takes over goes on from where the other was."""
    await given_grants(log, "c1", 100)
    await delete(log, "c1")
    all_of_them = await issued(reader)
    await save(nats, await half_done(reader, "c1", all_of_them[59]))
    async with fanning_out(nats, log, "b"):
        recorded = await until(lambda all_: len(revocations(all_)) >= 40, reader)
    assert [each.grant_id for each in revocations(recorded)] == all_of_them[60:]


async def test_a_log_that_was_restored_is_fanned_out_from_its_start(nats: Client, log: Log, reader: LogReader) -> None:
    """Auditors: ends that a restore took away are written again, though the checkpoint counts them."""
    await given_grants(log, "c1", 100)
    await delete(log, "c1")
    all_of_them = await issued(reader)
    found = await half_done(reader, "c1", all_of_them[59])
    await save(nats, msgspec.structs.replace(found, newest=150, newest_id="of an end that is not there any more"))
    async with fanning_out(nats, log, "b"):
        recorded = await until(lambda all_: len(revocations(all_)) >= 100, reader)
    assert len({each.grant_id for each in revocations(recorded)}) == len(revocations(recorded)) == 100


async def test_a_grant_that_was_extended_gets_one_event(nats: Client, log: Log, reader: LogReader) -> None:
    """Auditors: a grant that would have lapsed as it was issued stood by its refreshes, and is ended once."""
    await given_grants(log, "c1", 2, expires_at=now() - timedelta(days=1))
    for expires_at in (LATER, LATER + timedelta(days=30)):

        def refreshed(state: grants.Holding, expires_at: datetime = expires_at) -> GrantExtended | None:
            two_days_ago = now() - timedelta(days=2)
            return grants.extend(state, cut_off_position=0, expires_at=expires_at, at=two_days_ago, by=ADMIN)

        assert (await log.transact(store.holding("c1", "c1-g0"), refreshed)).event is not None
    async with fanning_out(nats, log, "a"):
        await delete(log, "c1")
        await given_grants(log, "c2", 1)
        await delete(log, "c2")
        recorded = await until(lambda all_: any(each.client_id == "c2" for each in revocations(all_)), reader)
    assert [each.grant_id for each in revocations(recorded)] == ["c1-g0", "c2-g0"]


@pytest.mark.parametrize("number", [5, 50])
async def test_ends_recorded_together_are_never_recorded_twice(log: Log, reader: LogReader, number: int) -> None:
    """Auditors: somebody who ends a grant just as the fan-out does is the one whom the log names."""
    await given_grants(log, "c1", number)
    ends = [
        GrantRevoked(client_id="c1", grant_id=f"c1-g{each}", user_id="ada", reason="user", at=now(), by=ADMIN)
        for each in range(number)
    ]
    await log.record_new(ends[2])
    assert await log.record_together(ends) is None
    stored = await log.record_all(ends)
    assert stored[2] is None
    recorded = revocations(await everything(reader))
    assert len({each.grant_id for each in recorded}) == len(recorded) == number
    assert await log.record_together(ends) is None


async def test_one_registry_at_a_time_does_it(nats: Client, log: Log, reader: LogReader) -> None:
    """Operators: two registries that both run do not do the work twice."""
    await given_grants(log, "c1", 50)
    async with fanning_out(nats, log, "a") as first:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not first.holding:
                await asyncio.sleep(0.01)
        async with fanning_out(nats, log, "b") as second:
            await delete(log, "c1")
            recorded = await until(lambda all_: len(revocations(all_)) == 50, reader)
            assert first.holding
            assert not second.holding
    assert len(revocations(recorded)) == 50


async def test_a_grant_that_it_cannot_read_is_waited_for_and_not_skipped(
    nats: Client, log: Log, reader: LogReader
) -> None:
    """Auditors: an old registry leaves a deletion unfinished, and says so, where a newer one wrote."""
    await given_grants(log, "c1", 3)
    headers = {"ce-type": "grant.delegated", "ce-id": "x", "ce-specversion": "1.0", "ce-source": "x"}
    await nats.request(subjects.grant_record("c1", "g-new"), b"{}", headers=headers, timeout=DEADLINE_SECONDS)
    async with fanning_out(nats, log, "a") as it:
        await delete(log, "c1")
        async with asyncio.timeout(DEADLINE_SECONDS):
            while it.trouble is None:
                await asyncio.sleep(0.01)
        assert "grant.delegated" in it.trouble
    async with Bucket(nats, subjects.FANOUT, new_id=new_id) as bucket:
        assert await bucket.get("checkpoint") is None


def test_the_lease_outlives_its_renewal() -> None:
    """Operators: a lease that ends before it is renewed would go to and fro."""
    assert lease.RENEW_SECONDS * 2 < lease.LEASE_SECONDS
