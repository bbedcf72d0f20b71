"""Writing the log, on a real nats-server: what was acknowledged is there, once; what was refused is not."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from nats.aio.client import Client

from deploy.dev.servers import nats_server
from grantbook import subjects, wire
from grantbook.events import ClientDeleted, Event, GrantIssued
from grantbook.sdk import connection
from grantbook.sdk.log import LogReader, assert_dense
from registry import clients, grants, store, streams
from registry.clients import ClientGone, ClientNotFound, Refusal
from registry.commit import MIN_BATCH_MESSAGES, Busy, Expected, GroupCommit, Message, Stale
from registry.grants import GrantConflict, Holding
from registry.store import Log, LogFull
from tests.registry.conftest import new_id
from tests.registry.given import BY_ADMIN, PROPOSED, REGISTERED

PROBE_SECONDS = 5.0


async def everything(reader: LogReader) -> list[wire.Recorded]:
    head = (await reader.state()).last
    recorded: list[wire.Recorded] = []
    async with reader.follow(0) as follower:
        while len(recorded) < head:
            messages = await follower.next(PROBE_SECONDS)
            assert messages, "the log ends before its head"
            assert_dense(messages, len(recorded))
            recorded += [each.recorded() for each in messages]
    return recorded


def registered(client_id: str) -> Event:
    return msgspec.structs.replace(REGISTERED, client_id=client_id)


async def test_what_was_acknowledged_stands_in_the_log_once(log: Log, reader: LogReader) -> None:
    """Agents: a 201 is a client, and a thousand at once are a thousand."""
    positions = await asyncio.gather(*(log.record_new(registered(f"c{number}")) for number in range(1_000)))
    recorded = await everything(reader)
    by_position = {each.position: each for each in recorded}
    assert len(recorded) == len(set(positions)) == 1_000
    for number, position in enumerate(positions):
        assert by_position[position].event == registered(f"c{number}")


async def test_concurrent_appends_share_batches_and_one_stale_command_fails_alone(nats: Client) -> None:
    """Agents: somebody else's mistake in the same batch is not theirs."""
    async with GroupCommit(nats, subjects.LOG) as commit:

        def message(client: str, sequence: int) -> Message:
            subject = subjects.client_record(client)
            return Message(subject, {}, b"{}", f"id {client} {sequence}", Expected(subject, sequence))

        first = [commit.submit(message(f"c{number}", 0)) for number in range(20)]
        stale = commit.submit(message("d", 17))
        last = [commit.submit(message(f"e{number}", 0)) for number in range(20)]
        stored = await asyncio.gather(*first, *last)
        assert len({each.sequence for each in stored}) == 40
        with pytest.raises(Stale):
            await stale


async def test_a_batch_that_cannot_be_put_together_is_sent_one_by_one(tmp_path: Path) -> None:
    """Agents, where the folder in which nats-server puts batches together is gone, or full: theirs is still taken."""
    with nats_server(tmp_path / "nats") as server:
        client = await connection.connect(server.url, name="test")
        await streams.ensure(client)
        folder = next(server.data.glob("jetstream/**/streams/GRANTBOOK"))
        (folder / "batches").symlink_to(tmp_path / "gone")
        async with GroupCommit(client, subjects.LOG) as commit:
            waiting = [
                commit.submit(Message(subjects.client_record(f"c{number}"), {}, b"{}", f"id {number}", None))
                for number in range(2 * MIN_BATCH_MESSAGES)
            ]
            stored = await asyncio.gather(*waiting)
        assert {each.sequence for each in stored} == set(range(1, 2 * MIN_BATCH_MESSAGES + 1))
        await client.close()


async def test_an_append_that_expects_a_gate_waits_for_a_write_to_it(log: Log, reader: LogReader) -> None:
    """Users: in one registry too, a grant decided before the deletion is refused after it."""
    await log.record_new(REGISTERED)
    aggregate = store.holding("c1", "g1")
    deleting = asyncio.create_task(log.transact(store.client("c1"), lambda state: clients.delete(state, BY_ADMIN)))
    issuing = [
        asyncio.create_task(
            log.transact(
                store.holding("c1", f"g{number}"),
                lambda state, grant_id=f"g{number}": grants.issue(  # type: ignore[misc]
                    state, msgspec.structs.replace(PROPOSED, grant_id=grant_id)
                ),
            )
        )
        for number in range(50)
    ]
    deleted = await deleting
    outcomes = await asyncio.gather(*issuing, return_exceptions=True)
    recorded = await everything(reader)
    issued = {each.position for each in recorded if isinstance(each.event, GrantIssued)}
    assert all(position < deleted.position for position in issued)
    said = {each.position for each in outcomes if not isinstance(each, BaseException)}
    assert said == issued
    assert all(isinstance(each, ClientGone) for each in outcomes if isinstance(each, BaseException))
    state, _ = await log.load(aggregate, never_stale=True)
    assert state.client is not None
    assert state.client.status == "deleted"


async def test_a_command_again_changes_nothing_and_says_where_it_stands(log: Log, reader: LogReader) -> None:
    """Admins: the second click answers as the first did."""
    await log.record_new(REGISTERED)
    first = await log.transact(store.client("c1"), lambda state: clients.delete(state, BY_ADMIN))
    second = await log.transact(store.client("c1"), lambda state: clients.delete(state, BY_ADMIN))
    assert second.event is None
    assert second.position == first.position
    assert len(await everything(reader)) == 2


