"""Use of grants, as token services report it: checked, coalesced into windows, written durably.

Existence of grants is remembered positively and bounded: what was issued never becomes unknown. Use of a grant after
its end is recorded like any other: it is the most interesting line an auditor can find.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec
from msgspec import Struct

from grantbook import subjects, wire
from grantbook.events import ACTIVITY_KINDS, MAX_WINDOWS, ActivityRecorded, Actor, Window
from grantbook.sdk.log import MAX_SUBJECTS, LogReader
from registry import grants
from registry.commit import GroupCommit, Message, OutcomeUnknown
from registry.store import Contended, Log, holding, user

MAX_ENTRIES: Final = 10_000
MAX_COUNT: Final = 1_000_000_000
"""Most uses in one entry: sums of it fit into the 64 bits of a read model for ever."""
MAX_REMEMBERED_GRANTS: Final = 200_000
MAX_CONFIRMING: Final = 100
"""Leader reads under way at once, to confirm that grants are unknown."""
MAX_EXTENDING: Final = 50
MAX_CHUNK_ID_CHARACTERS: Final = 100_000
"""Ids in one event, in characters: each may be six bytes in JSON, and NATS takes 1 MiB."""
MAX_SENDS: Final = 3
DIGEST_HEX_DIGITS: Final = 16

GrantKey = tuple[str, str]
"""Subject tokens of a client and of one of its grants."""


class Use(Struct, frozen=True, kw_only=True):
    """One entry of a report: a grant was used `count` times, at `at`; a refresh may say its new expiry."""

    client_id: str
    grant_id: str
    kind: str
    at: datetime
    count: int = 1
    expires_at: datetime | None = None

    @property
    def key(self) -> GrantKey:
        """The grant, by tokens."""
        return subjects.token(self.client_id), subjects.token(self.grant_id)


class Rejected(Struct, frozen=True):
    """An entry that was not recorded, by its index in the report."""

    index: int
    code: str
    detail: str


class Recording(Struct, frozen=True):
    """What became of a report. `position` is of the activity log, and 0 when nothing was recorded."""

    recorded: int
    rejected: tuple[Rejected, ...]
    position: int


class Expiry(Struct, frozen=True):
    """What a grant's last logged record says of its expiry: to see without a read that a refresh moves it little."""

    logged: datetime
    threshold: timedelta

    def reaches(self, expires_at: datetime) -> bool:
        """Whether a move to `expires_at` is one that the log must have."""
        moved = expires_at - self.logged
        return moved > timedelta(0) and moved >= self.threshold


