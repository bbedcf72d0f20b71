"""The log as the registry writes it: load, decide, append, answer. The only module that appends events.

The optimistic-concurrency loop, whole: load the last message of each subject of an aggregate, decide, append expecting
what was read, and when another was faster, look again. What every kind of event expects is one table, `_message`.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Generic, TypeVar, assert_never

import msgspec
from msgspec import Struct

from grantbook import subjects, wire
from grantbook.events import (
    ActivityRecorded,
    ClientDeleted,
    ClientMetadataChanged,
    ClientRegistered,
    ClientResumed,
    ClientSuspended,
    Event,
    GrantExtended,
    GrantIssued,
    GrantRevoked,
    UserGrantsRevoked,
)
from grantbook.sdk.log import LogReader
from registry import clients, grants
from registry.clients import Client, Refusal
from registry.commit import Expected, Full, GroupCommit, InFlight, Message, OutcomeUnknown, Stale, Stored
from registry.grants import Grant, Holding

MAX_TRIES: Final = 32
"""Most rounds of load, decide, append for one command; past them the caller is told to come again."""
APPEND_WITHIN_SECONDS: Final = 20.0
"""No append is sent later than this after its load: far inside the duplicate window, and inside the time
that readers count on when they compare a token's age with a user's cut-off."""
WAIT_SECONDS: Final = 0.02
"""Longest wait, before jitter grows it by the number of tries, when another append is in flight."""
MAX_READ_BACK: Final = 64

S = TypeVar("S")
Facts = Mapping[str, wire.Recorded]
"""The last event on each subject of an aggregate that has one."""


class Contended(Exception):
    """Others were faster in every round, or the outcome stayed unknown. Nothing is promised; come again."""


class Halted(Contended):
    """Nothing is appended from this process until somebody sees to it. Says why."""


class LogFull(Exception):
    """The log takes nothing but gates any more."""


class WrittenByNewer(Exception):
    """The last fact is of a type that this version does not know: deciding on it would be a guess."""


class Aggregate(Struct, Generic[S], frozen=True):
    """What a decision looks at: literal subjects, and how their last events become a state."""

    subjects: tuple[str, ...]
    evolve: Callable[[Facts], S]


class Receipt(Struct, Generic[S], frozen=True):
    """What became of a command. `event` is what was recorded by it, and None where all was so already.

    `position` is the sequence of that event, or of the newest fact that the state was read from.
    """

    position: int
    state: S
    event: Event | None
    event_id: str | None = None


def client(token: str) -> Aggregate[Client | None]:
    """The aggregate of a client, by its subject token."""
    record, gate = subjects.client_record(token), subjects.client_gate(token)
    return Aggregate((record, gate), lambda facts: clients.evolve(_event(facts, record), _event(facts, gate)))


def holding(client_token: str, grant_token: str) -> Aggregate[Holding]:
    """The aggregate of a grant, with the client that holds it, by their subject tokens."""
    of_client = client(client_token)
    record, gate = subjects.grant_record(client_token, grant_token), subjects.grant_gate(client_token, grant_token)

    def evolve(facts: Facts) -> Holding:
        found: Grant | None = grants.evolve(_event(facts, record), _sequence(facts, record), _event(facts, gate))
        return Holding(client=of_client.evolve(facts), grant=found)

    return Aggregate((*of_client.subjects, record, gate), evolve)


def user(token: str) -> Aggregate[int]:
    """The aggregate of a user, by subject token: where in the log the last cut-off of all grants stands; 0: none."""
    gate = subjects.user_gate(token)
    return Aggregate((gate,), lambda facts: 0 if _event(facts, gate) is None else _sequence(facts, gate))


class Log:
    """The log, for writing. `jitter` gives a number in [0, 1) each time; `new_id` a UUIDv7."""

    def __init__(
        self, reader: LogReader, commit: GroupCommit, *, new_id: Callable[[], str], jitter: Callable[[], float]
    ) -> None:
        self.reader = reader
        self.only_gates = False
        """Set while the log is so full that what is left of it is kept for suspensions, deletions and revocations."""
        self.replaced: str | None = None
        """Why nothing is appended: the log is not the one, or no longer all of the one, that was written before."""
        self.clock_wrong: str | None = None
        """Why nothing is appended: this process's clock is not the log's, and cut-offs would end too little."""
        self.newest: tuple[int, str] = (0, "")
        """Where the newest event stands that was appended from here, and its id. A log without it is another log."""
        self._commit = commit
        self._new_id = new_id
        self._jitter = jitter

    async def load(self, aggregate: Aggregate[S], *, never_stale: bool = False) -> tuple[S, Facts]:
        """The aggregate's state, and the facts it was made of. `never_stale` asks the leader. Raises `Unavailable`."""
        read = self.reader.last_on_leader if never_stale else self.reader.last
        facts = {subject: raw.recorded() for subject, raw in (await read(aggregate.subjects)).items()}
        return aggregate.evolve(facts), facts

    async def transact(
        self, aggregate: Aggregate[S], decide: Callable[[S], Event | None], *, traceparent: str | None = None
    ) -> Receipt[S]:
        """Decide on the aggregate's state and record the outcome, until it holds.

        An append that was decided on stale state is caught by its expectation. A refusal or a "nothing to do" has no
        such guard, so it is decided once more on what the leader says before it is answered.

        Raises the decision's `Refusal`; `Contended`, `LogFull`, `Unavailable` and the `AppendFailed`s.
        """
        never_stale = False
        for tries in range(MAX_TRIES):
            state, facts = await self.load(aggregate, never_stale=never_stale)
            try:
                event = decide(state)
            except Refusal:
                if never_stale:
                    raise
                never_stale = True
                continue
            if event is None:
                if never_stale:
                    return Receipt(max((each.position for each in facts.values()), default=0), state, None)
                never_stale = True
                continue
            never_stale = False
            message = self._message(event, facts, traceparent)
            position = await self._append(message, event, since=_sequence(facts, message.subject))
            if position is not None:
                return Receipt(position, state, event, message.headers["ce-id"])
            await asyncio.sleep(self._jitter() * WAIT_SECONDS * (1 + tries / 4))
        message_ = f"others were faster {MAX_TRIES} times in a row"
        raise Contended(message_)

    async def record_new(self, event: Event, *, traceparent: str | None = None) -> int:
        """Record the first event of an aggregate whose id was just minted: there is nothing to load. Its position."""
        position = await self._append(self._message(event, {}, traceparent), event, since=0)
        if position is None:
            message = "an id that was just minted is taken"
            raise Contended(message)
        return position

    async def record_all(self, events: Sequence[Event]) -> list[int | None]:
        """Record events that each stand on a subject of their own that has none yet; None where it has one now."""
        appends = (self._append(self._message(each, {}, None), each, since=0) for each in events)
        return list(await asyncio.gather(*appends))

    async def record_together(self, events: Sequence[GrantRevoked]) -> int | None:
        """Record the ends of grants that have none yet, out of the way of what people record. Where the last stands.

        None when not all were recorded, or nobody knows: `record_all` finds out for each, and none is recorded twice.
        Raises `Contended` and the `AppendFailed`s.
        """
        self._refuse_where_wrong()
        # What an end expects of its gate, that there is nothing, is enough to keep it from being stored twice: ids for
        # the server to remember, for the whole duplicate window, would be hundreds of megabytes there.
        messages = [msgspec.structs.replace(self._message(each, {}, None), id="") for each in events]
        position = await self._commit.together(messages)
        if position is not None:
            self.newest = max(self.newest, (position, messages[-1].headers["ce-id"]))
        return position

    def _refuse_where_wrong(self) -> None:
        wrong = self.replaced or self.clock_wrong
        if wrong is not None:
            raise Halted(wrong)

    async def is_still_the_same(self) -> bool:
        """Whether the log has what was appended from here, as it stood. Raises `Unavailable`."""
        position, event_id = self.newest
        if not position:
            return True
        found = await self.reader.at_on_leader(position)
        return found is not None and (found.headers or {}).get("ce-id") == event_id

    async def _append(self, message: Message, event: Event, *, since: int) -> int | None:
        """Position of the stored message; None when another was faster. `since` is what its subject had before."""
        position = await self._stored(message, event, since=since)
        if position is not None:
            self.newest = max(self.newest, (position, message.headers["ce-id"]))
        return position

    async def _stored(self, message: Message, event: Event, *, since: int) -> int | None:
        self._refuse_where_wrong()
        if self.only_gates and not isinstance(
            event, ClientSuspended | ClientResumed | ClientDeleted | GrantRevoked | UserGrantsRevoked
        ):
            raise LogFull
        deadline = self._commit.time() + APPEND_WITHIN_SECONDS
        while self._commit.time() < deadline:
            try:
                stored = await self._commit.submit(message, before=deadline)
            except Stale:
                # One node answers so to a second try whose first was stored: ours may be there.
                return await self._read_back(message, since)
            except InFlight:
                found = await self._read_back(message, since)
                absorbs = isinstance(event, ClientDeleted) and event.by.kind != "agent"
                if found is None and absorbs and message.expected is not None:
                    # Deletion absorbs whatever else is said on the gate, and must not queue behind a busy client. Not
                    # so when the client itself asks: it may not leave a suspension that an admin is just recording.
                    message = Message(message.subject, message.headers, message.body, message.id, None)
                    continue
                return found
            except OutcomeUnknown:
                found = await self._read_back(message, since)
                if found is not None:
                    return found
                continue  # with the same ids: the server knows a second one for a duplicate
            except Full as error:
                self.only_gates = True  # what is left, if anything, is for gates; the watch looks again
                raise LogFull from error
            return await self._confirmed(message, stored)
        message_ = "the log did not say whether it stored the event"
        raise Contended(message_)

    async def _confirmed(self, message: Message, stored: Stored) -> int | None:
        """A duplicate is ours only when what stands there carries our event's id."""
        if not stored.duplicate:
            return stored.sequence
        original = await self.reader.at_on_leader(stored.sequence)
        ours = original is not None and (original.headers or {}).get("ce-id") == message.headers["ce-id"]
        return stored.sequence if ours else None

    async def _read_back(self, message: Message, since: int) -> int | None:
        """Where our own event stands, if it was stored. Another may have written after us: all since are looked at."""
        sequence = since
        for _ in range(MAX_READ_BACK):
            found = await self.reader.next_on_leader(message.subject, sequence + 1)
            if found is None:
                return None
            if (found.headers or {}).get("ce-id") == message.headers["ce-id"]:
                return found.sequence
            sequence = found.sequence
        return None

    def _message(self, event: Event, facts: Facts, traceparent: str | None) -> Message:
        """The event as it is appended: on which subject, under which id, expecting what. Literal subjects only."""
        event_id = self._new_id()
        outgoing = wire.encode(event, event_id=event_id, traceparent=traceparent)
        own = outgoing.subject

        def message(guard: str, message_id: str = event_id) -> Message:
            expected = Expected(guard, _sequence(facts, guard))
            return Message(own, outgoing.headers, outgoing.body, message_id, expected)

        match event:
            case ClientRegistered() | GrantRevoked():
                return message(own)
            case ClientSuspended() | ClientResumed() | ClientDeleted() | UserGrantsRevoked():
                return message(own)
            case ClientMetadataChanged():
                # Nothing is recorded about a client after its deletion; of two changes to one base the second is stale.
                token = subjects.token(event.client_id)
                return message(subjects.client_gate(token), f"metadata {token} {_sequence(facts, own)}")
            case GrantIssued():
                # The race that matters: after the client's deletion or suspension the store refuses this append,
                # whoever sends it. Its message id makes two instances unable to issue one grant id twice.
                token = subjects.token(event.client_id)
                return message(subjects.client_gate(token), f"issue {token} {subjects.token(event.grant_id)}")
            case GrantExtended():
                token = subjects.token(event.client_id)
                base = f"extend {token} {subjects.token(event.grant_id)} {_sequence(facts, own)}"
                return message(subjects.client_gate(token), base)
            case ActivityRecorded():
                raise TypeError("activity has a stream of its own")
            case _:
                assert_never(event)


def _sequence(facts: Facts, subject: str) -> int:
    fact = facts.get(subject)
    return 0 if fact is None else fact.position


def _event(facts: Facts, subject: str) -> Event | None:
    fact = facts.get(subject)
    if fact is None:
        return None
    if isinstance(fact.event, wire.Unknown):
        raise WrittenByNewer(fact.type)
    return fact.event
