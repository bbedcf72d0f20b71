"""Deleting many clients at once: a family, or those of a list that nobody has used since it was made.

Each client is deleted by a decision and an event of its own, as if it were the only one. What stops half way is asked
for again: what was deleted stays so.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from msgspec import Struct

from appraisal.families import family as family_of
from grantbook import subjects
from grantbook.events import ActivityRecorded, ClientMetadataChanged, ClientRegistered
from grantbook.sdk.log import LogReader, Unavailable
from registry import clients
from registry.clients import Intent, Refusal
from registry.store import Log, Receipt, client

DELETED_TOGETHER: Final = 200
MAX_LISTED: Final = 1_000
"""Clients in one list."""
MAX_ACTIVITY_MESSAGES: Final = 100_000
"""Most of the activity, in messages, that is read to see what was used since a list was made."""
READ_SECONDS: Final = 2.0
MAX_SILENCES: Final = 5


class ListTooOld(Refusal):
    """So much was used since the list was made that a new list is quicker."""


class Deleted(Struct, frozen=True, kw_only=True):
    """How many clients are deleted, now or before: asking again says the same. And where the last one stands."""

    clients: int
    position: int


class Left(Struct, frozen=True):
    """A client of a list that was not deleted, and why: `in_use` since, or `client_not_found`."""

    client_id: str
    code: str


async def members_of(reader: LogReader, family: str) -> AsyncIterator[list[str]]:
    """Tokens of the clients whose registration, as it is now, is of this family; deleted ones too. A page at a time.

    The register has no index of families: all registrations are read, about 30,000 in a second. Raises `Unavailable`.
    """
    async for page in _last_records(reader):
        yield [subjects.token(event.client_id) for event in page if family_of(event.metadata) == family]


async def _last_records(reader: LogReader) -> AsyncIterator[list[ClientRegistered | ClientMetadataChanged]]:
    every = subjects.client_record("*")
    if await reader.next_on_leader(every, 1) is None:
        return
    silences = 0
    async with reader.follow(0, [every], last_per_subject=True) as follower:
        while follower.pending != 0:
            messages = await follower.next(READ_SECONDS)
            silences = 0 if messages else silences + 1
            if silences > MAX_SILENCES:
                message = "the log stopped answering while it was read"
                raise Unavailable(message)
            events = [raw.recorded().event for raw in messages]
            yield [each for each in events if isinstance(each, ClientRegistered | ClientMetadataChanged)]


async def delete_family(log: Log, family: str, intent: Intent, *, traceparent: str | None) -> Deleted | None:
    """Delete every client of a family. None where there never was one. Raises what `Log.transact` raises."""
    deleted, position = 0, 0
    async for tokens in members_of(log.reader, family):
        deleted += len(tokens)
        for start in range(0, len(tokens), DELETED_TOGETHER):
            receipts = await asyncio.gather(
                *(_delete(log, each, intent, traceparent) for each in tokens[start : start + DELETED_TOGETHER])
            )
            position = max(position, *(receipt.position for receipt in receipts))
    return Deleted(clients=deleted, position=position) if deleted else None


async def delete_unused(
    log: Log,
    client_ids: Sequence[str],
    used: Mapping[str, None],
    intent: Intent,
    *,
    since: int,
    traceparent: str | None,
) -> tuple[Deleted, list[Left]]:
    """Delete the clients of a list, but for those to which a grant was issued after sequence `since`, or in `used`.

    `used` has tokens of clients, as `used_since` gives them. Raises what `Log.transact` raises.
    """
    left: list[Left] = []
    deleted, position = 0, since

    async def delete(client_id: str) -> Receipt[clients.Client | None] | Left:
        token = subjects.token(client_id)
        granted = await log.reader.next_on_leader(subjects.grant_record(token, "*"), since + 1)
        if granted is not None or token in used:
            return Left(client_id, "in_use")
        try:
            return await _delete(log, token, intent, traceparent)
        except clients.ClientNotFound:
            return Left(client_id, "client_not_found")

    for start in range(0, len(client_ids), DELETED_TOGETHER):
        for outcome in await asyncio.gather(*(delete(each) for each in client_ids[start : start + DELETED_TOGETHER])):
            if isinstance(outcome, Left):
                left.append(outcome)
            else:
                deleted += 1
                position = max(position, outcome.position)
    return Deleted(clients=deleted, position=position), left


async def used_since(activity: LogReader, sequence: int) -> dict[str, None]:
    """Tokens of the clients that were used, by what was reported behind this sequence of the activity.

    Raises `ListTooOld` when that is more than is read here, and `Unavailable`.
    """
    state = await activity.state()
    used: dict[str, None] = {}
    if state.last <= sequence:
        return used
    if state.last - max(sequence, state.first - 1) > MAX_ACTIVITY_MESSAGES:
        raise ListTooOld
    silences = 0
    reached = max(sequence, state.first - 1)
    async with activity.follow(reached) as follower:
        while reached < state.last:
            messages = await follower.next(READ_SECONDS)
            silences = 0 if messages else silences + 1
            if silences > MAX_SILENCES:
                message = "the activity stopped answering while it was read"
                raise Unavailable(message)
            for raw in messages:
                reached = raw.sequence
                event = raw.recorded().event
                if isinstance(event, ActivityRecorded):
                    used.update(dict.fromkeys(subjects.token(each.client_id) for each in event.windows))
    return used


async def _delete(log: Log, token: str, intent: Intent, traceparent: str | None) -> Receipt[clients.Client | None]:
    return await log.transact(client(token), lambda state: clients.delete(state, intent), traceparent=traceparent)
