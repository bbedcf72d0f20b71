"""The fan-out: after a client's deletion, one `grant.revoked` for each of its grants that still stood.

Denial does not wait for it: the deletion on the client's gate is the one fact that ends every grant. These events are
for auditors, and for those who know a grant id alone. A small follower does it, in one registry at a time (a lease in
a bucket), resumable (its checkpoint is moved after the last append of a deletion), idempotent (each event expects that
its gate is empty) and bounded in memory (a page of grants at a time). It is paced, so that the projection of other
clients keeps up.

Nothing about a client is ever recorded after its deletion but what stands here: grants are issued and extended
expecting the client's gate. So an enumeration that has come to the deletion itself has seen every grant.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

import msgspec
import structlog
from msgspec import Struct

from grantbook import subjects, wire
from grantbook.events import CLIENT_DELETED, Actor, ClientDeleted, GrantRevoked
from grantbook.sdk.log import LogReader, Raw, Unavailable
from registry import grants
from registry.buckets import Bucket
from registry.clients import Intent
from registry.commit import AppendFailed
from registry.lease import RENEW_SECONDS, Lease, LeaseLost
from registry.store import Contended, Log, LogFull, WrittenByNewer

PAGE_GRANTS: Final = 500
PACE_PER_SECOND: Final = 12_000
"""Default number of grants ended in a second: the projection of others keeps up with it."""
WAIT_SECONDS: Final = 1.0
MAX_TRIES: Final = 10
_LEASE: Final = "lease"
_CHECKPOINT: Final = "checkpoint"

_log = structlog.get_logger("fanout")


class Checkpoint(Struct, frozen=True):
    """Every deletion up to this sequence of the log with this identity is done; the event there has this id."""

    identity: str
    position: int
    event_id: str = ""


class Fanout:
    """Runs for as long as its task does. `holder` names this process; `now` is its clock."""

    def __init__(
        self,
        log: Log,
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
        self._bucket = bucket
        self._lease = Lease(bucket, _LEASE, holder=holder, now=now)
        self._now = now
        self._pace = pace_per_second

    async def run(self) -> None:
        """Take the lease when it is free, and do every deletion that is not done. Ends only by being cancelled."""
        while True:
            try:
                if await self._lease.take():
                    self.holding = True
                    self.trouble = None
                    await self._follow()
            except (Unavailable, AppendFailed, Contended, LogFull, LeaseLost) as error:
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
        identity = (await self._reader.state()).identity
        entry = await self._bucket.get(_CHECKPOINT)
        after, revision = 0, 0
        if entry is not None:
            revision = entry.revision
            if entry.value is not None:
                checkpoint = msgspec.json.decode(entry.value, type=Checkpoint)
                # Another log than the checkpoint's, or one that was restored to before it, is read from its start: all
                # of this is idempotent.
                there = await self._reader.at_on_leader(checkpoint.position) if checkpoint.position else None
                if checkpoint.identity == identity and there is not None and _id_of(there) == checkpoint.event_id:
                    after = checkpoint.position
        async with self._reader.follow(after, [subjects.CLIENT_GATES]) as follower:
            while True:
                await self._lease.keep()
                messages = await follower.next(RENEW_SECONDS)
                for raw in messages:
                    recorded = raw.recorded()
                    if isinstance(recorded.event, ClientDeleted):
                        await self._end_grants(recorded)
                if messages:
                    checkpoint = Checkpoint(identity, messages[-1].sequence, _id_of(messages[-1]))
                    written = await self._bucket.put(_CHECKPOINT, msgspec.json.encode(checkpoint), revision=revision)
                    if written is None:
                        raise LeaseLost
                    revision = written

    async def _end_grants(self, deletion: wire.Recorded) -> None:
        """Write `grant.revoked` for each grant of the client that still stood."""
        client = subjects.client_token_of(deletion.subject)
        if client is None:
            return
        ended = 0
        started = asyncio.get_running_loop().time()
        filters = [subjects.grant_record(client, "*"), deletion.subject]
        async with self._reader.follow(0, filters, last_per_subject=True, messages=PAGE_GRANTS) as grants_:
            reached = False
            while not reached:
                page = await grants_.next(RENEW_SECONDS)
                await self._lease.keep()
                # "Nothing pending" is not the end: only the deletion's own message is.
                reached = any(raw.sequence >= deletion.position for raw in page)
                records = [raw for raw in page if raw.subject != deletion.subject]
                ended += await self._end_page(client, deletion, records)
                ahead = ended / self._pace - (asyncio.get_running_loop().time() - started)
                if ahead > 0:
                    await asyncio.sleep(ahead)
        if ended:
            _log.info("fan-out ended the grants of a deleted client", client=client, grants=ended)

    async def _end_page(self, client: str, deletion: wire.Recorded, page: list[Raw]) -> int:
        gates = {raw.subject: subjects.grant_gate(client, subjects.grant_token_of(raw.subject) or "") for raw in page}
        closed = await self._reader.last(list(gates.values()))
        now = self._now()
        intent = Intent(reason=CLIENT_DELETED, note=None, at=now, by=Actor("system"))
        standing: list[grants.Grant] = []
        for raw in page:
            if gates[raw.subject] in closed:
                continue
            recorded = raw.recorded()
            if isinstance(recorded.event, wire.Unknown):
                raise WrittenByNewer(recorded.type)
            grant = grants.evolve(recorded.event, recorded.position, None)
            if grant is not None and not grant.has_lapsed(deletion.recorded_at):
                standing.append(grant)
        users = {grant.user_id: subjects.user_gate(subjects.token(grant.user_id)) for grant in standing}
        cut_offs = await self._reader.last(list(users.values()))
        events: list[GrantRevoked] = []
        for grant in standing:
            cut_off = cut_offs.get(users[grant.user_id])
            if cut_off is not None and grant.issued_position < cut_off.sequence < deletion.position:
                continue  # its user's cut-off had ended it
            event = grants.revoke(grants.Holding(client=None, grant=grant), intent, caused_by=deletion.id)
            if event is not None:
                events.append(event)
        left: Sequence[GrantRevoked] = events
        for _ in range(MAX_TRIES):
            stored = await self._log.record_all(left)
            left = [event for event, position in zip(left, stored, strict=True) if position is None]
            if not left:
                return len(events)
            # Somebody else was about to end these. If it came to nothing, it is still for us to do.
            ended = await self._reader.last_on_leader([wire.subject_of(event) for event in left])
            left = [event for event in left if wire.subject_of(event) not in ended]
        message = f"{len(left)} grants are being ended by somebody who does not come to it"
        raise Contended(message)


def _id_of(raw: Raw) -> str:
    return (raw.headers or {}).get("ce-id", "")