async def test_a_refusal_leaves_no_trace(log: Log, reader: LogReader) -> None:
    """Everyone: what was refused is not in the log."""
    with pytest.raises(ClientNotFound):
        await log.transact(store.client("nobody"), lambda state: clients.delete(state, BY_ADMIN))
    assert (await reader.state()).last == 0


async def test_two_registries_cannot_issue_one_grant_id_twice(log: Log, other_log: Log, reader: LogReader) -> None:
    """Users: the same id with other content is a conflict, whichever instance is asked, at whatever moment."""
    await log.record_new(REGISTERED)
    outcomes: list[object] = []
    for number in range(30):
        proposals = [msgspec.structs.replace(PROPOSED, grant_id=f"g{number}", user_id=user) for user in ("ada", "bob")]

        def issue(proposal: grants.Proposal) -> store.Aggregate[Holding]:
            return store.holding("c1", proposal.grant_id)

        outcomes += await asyncio.gather(
            *(
                each.transact(issue(proposal), lambda state, proposal=proposal: grants.issue(state, proposal))  # type: ignore[misc]
                for each, proposal in zip((log, other_log), proposals, strict=True)
            ),
            return_exceptions=True,
        )
    conflicts = [each for each in outcomes if isinstance(each, GrantConflict)]
    assert len(conflicts) == 30
    issued = [each.event.grant_id for each in await everything(reader) if isinstance(each.event, GrantIssued)]
    assert sorted(issued) == sorted(f"g{number}" for number in range(30))


async def test_two_registries_suspending_and_deleting_at_once_agree(
    log: Log, other_log: Log, reader: LogReader
) -> None:
    """Admins: whatever the order, deletion wins and is said once by each who asked."""
    for number in range(20):
        await log.record_new(registered(f"c{number}"))
        outcomes = await asyncio.gather(
            log.transact(store.client(f"c{number}"), lambda state: clients.delete(state, BY_ADMIN)),
            other_log.transact(store.client(f"c{number}"), lambda state: clients.suspend(state, BY_ADMIN)),
            other_log.transact(store.client(f"c{number}"), lambda state: clients.delete(state, BY_ADMIN)),
            return_exceptions=True,
        )
        assert not isinstance(outcomes[0], BaseException)
        assert not isinstance(outcomes[2], BaseException)
        assert isinstance(outcomes[1], Refusal) or not isinstance(outcomes[1], BaseException)
        state, _ = await log.load(store.client(f"c{number}"), never_stale=True)
        assert state is not None
        assert state.status == "deleted"
    deletions = [each for each in await everything(reader) if isinstance(each.event, ClientDeleted)]
    assert {each.event.client_id for each in deletions if isinstance(each.event, ClientDeleted)} == {
        f"c{number}" for number in range(20)
    }


class LostAnswers(GroupCommit):
    """A group commit whose connection loses the answer to its first append, after the server stored it."""

    lost = 0

    async def _request(self, message, headers, *, together=False):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        answer = await super()._request(message, headers, together=together)
        if not self.lost:
            self.lost += 1
            from registry.commit import OutcomeUnknown  # noqa: PLC0415

            raise OutcomeUnknown("the answer was lost")
        return answer


@pytest.mark.parametrize("together", [1, 10])
async def test_an_answer_that_was_lost_is_read_back(nats: Client, reader: LogReader, log: Log, together: int) -> None:
    """Agents: a lost answer neither loses the registration nor doubles it."""
    del log
    async with LostAnswers(nats, subjects.LOG) as commit:
        unlucky = Log(reader, commit, new_id=new_id, jitter=lambda: 0.5)
        positions = await asyncio.gather(*(unlucky.record_new(registered(f"c{number}")) for number in range(together)))
        assert commit.lost == 1
    assert sorted(positions) == [each.position for each in await everything(reader)]


async def test_a_full_log_still_takes_revocations(log: Log, reader: LogReader) -> None:
    """Users: a flood of registrations never blocks a deletion."""
    await log.record_new(REGISTERED)
    log.only_gates = True
    with pytest.raises(LogFull):
        await log.record_new(registered("c2"))
    await log.transact(store.client("c1"), lambda state: clients.delete(state, BY_ADMIN))
    assert [each.type for each in await everything(reader)] == ["client.registered", "client.deleted"]


async def test_too_much_waiting_is_refused_at_once(nats: Client) -> None:
    """Operators: memory does not grow with what cannot be kept up with."""
    commit = GroupCommit(nats, subjects.LOG)  # not started: nothing is ever taken from it
    from registry import commit as module  # noqa: PLC0415

    for number in range(module.MAX_WAITING_MESSAGES):
        commit.submit(Message("grantbook.client.c.record", {}, b"{}", str(number), None))
    with pytest.raises(Busy):
        commit.submit(Message("grantbook.client.c.record", {}, b"{}", "one more", None))


async def test_an_event_of_the_future_on_a_gate_is_not_guessed_about(nats: Client, log: Log) -> None:
    """Users: an old registry does not issue grants past a gate that it cannot read."""
    await log.record_new(REGISTERED)
    headers = {"ce-type": "client.quarantined", "ce-id": "x", "ce-specversion": "1.0", "ce-source": "x"}
    await nats.request(subjects.client_gate("c1"), b"{}", headers=headers, timeout=PROBE_SECONDS)
    with pytest.raises(store.WrittenByNewer):
        await log.transact(store.holding("c1", "g1"), lambda state: grants.issue(state, PROPOSED))
