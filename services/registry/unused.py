"""The ceiling on clients that were never used: above it the oldest are expired, so that strangers who register for
nothing cost what the operator chose, and no more.

Never used means: no grant was ever issued to it. Only clients that registered themselves count; one that an admin has
suspended is left to the admin. An expiry is two events. First the client is suspended, and from there on the store
refuses every grant; then, if it still has none, it is deleted, and otherwise let in again. So a client that somebody
is letting in at this very moment is never deleted, whichever instance the grant goes through.

One registry does it, by a lease. It follows the log from the oldest client that is still unused, and so its memory is
a token for each unused client: the ceiling, and what registers in a second.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Final

import msgspec
import structlog
from msgspec import Struct

from grantbook import subjects, wire
from grantbook.events import Actor, ClientDeleted, ClientRegistered, ClientSuspended
from grantbook.sdk.log import Raw, Unavailable
from registry import clients
from registry.buckets import Bucket
from registry.clients import Intent, Refusal
from registry.commit import AppendFailed
from registry.lease import RENEW_SECONDS, Lease, LeaseLost
from registry.store import Contended, Log, LogFull, WrittenByNewer, client

MAX_UNUSED_CLIENTS: Final = 500_000
"""Default of the ceiling."""
EXPIRED_TOGETHER: Final = 100
"""Clients expired at once: their events share the log's disk syncs."""
WAIT_SECONDS: Final = 1.0
CHECKPOINT_SECONDS: Final = 30.0
READ_MESSAGES: Final = 200
READ_RESTS_TIMES: Final = 3.0
"""How many times as long as reading some of the log took it is left alone, while there is more: whoever has the lease
may have millions of events to read, in a process that serves requests."""
MAX_READ_REST_SECONDS: Final = 0.25
IDLE_REST_SECONDS: Final = 0.1
"""Between looks at what came, once all was read: nobody waits for an expiry, and many events take as long as a few."""
_LEASE: Final = "unused-lease"
_CHECKPOINT: Final = "unused-checkpoint"
_log = structlog.get_logger("unused")


class Checkpoint(Struct, frozen=True):
    """No client that was registered up to this sequence, of the log with this identity, waits to be used."""

    identity: str
    position: int


