"""The fan-out: after a client's deletion, one `grant.revoked` for each of its grants that still stood.

Denial does not wait for it: the deletion on the client's gate is the one fact that ends every grant. These events are
for auditors, and for those who know a grant id alone. A small follower does it, in one registry at a time (a lease in
a bucket), resumable (its checkpoint says how far it got, inside a deletion too), idempotent (each event expects that
its gate is empty) and bounded in memory (a page of the client's events at a time). It keeps out of the way of whoever
else writes (`pace.py`), and of the projection of other clients. And it waits for the feed of revocations, which follows
the log message by message, with a disk sync for each: other people's revocations stand behind these events there, and
token services take a feed that is behind the log for one that may lack something, and soon deny everything.

Nothing about a client is ever recorded after its deletion but what stands here: grants are issued and extended
expecting the client's gate. So who has read the client's events up to the deletion itself has seen every grant.

They are read in the order of the log, and not as the last event of each grant: for that the server would first collect
all of them, and let nobody write meanwhile, over a second for a million grants. A grant stands if *any* of its records
says so, since what extends one only ever makes it longer.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import islice
from typing import Final

import msgspec
import structlog
from msgspec import Struct

from grantbook import subjects, wire
from grantbook.events import CLIENT_DELETED, Actor, ClientDeleted, GrantRevoked
from grantbook.sdk.log import Gap, LogReader, Raw, Unavailable, place_in_log
from registry import grants
from registry.buckets import Bucket
from registry.clients import Intent
from registry.commit import AppendFailed
from registry.lease import RENEW_SECONDS, Lease, LeaseLost
from registry.pace import Pace
from registry.store import Contended, Log, LogFull, WrittenByNewer

PAGE_MESSAGES: Final = 200
"""Of a client's events, read at a time."""
DECIDED_AT_ONCE: Final = 25
"""Grants looked at before other work of the process has its turn: about a millisecond."""
PACE_PER_SECOND: Final = 12_000
"""Default of the most grants ended in a second: the projection of others keeps up with it."""
SAVE_SECONDS: Final = 1.0
"""How often the checkpoint is moved inside a deletion: what a crash makes another registry read again."""
WAIT_SECONDS: Final = 1.0
FEED_SECONDS: Final = 2.0
"""Before a batch the feed is waited for as long as it moves. One that does not for so long stands still."""
FEED_STILL_SECONDS: Final = 30.0
"""A feed that stood still is not waited for again for so long: the log does not depend on it."""
LOOK_SECONDS: Final = 0.01
MAX_TRIES: Final = 10
_LEASE: Final = "lease"
CHECKPOINT: Final = "checkpoint"

_log = structlog.get_logger("fanout")


class UnderWay(Struct, frozen=True):
    """Of the deletion at this sequence, with this id: every grant that was recorded up to `reached` has its event."""

    deletion: int
    deletion_id: str
    reached: int


class Checkpoint(Struct, frozen=True):
    """Every deletion up to this sequence of the log with this identity is done; the event there has this id."""

    identity: str
    position: int
    event_id: str = ""
    under_way: UnderWay | None = None
    newest: int = 0
    """Where in the log an event stands that was appended after all that this says is done, and its id, `newest_id`.
    A log without it was restored to an earlier time, and may lack what was done."""
    newest_id: str = ""