class ActivityLog:
    """The activity log, for writing. `new_id` gives a UUIDv7."""

    def __init__(self, log: Log, commit: GroupCommit, *, new_id: Callable[[], str]) -> None:
        self._log = log
        self._reader: LogReader = log.reader
        self._commit = commit
        self._new_id = new_id
        self._known: OrderedDict[GrantKey, Expiry] = OrderedDict()

    async def record(
        self, uses: Sequence[Use], *, reporter: str, report_id: str | None, at: datetime, by: Actor
    ) -> Recording:
        """Record a report. With a `report_id` a second try within the duplicate window counts nothing twice.

        The same id with another content is another report.

        Raises `Unavailable`, `Contended`, `LogFull` and the `AppendFailed`s; then the whole report may be sent again.
        """
        known = await self._known_among({use.key for use in uses})
        rejected = tuple(
            refusal
            for index, use in enumerate(uses)
            if (refusal := _rejection(index, use, exists=use.key in known)) is not None
        )
        refused = {each.index for each in rejected}
        kept = [use for index, use in enumerate(uses) if index not in refused]
        # First what may fail and changes nothing when done again, then the counts.
        await self._extend(kept, known, at=at, by=by)
        windows = coalesce(kept)
        # What was sent, not what is kept of it: a grant that is known the second time makes no other report of it.
        digest = (
            None if report_id is None else hashlib.sha256(msgspec.json.encode(uses)).hexdigest()[:DIGEST_HEX_DIGITS]
        )
        name = None if digest is None else f"report {subjects.token(reporter)} {report_id} {digest}"
        position = await self._append(windows, report_id=report_id, name=name, at=at, by=by) if windows else 0
        return Recording(len(kept), rejected, position)

    async def _known_among(self, keys: set[GrantKey]) -> dict[GrantKey, Expiry]:
        known = {key: self._known[key] for key in keys if key in self._known}
        unknown = [key for key in keys if key not in known]
        records = {subjects.grant_record(*key): key for key in unknown}
        for start in range(0, len(unknown), MAX_SUBJECTS):
            asked = list(records)[start : start + MAX_SUBJECTS]
            found = await self._reader.last(asked)
            missing = [each for each in asked if each not in found]
            for place in range(0, len(missing), MAX_CONFIRMING):
                # A follower may lag: a grant issued a moment ago is not unknown.
                found |= await self._reader.last_on_leader(missing[place : place + MAX_CONFIRMING])
            for subject, raw in found.items():
                recorded = raw.recorded()
                grant = (
                    None
                    if isinstance(recorded.event, wire.Unknown)
                    else grants.evolve(recorded.event, recorded.position, None)
                )
                if grant is not None:
                    known[records[subject]] = Expiry(grant.expires_at, grant.threshold)
        for key, expiry in known.items():
            self._known[key] = expiry
            self._known.move_to_end(key)
        while len(self._known) > MAX_REMEMBERED_GRANTS:
            self._known.popitem(last=False)
        return known

    async def _extend(self, uses: Sequence[Use], known: dict[GrantKey, Expiry], *, at: datetime, by: Actor) -> None:
        latest: dict[GrantKey, datetime] = {}
        for use in uses:
            if use.expires_at is not None and use.kind == "refresh":
                latest[use.key] = max(use.expires_at, latest.get(use.key, use.expires_at))
        far = [(key, expires_at) for key, expires_at in latest.items() if known[key].reaches(expires_at)]

        async def extend(key: GrantKey, expires_at: datetime) -> None:
            # The user is known only from the grant: two reads. The user of a grant never changes.
            state, _ = await self._log.load(holding(*key), never_stale=True)
            cut_off, _ = await self._log.load(
                user(subjects.token(grants.existing(state.grant).user_id)), never_stale=True
            )
            receipt = await self._log.transact(
                holding(*key),
                lambda state: grants.extend(state, cut_off_position=cut_off, expires_at=expires_at, at=at, by=by),
            )
            if receipt.event is not None:
                self._known[key] = Expiry(expires_at, known[key].threshold)

        for start in range(0, len(far), MAX_EXTENDING):
            await asyncio.gather(*(extend(*each) for each in far[start : start + MAX_EXTENDING]))

    async def _append(
        self, windows: Sequence[Window], *, report_id: str | None, name: str | None, at: datetime, by: Actor
    ) -> int:
        messages = []
        for chunk, together in enumerate(chunks(windows)):
            event = ActivityRecorded(windows=tuple(together), report_id=report_id, at=at, by=by)
            event_id = self._new_id()
            outgoing = wire.encode(event, event_id=event_id)
            message_id = event_id if name is None else f"{name} {chunk}"
            messages.append(Message(outgoing.subject, outgoing.headers, outgoing.body, message_id, None))
        return max(await asyncio.gather(*(self._send(each) for each in messages)))

    async def _send(self, message: Message) -> int:
        for _ in range(MAX_SENDS):
            try:
                return (await self._commit.submit(message)).sequence
            except OutcomeUnknown:
                continue  # with the same message id: the server knows a second one for a duplicate
        message_ = "the activity log did not say whether it stored a report"
        raise Contended(message_)


def coalesce(uses: Sequence[Use]) -> list[Window]:
    """One window for each grant and kind: total count, first and last time, latest expiry."""
    windows: dict[tuple[str, str, str], Window] = {}
    for use in uses:
        key = (use.client_id, use.grant_id, use.kind)
        window = windows.get(key)
        said = use.expires_at if use.kind == "refresh" else None  # nothing else moves an expiry
        expiries = [each for each in (said, window.expires_at if window else None) if each is not None]
        windows[key] = Window(
            client_id=use.client_id,
            grant_id=use.grant_id,
            kind=use.kind,
            count=use.count + (window.count if window else 0),
            first_at=min(use.at, window.first_at) if window else use.at,
            last_at=max(use.at, window.last_at) if window else use.at,
            expires_at=max(expiries) if expiries else None,
        )
    return list(windows.values())


def chunks(windows: Sequence[Window]) -> Iterator[list[Window]]:
    """The windows in order, as many at a time as fit into one event."""
    together: list[Window] = []
    characters = 0
    for window in windows:
        longest = len(window.client_id) + len(window.grant_id)
        if together and (len(together) == MAX_WINDOWS or characters + longest > MAX_CHUNK_ID_CHARACTERS):
            yield together
            together, characters = [], 0
        together.append(window)
        characters += longest
    if together:
        yield together


def _rejection(index: int, use: Use, *, exists: bool) -> Rejected | None:
    if use.kind not in ACTIVITY_KINDS:
        return Rejected(index, "invalid_parameter", f"kind: one of {', '.join(ACTIVITY_KINDS)}")
    if not 1 <= use.count <= MAX_COUNT:
        return Rejected(index, "invalid_parameter", f"count: 1 to {MAX_COUNT}")
    if not exists:
        return Rejected(index, "grant_not_found", "the client has no grant of this id")
    return None