class Unused:
    """Runs for as long as its task does. `holder` names this process; `now` is its clock."""

    def __init__(
        self, log: Log, bucket: Bucket, *, holder: str, now: Callable[[], datetime], ceiling: int = MAX_UNUSED_CLIENTS
    ) -> None:
        self.trouble: str | None = None
        """Why it does not go on at the moment, in words, or None."""
        self._log = log
        self._bucket = bucket
        self._lease = Lease(bucket, _LEASE, holder=holder, now=now)
        self._now = now
        self._ceiling = ceiling
        self._waiting: dict[str, int] = {}
        """Tokens of the clients that were never used and where they were registered, the oldest first."""
        self._held: dict[str, None] = {}
        """Tokens of the clients that somebody, before us perhaps, has begun to expire."""

    async def run(self) -> None:
        """Take the lease when it is free, and keep to the ceiling. Ends only by being cancelled."""
        while True:
            try:
                if await self._lease.take():
                    self.trouble = None
                    await self._follow()
            except (Unavailable, AppendFailed, Contended, LogFull, LeaseLost) as error:
                self.trouble = f"{type(error).__name__}: {error}"
                _log.warning("expiry of unused clients waits", reason=self.trouble)
            except Exception as error:  # noqa: BLE001  readiness warns; nothing is expired that it cannot read
                self.trouble = f"{type(error).__name__}: {error}"
                _log.exception("expiry of unused clients cannot go on")
            await asyncio.sleep(WAIT_SECONDS)

    async def release(self) -> None:
        """Let go of the lease, so that another registry need not wait."""
        await self._lease.release()

    async def _follow(self) -> None:
        identity = (await self._log.reader.state()).identity
        after, revision = await self._checkpoint(identity)
        loop = asyncio.get_running_loop()
        saved, save_at = after, loop.time() + CHECKPOINT_SECONDS
        self._waiting.clear()
        self._held.clear()
        # All of the log: making a consumer with filters of what counts here would hold up whoever appends.
        async with self._log.reader.follow(after, messages=READ_MESSAGES) as follower:
            while True:
                await self._lease.keep()
                began = loop.time()
                for raw in await follower.next(RENEW_SECONDS):
                    self._take(raw)
                # Whether the oldest were ever used is known only once all that was recorded since is read.
                rest = IDLE_REST_SECONDS
                if follower.pending:
                    rest = min((loop.time() - began) * READ_RESTS_TIMES, MAX_READ_REST_SECONDS)
                elif follower.pending == 0:
                    await self._settle_held()
                    if len(self._waiting) > self._ceiling:
                        await self._expire_oldest()
                        rest = 0.0
                settled = next(iter(self._waiting.values()), follower.after + 1) - 1
                if settled > saved and loop.time() >= save_at:
                    body = msgspec.json.encode(Checkpoint(identity, settled))
                    written = await self._bucket.put(_CHECKPOINT, body, revision=revision)
                    if written is None:
                        raise LeaseLost
                    saved, revision = settled, written
                    save_at = loop.time() + CHECKPOINT_SECONDS
                await asyncio.sleep(rest)

    async def _checkpoint(self, identity: str) -> tuple[int, int]:
        entry = await self._bucket.get(_CHECKPOINT)
        if entry is None or entry.value is None:
            return 0, 0 if entry is None else entry.revision
        found = msgspec.json.decode(entry.value, type=Checkpoint)
        return found.position if found.identity == identity else 0, entry.revision

    def _take(self, raw: Raw) -> None:
        token = subjects.client_token_of(raw.subject)
        if token is None:
            return
        if subjects.grant_token_of(raw.subject) is not None:
            self._waiting.pop(token, None)
            return
        event = raw.recorded().event
        self._held.pop(token, None)
        match event:
            case ClientRegistered(source="dcr"):
                self._waiting[token] = raw.sequence
            case ClientSuspended(reason=clients.NEVER_USED):
                self._waiting.pop(token, None)
                self._held[token] = None
            case ClientSuspended() | ClientDeleted() | wire.Unknown():
                self._waiting.pop(token, None)
            case _:
                pass

    async def _expire_oldest(self) -> None:
        oldest = list(self._waiting)[: min(len(self._waiting) - self._ceiling, EXPIRED_TOGETHER)]
        ended = await asyncio.gather(*(self._expire(each) for each in oldest))
        for token in oldest:
            self._waiting.pop(token, None)
        _log.info("expired clients that were never used", clients=sum(ended), ceiling=self._ceiling)

    async def _expire(self, token: str) -> bool:
        """Delete the client unless it has a grant. False where it had one, or was not there to be expired."""
        try:
            await self._log.transact(client(token), lambda state: clients.hold(state, self._intent()))
            return await self._settle(token)
        except (Refusal, WrittenByNewer) as refusal:
            _log.info("an unused client is left alone", client=token, reason=type(refusal).__name__)
            return False

    async def _settle_held(self) -> None:
        """Finish what whoever had the lease before us has begun."""
        for token in list(self._held):
            await self._settle(token)
            self._held.pop(token, None)

    async def _settle(self, token: str) -> bool:
        used = await self._log.reader.next_on_leader(subjects.grant_record(token, "*"), 1) is not None
        receipt = await self._log.transact(
            client(token), lambda state: clients.settle(state, self._intent(), used=used)
        )
        return isinstance(receipt.event, ClientDeleted)

    def _intent(self) -> Intent:
        return Intent(reason=clients.NEVER_USED, note=None, at=self._now(), by=Actor("system"))