class Fanout:
    """Runs for as long as its task does. `holder` names this process; `now` is its clock."""

    def __init__(
        self,
        log: Log,
        feed: LogReader,
        bucket: Bucket,
        *,
        holder: str,
        now: Callable[[], datetime],
        pace_per_second: int = PACE_PER_SECOND,
    ) -> None:
        self.trouble: str | None = None
        """Why it does not go on at the moment, in words, or None."""
        self.holding = False
        self._log = log
        self._reader: LogReader = log.reader
        self._feed = feed
        self._bucket = bucket
        self._lease = Lease(bucket, _LEASE, holder=holder, now=now)
        self._now = now
        self._pace_per_second = pace_per_second
        self._checkpoint = Checkpoint("", 0)
        self._revision = 0
        self._feed_still_until = 0.0
        self._recorded = 0
        """Where in the log the deletion stands, or the last event of the last batch."""

    async def run(self) -> None:
        """Take the lease when it is free, and do every deletion that is not done. Ends only by being cancelled."""
        while True:
            try:
                if await self._lease.take():
                    self.holding = True
                    self.trouble = None
                    await self._follow()
            except (Unavailable, Gap, AppendFailed, Contended, LogFull, LeaseLost) as error:
                self.trouble = f"{type(error).__name__}: {error}"
                _log.warning("fan-out waits", reason=self.trouble)
            except Exception as error:  # noqa: BLE001  readiness warns; a grant that it cannot read is never skipped
                self.trouble = f"{type(error).__name__}: {error}"
                _log.exception("fan-out cannot go on")
            finally:
                self.holding = False
            await asyncio.sleep(WAIT_SECONDS)

    async def release(self) -> None:
        """Let go of the lease, so that another registry need not wait."""
        await self._lease.release()

    async def _follow(self) -> None:
        await self._load()
        async with self._reader.follow(self._checkpoint.position, [subjects.CLIENT_GATES]) as follower:
            while True:
                await self._lease.keep()
                messages = await follower.next(RENEW_SECONDS)
                for raw in messages:
                    recorded = raw.recorded()
                    if isinstance(recorded.event, ClientDeleted) and await self._end_grants(recorded):
                        await self._save_done(raw)
                if messages and messages[-1].sequence > self._checkpoint.position:
                    await self._save_done(messages[-1])

    async def _load(self) -> None:
        identity = (await self._reader.state()).identity
        entry = await self._bucket.get(CHECKPOINT)
        self._revision = 0 if entry is None else entry.revision
        self._recorded = 0
        self._checkpoint = Checkpoint(identity, 0)
        if entry is not None and entry.value is not None:
            found = msgspec.json.decode(entry.value, type=Checkpoint)
            # Another log than the checkpoint's, or one that was restored to before it, is read from its start: all of
            # this is idempotent.
            if found.identity == identity and await self._is_there(found):
                self._checkpoint = found

    async def _is_there(self, found: Checkpoint) -> bool:
        for position, event_id in ((found.position, found.event_id), (found.newest, found.newest_id)):
            raw = await self._reader.at_on_leader(position) if position else None
            if position and (raw is None or _id_of(raw) != event_id):
                return False
        return True

    async def _save_done(self, raw: Raw) -> None:
        await self._save(
            msgspec.structs.replace(self._checkpoint, position=raw.sequence, event_id=_id_of(raw), under_way=None)
        )

    async def _save_under_way(self, deletion: wire.Recorded, reached: int) -> None:
        await self._save(
            msgspec.structs.replace(self._checkpoint, under_way=UnderWay(deletion.position, deletion.id, reached))
        )

    async def _save(self, checkpoint: Checkpoint) -> None:
        newest, newest_id = max(self._log.newest, (checkpoint.newest, checkpoint.newest_id))
        checkpoint = msgspec.structs.replace(checkpoint, newest=newest, newest_id=newest_id)
        written = await self._bucket.put(CHECKPOINT, msgspec.json.encode(checkpoint), revision=self._revision)
        if written is None:
            raise LeaseLost
        self._checkpoint, self._revision = checkpoint, written

    async def _end_grants(self, deletion: wire.Recorded) -> int:
        """Write `grant.revoked` for each grant of the client that still stood; how many those were."""
        client = subjects.client_token_of(deletion.subject)
        if client is None:
            return 0
        loop = asyncio.get_running_loop()
        started = saved_at = loop.time()
        pace = Pace(self._pace_per_second, last=self._log.newest[0], now=started)
        self._recorded = max(self._recorded, deletion.position)
        under_way = self._checkpoint.under_way
        after = 0
        if under_way is not None and (under_way.deletion, under_way.deletion_id) == (deletion.position, deletion.id):
            after = under_way.reached
        ended = 0
        waiting: dict[str, _End] = {}
        everything = [subjects.everything_of_client(client)]
        async with self._reader.follow(after, everything, messages=PAGE_MESSAGES) as facts:
            # "Nothing pending" is not the end: only the deletion's own message is.
            while waiting or facts.after < deletion.position:
                if facts.after < deletion.position:
                    page = await facts.next(RENEW_SECONDS)
                    for end in await self._ends(client, deletion, page):
                        waiting.setdefault(end.event.grant_id, end)
                await self._lease.keep()
                # What comes in dribs and drabs is gathered: a batch takes the log about as long whatever is in it.
                number = pace.messages(loop.time())
                while waiting and (len(waiting) >= number or facts.after >= deletion.position):
                    batch = [waiting.pop(each) for each in list(islice(waiting, number))]
                    await self._record([each.event for each in batch], pace)
                    ended += len(batch)
                    after = batch[-1].record
                    number = pace.messages(loop.time())
                    if loop.time() >= saved_at + SAVE_SECONDS:
                        saved_at = loop.time()
                        await self._save_under_way(deletion, after)
        if ended:
            seconds = round(loop.time() - started, 1)
            _log.info("fan-out ended the grants of a deleted client", client=client, grants=ended, seconds=seconds)
        return ended

    async def _record(self, batch: Sequence[GrantRevoked], pace: Pace) -> None:
        """Record them, once the feed has what was before, and leave the log alone for a while."""
        await self._wait_for_feed()
        await self._lease.keep()
        loop = asyncio.get_running_loop()
        started = loop.time()
        last = await self._log.record_together(batch)
        if last is None:
            last = await self._end_each(batch)
        self._recorded = last
        now = loop.time()
        await asyncio.sleep(pace.rest(len(batch), last=last, took=now - started, now=now))

    async def _wait_for_feed(self) -> None:
        """Wait until the feed has what was recorded, or stands still."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._feed_still_until:
            return
        seen, deadline = 0, loop.time() + FEED_SECONDS
        while loop.time() < deadline:
            reached = await self._reached_by_feed(deadline)
            if reached >= self._recorded:
                return
            if reached > seen:
                seen, deadline = reached, loop.time() + FEED_SECONDS
            await self._lease.keep()
            await asyncio.sleep(LOOK_SECONDS)
        self._feed_still_until = loop.time() + FEED_STILL_SECONDS
        _log.warning("the feed stands still: the fan-out goes on without it", reached=seen, recorded=self._recorded)

    async def _reached_by_feed(self, deadline: float) -> int:
        """The place in the log up to which the feed has everything; 0 where nobody knows."""
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout_at(deadline):
                return place_in_log(await self._feed.newest_on_leader())
        return 0

    async def _ends(self, client: str, deletion: wire.Recorded, page: Sequence[Raw]) -> list["_End"]:
        """What is to be recorded for the grants of a page of the client's events, in the order of these."""
        standing: dict[str, tuple[int, grants.Grant]] = {}
        for number, raw in enumerate(page, start=1):
            if number % DECIDED_AT_ONCE == 0:
                await asyncio.sleep(0)
            grant = _standing(client, deletion, raw)
            if grant is not None:
                # The first record that says so: what is to be recorded stays in the order of the log.
                gate = subjects.grant_gate(client, subjects.token(grant.id))
                standing.setdefault(gate, (raw.sequence, grant))
        users = {grant.user_id: subjects.user_gate(subjects.token(grant.user_id)) for _, grant in standing.values()}
        said = await self._reader.last([*standing, *users.values()])
        intent = Intent(reason=CLIENT_DELETED, note=None, at=self._now(), by=Actor("system"))
        ends: list[_End] = []
        for number, (gate, (record, grant)) in enumerate(standing.items(), start=1):
            if number % DECIDED_AT_ONCE == 0:
                await asyncio.sleep(0)
            if gate in said:
                continue
            cut_off = said.get(users[grant.user_id])
            if cut_off is not None and grant.issued_position < cut_off.sequence < deletion.position:
                continue  # its user's cut-off had ended it
            event = grants.revoke(grants.Holding(client=None, grant=grant), intent, caused_by=deletion.id)
            if event is not None:
                ends.append(_End(record, event))
        return ends

    async def _end_each(self, events: Sequence[GrantRevoked]) -> int:
        """Record each by itself, for somebody may be about to end some of these. Where the last one stands."""
        left: Sequence[GrantRevoked] = events
        last = 0
        for _ in range(MAX_TRIES):
            stored = await self._log.record_all(left)
            last = max(last, *(position or 0 for position in stored))
            left = [event for event, position in zip(left, stored, strict=True) if position is None]
            if not left:
                return last
            # Somebody else was about to end these. If it came to nothing, it is still for us to do.
            ended = await self._reader.last_on_leader([wire.subject_of(event) for event in left])
            left = [event for event in left if wire.subject_of(event) not in ended]
            if not left:
                return max(last, *(each.sequence for each in ended.values()))
        message = f"{len(left)} grants are being ended by somebody who does not come to it"
        raise Contended(message)


class _End(Struct, frozen=True):
    """What is to be recorded for a grant, and where in the log the record stands that calls for it."""

    record: int
    event: GrantRevoked


def _standing(client: str, deletion: wire.Recorded, raw: Raw) -> grants.Grant | None:
    """The grant that an event of the client records, if by that it stood when the client was deleted."""
    token = subjects.grant_token_of(raw.subject)
    if token is None or raw.subject != subjects.grant_record(client, token) or raw.sequence > deletion.position:
        return None
    recorded = raw.recorded()
    if isinstance(recorded.event, wire.Unknown):
        raise WrittenByNewer(recorded.type)
    grant = grants.evolve(recorded.event, recorded.position, None)
    return None if grant is None or grant.has_lapsed(deletion.recorded_at) else grant


def _id_of(raw: Raw) -> str:
    return (raw.headers or {}).get("ce-id", "")
