"""The ceiling on clients that were never used."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from nats.aio.client import Client

from grantbook import subjects
from grantbook.events import ClientDeleted, ClientResumed, ClientSuspended
from grantbook.sdk.log import LogReader
from grantbook.sdk.tasks import end
from registry import clients, grants, store
from registry.buckets import Bucket
from registry.clients import NEVER_USED
from registry.store import Log
from registry.unused import READ_MESSAGES, Unused
from tests.registry.conftest import new_id
from tests.registry.given import BY_ADMIN, CLAUDE, NOON, PROPOSED, REGISTERED

DEADLINE_SECONDS = 20


@asynccontextmanager
async def keeping(nats: Client, log: Log, ceiling: int) -> AsyncIterator[Unused]:
    async with Bucket(nats, subjects.FANOUT, new_id=new_id) as bucket:
        unused = Unused(log, bucket, holder=new_id(), now=lambda: datetime.now(UTC), ceiling=ceiling)
        task = asyncio.create_task(unused.run())
        try:
            yield unused
        finally:
            await end(task)
            await unused.release()


async def register(log: Log, name: str, source: str = "dcr") -> None:
    event = clients.register(None, client_id=name, source=source, metadata=CLAUDE, at=NOON, by=REGISTERED.by)
    assert event is not None
    await log.record_new(event)


async def grant(log: Log, name: str) -> None:
    await log.transact(store.holding(name, "g1"), lambda state: grants.issue(state, PROPOSED))


async def statuses(log: Log, *names: str) -> list[str]:
    found = [await log.load(store.client(name), never_stale=True) for name in names]
    return [state.status for state, _ in found if state is not None]


async def until(log: Log, names: list[str], wanted: list[str]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while await statuses(log, *names) != wanted:
            await asyncio.sleep(0.02)


async def test_above_the_ceiling_the_oldest_that_were_never_used_are_expired(
    nats: Client, log: Log, reader: LogReader
) -> None:
    """Operators: strangers who register for nothing cost a bounded amount; users keep what they let in."""
    names = [f"c{number}" for number in range(8)]
    for name in names:
        await register(log, name)
    await grant(log, "c0")
    await register(log, "by-hand", source="manual")
    await register(log, "document", source="cimd")
    await log.transact(store.client("c1"), lambda state: clients.suspend(state, BY_ADMIN))
    async with keeping(nats, log, ceiling=3):
        await until(log, names, ["active", "suspended", "deleted", "deleted", "deleted", "active", "active", "active"])
        assert await statuses(log, "by-hand", "document") == ["active", "active"]
        gate = subjects.client_gate("c2")
        last = (await reader.last_on_leader([gate]))[gate].recorded().event
        assert isinstance(last, ClientDeleted)
        assert (last.reason, last.by.kind) == (NEVER_USED, "system")
        await register(log, "c8")
        await until(log, ["c5", "c6", "c8"], ["deleted", "active", "active"])


async def test_below_the_ceiling_nothing_happens(nats: Client, log: Log, reader: LogReader) -> None:
    """Agents that register today and are let in tomorrow."""
    for number in range(3):
        await register(log, f"c{number}")
    async with keeping(nats, log, ceiling=3) as unused:
        await register(log, "used")
        await grant(log, "used")
        before = (await reader.state()).last
        async with asyncio.timeout(DEADLINE_SECONDS):
            while len(unused._waiting) != 3:
                await asyncio.sleep(0.02)
        assert (await reader.state()).last == before


async def test_what_was_begun_by_a_registry_that_died_is_finished(nats: Client, log: Log) -> None:
    """Users: a client that was held just when its grant was issued is let in again, whoever held it."""
    for name in ("used", "unused", "by-admin"):
        await register(log, name)
    await grant(log, "used")
    intent = BY_ADMIN
    for name in ("used", "unused"):
        await log.transact(store.client(name), lambda state: clients.hold(state, intent))
    await log.transact(store.client("by-admin"), lambda state: clients.suspend(state, BY_ADMIN))
    async with keeping(nats, log, ceiling=10):
        await until(log, ["used", "unused", "by-admin"], ["active", "deleted", "suspended"])


async def test_a_client_that_is_being_let_in_is_never_deleted(nats: Client, log: Log, other_log: Log) -> None:
    """Users: of a grant and an expiry at one time, either the grant stands or it was refused; never both."""
    names = [f"c{number}" for number in range(60)]
    for name in names:
        await register(log, name)

    async def let_in(name: str) -> bool:
        try:
            await grant(other_log, name)
        except clients.Refusal:
            return False
        return True

    async with keeping(nats, log, ceiling=1):
        stands = dict(zip(names, await asyncio.gather(*map(let_in, names)), strict=True))
        await until(log, names[:-1], ["active" if stands[name] else "deleted" for name in names[:-1]])


def test_an_admins_suspension_takes_the_place_of_a_hold() -> None:
    """Admins: what they suspend while it is being looked at is not let in again by the register."""
    held = clients.evolve(REGISTERED, ClientSuspended(client_id="c1", reason=NEVER_USED, at=NOON, by=REGISTERED.by))
    assert held is not None
    assert held.is_held
    assert isinstance(clients.settle(held, BY_ADMIN, used=True), ClientResumed)
    assert isinstance(clients.settle(held, BY_ADMIN, used=False), ClientDeleted)
    suspended = clients.evolve(REGISTERED, clients.suspend(held, BY_ADMIN))
    assert suspended is not None
    assert clients.settle(suspended, BY_ADMIN, used=True) is None
    assert clients.settle(suspended, BY_ADMIN, used=False) is None


async def test_a_log_of_many_reads_is_read_to_its_end_before_anything_is_expired(nats: Client, log: Log) -> None:
    """Users of an old register: that they use a client may be the last thing that its log says."""
    names = [f"c{number}" for number in range(2 * READ_MESSAGES + 2)]
    for each in names[:2]:
        await register(log, each)
    await asyncio.gather(*(register(log, each) for each in names[2:]))
    await grant(log, names[0])
    async with keeping(nats, log, ceiling=len(names) - 2):
        await until(log, names[1:2], ["deleted"])
        found = await statuses(log, *names)
    assert found[0] == "active"
    assert found.count("deleted") == 1
