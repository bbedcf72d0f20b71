"""Delivery of one event stream: SETs made of what the feed hands out, until the receiver says that it has them.

By push (RFC 8935) a worker sends them, in the order of the feed for each subject of it, and many at once between
subjects: a client's suspension never comes after its resumption. What a receiver does not take is tried again, ever
less often, and holds up what is of the same subject alone; nothing is given up but a SET that its receiver refused, as
such, for hours.

By poll (RFC 8936) a worker keeps some in hand, and gives them out until they are acknowledged.

Nothing in hand is kept anywhere else: the feed's durable consumer has it all, and hands it out again to the next.
"""

import asyncio
import math
import ssl
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import httpx
import structlog
from msgspec import Struct
from prometheus_client import Counter

from grantbook import wire
from grantbook.sdk.log import Raw, Unavailable
from grantbook.sdk.tasks import together
from grantbook.sealed import CannotUnseal
from transmitter import push, sets
from transmitter.durable import Durable, Handed
from transmitter.identifiers import hears_of
from transmitter.keys import Signer
from transmitter.reach import Reach
from transmitter.sets import Parties
from transmitter.streams import Stream, Verification

MAX_PUSHES: Final = 16
"""Under way at once for one stream."""
WAIT_SECONDS: Final = 10.0
"""For the next message of the feed, before it is asked for again."""
RETRY_SECONDS: Final = 1.0
"""Before NATS is asked again, when it did not answer."""
MIN_BACKOFF_SECONDS: Final = 0.5
MAX_BACKOFF_SECONDS: Final = 60.0
"""Between two tries of a receiver that does not answer: when it is back, it knows of revocations a minute later."""
MAX_REFUSALS: Final = 5
REFUSED_SECONDS: Final = 6 * 3_600.0
"""A SET that its receiver refused, as such, so many times and for so long is given up; until then it comes again, ever
less often. One that it refuses for a reason of its own, like a key that it does not know, is never given up."""
MAX_UNPUSHED: Final = 512
"""SETs in hand that a receiver has not taken. While one is held up, those of other clients and grants are pushed."""
HELD_UP_SECONDS: Final = 0.25
"""Between two looks at what may be tried again, or is new, while something is held up."""
MAX_HELD: Final = 256
"""SETs in hand for a receiver that polls."""
MAX_POLLED: Final = 100
"""SETs in one answer to a poll."""

SETS: Final = Counter(
    "grantbook_ssf_sets",
    "Security event tokens: taken by their receivers, refused by them, failed to be pushed, given up.",
    ["outcome"],
)
NOT_UNDERSTOOD: Final = Counter(
    "grantbook_ssf_events_not_understood", "Events of the feed that this version does not know, and so tells nobody of."
)

_log = structlog.get_logger("transmitter")


class Tools(Struct, frozen=True):
    """What every delivery needs.

    `unseal` gives a stream's `Authorization`, or raises `CannotUnseal`; `jitter` gives a number from 0 to 1. `verified`
    says that a verification event of a stream was delivered, so that it is stored no longer.
    """

    signer: Signer
    parties: Parties
    reach: Reach
    tls: ssl.SSLContext
    unseal: Callable[[Stream], str | None]
    jitter: Callable[[], float]
    verified: Callable[[Stream, str], Awaitable[None]]


class _Refusals:
    """How often a SET was refused, and since when."""

    __slots__ = ("count", "since")

    def __init__(self) -> None:
        self.count = 0
        self.since = math.inf

    def once_more(self, now: float) -> bool:
        """Refused again, at a time of the event loop: whether it is to be given up."""
        self.count += 1
        self.since = min(self.since, now)
        return self.count >= MAX_REFUSALS and now - self.since >= REFUSED_SECONDS


class Token(Struct, frozen=True):
    """A signed SET and its `jti`."""

    jti: str
    text: str


def token_of(raw: Raw, stream: Stream, tools: Tools) -> Token | None:
    """The SET for a message of the feed; None where the stream does not hear of it."""
    try:
        position = wire.position_in_log((raw.headers or {}).get(wire.STREAM_SOURCE_HEADER, ""))
        recorded = wire.decode(raw.subject, raw.headers, raw.data, position=position, recorded_at=raw.stored_at)
    except wire.Malformed as error:
        # Nothing true can be said of it, and what is behind it must not wait. It is on the operator to look.
        _log.error("the feed has something that is no event of ours", feed_sequence=raw.sequence, why=str(error))
        NOT_UNDERSTOOD.inc()
        return None
    if isinstance(recorded.event, wire.Unknown):
        _log.error("an event of a newer version: update the transmitter", type=recorded.type, position=position)
        NOT_UNDERSTOOD.inc()
        return None
    claims = sets.claims_of(
        recorded,
        stream_id=stream.stream_id,
        audience=stream.owner,
        delivered=stream.events_delivered,
        parties=tools.parties,
    )
    if claims is None or not hears_of(stream.rules, claims["sub_id"]):
        return None
    return Token(claims["jti"], tools.signer.sign(claims))


def verification_token(verification: Verification, stream: Stream, tools: Tools) -> Token:
    """The SET of a verification event."""
    claims = sets.verification_claims(
        stream_id=stream.stream_id,
        audience=stream.owner,
        verification_id=verification.id,
        asked_at=verification.at,
        state=verification.state,
        issuer=tools.parties.issuer,
    )
    return Token(claims["jti"], tools.signer.sign(claims))


class Delivering:
    """A delivery at work: `run` it until it is cancelled. `stream` may be replaced as long as its delivery stays."""

    def __init__(self, stream: Stream, durable: Durable, tools: Tools) -> None:
        self.stream = stream
        self._after_seconds = 0.0
        """How long the receiver asked us to wait, in its last answer."""
        self.trouble: str | None = None
        """Why the receiver has not got what it should have, in words, or None."""
        self._durable = durable
        self._tools = tools

    async def run(self) -> None:
        """Deliver. Ends only by being cancelled."""
        raise NotImplementedError

    def replaced(self, stream: Stream) -> None:
        """The stream was changed, in something else than its delivery."""
        self.stream = stream

    def _backoff_seconds(self, failures: int) -> float:
        """Twice as long each time, of which half is chance: receivers that come back are not met by all at once."""
        longest = min(MAX_BACKOFF_SECONDS, MIN_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 10))
        return max(longest * (0.5 + 0.5 * self._tools.jitter()), self._after_seconds)

    async def _forever(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except Unavailable as error:
                _log.warning("delivery waits for NATS", stream=self.stream.stream_id, reason=str(error))
            except Exception:  # noqa: BLE001  whatever is wrong with one SET, the stream is not given up
                _log.exception("delivery failed", stream=self.stream.stream_id)
            await asyncio.sleep(RETRY_SECONDS)


class _InHand:
    """A message of the feed that the receiver has not got yet, and where to acknowledge it."""

    __slots__ = ("raw", "reply")

    def __init__(self, handed: Handed) -> None:
        self.raw = handed.raw
        self.reply = handed.reply


class _Line:
    """What is of one subject, in order, and when it is tried next, by the event loop's clock."""

    __slots__ = ("failures", "not_before", "subject", "waiting")

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.waiting: deque[_InHand] = deque()
        self.failures = 0
        self.not_before = 0.0


def _due(lines: Mapping[str, _Line], now: float) -> list[_Line]:
    """The lines whose time has come, those that waited longest first; and so what was never tried before all."""
    return sorted((each for each in lines.values() if each.not_before <= now), key=lambda each: each.not_before)


def _place(handed: Handed, lines: dict[str, _Line], in_hand: dict[int, _InHand]) -> None:
    known = in_hand.get(handed.raw.sequence)
    if known is not None:  # the server missed its acknowledgement, and hands it out again
        known.reply = handed.reply
        return
    fresh = in_hand[handed.raw.sequence] = _InHand(handed)
    subject = handed.raw.subject
    lines.setdefault(subject, _Line(subject)).waiting.append(fresh)


class Pushing(Delivering):
    """Delivery by push."""

    def __init__(self, stream: Stream, durable: Durable, tools: Tools) -> None:
        super().__init__(stream, durable, tools)
        self._refusals: dict[str, _Refusals] = {}
        self._asked = asyncio.Event()
        self._asked.set()

    async def run(self) -> None:
        """Push what the feed hands out, and beside it verification events, which wait for nothing."""
        async with push.opened_client(self._tools.tls) as client:
            await together(
                self._forever(lambda: self._push_feed(client)),
                self._forever(lambda: self._push_verifications(client)),
            )

    def replaced(self, stream: Stream) -> None:
        """The stream was changed: perhaps a verification was asked for."""
        super().replaced(stream)
        self._asked.set()

    async def _push_feed(self, client: httpx.AsyncClient) -> None:
        """What is of one subject goes in order; what cannot be brought to the receiver holds up nothing else."""
        loop = asyncio.get_running_loop()
        await self._durable.open()
        lines: dict[str, _Line] = {}
        in_hand: dict[int, _InHand] = {}
        barren = False
        while True:
            due = _due(lines, loop.time())
            if room := MAX_UNPUSHED - len(in_hand):
                seconds = 0.0 if lines else WAIT_SECONDS
                for each in await self._durable.pull(min(room, MAX_PUSHES), seconds):
                    _place(each, lines, in_hand)
                due = _due(lines, loop.time())
            # A receiver that takes nothing is not tried with all at once.
            tried = due[: 1 if barren else MAX_PUSHES]
            before = len(in_hand)
            for outcome in await asyncio.gather(
                *(self._push_line(client, line, in_hand) for line in tried), return_exceptions=True
            ):
                if outcome is not None:
                    raise outcome
            for line in tried:
                if line.waiting:
                    line.failures += 1
                    line.not_before = loop.time() + self._backoff_seconds(line.failures)
                else:
                    del lines[line.subject]
            barren = bool(tried) and len(in_hand) == before
            if lines and (barren or not tried):
                await asyncio.sleep(HELD_UP_SECONDS)

    async def _push_line(self, client: httpx.AsyncClient, line: "_Line", in_hand: "dict[int, _InHand]") -> None:
        """Push what is of one subject, one after the other, up to the first that does not get through."""
        while line.waiting:
            first = line.waiting[0]
            token = token_of(first.raw, self.stream, self._tools)
            if token is not None and not await self._push(client, token):
                return
            await self._durable.acknowledge(first.reply)
            line.waiting.popleft()
            line.failures = 0
            del in_hand[first.raw.sequence]

    async def _push_verifications(self, client: httpx.AsyncClient) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            failures = 0
            while self.stream.verifications:
                verification = self.stream.verifications[0]
                if await self._push(client, verification_token(verification, self.stream, self._tools)):
                    await self._tools.verified(self.stream, verification.id)
                    break  # what is left comes back from the bucket
                failures += 1
                await asyncio.sleep(self._backoff_seconds(failures))

    async def _push(self, client: httpx.AsyncClient, token: Token) -> bool:
        """Whether the receiver is done with a SET: took it, or refused it once too often."""
        url = self.stream.delivery.endpoint_url or ""
        try:
            authorization = self._tools.unseal(self.stream)
        except CannotUnseal:
            answer = push.Answer("failed", "the receiver's secret was sealed with another key than ours")
        else:
            answer = await push.push(client, self._tools.reach, url, token.text, authorization=authorization)
        SETS.labels(answer.outcome).inc()
        self._after_seconds = answer.after_seconds
        if answer.outcome == "taken":
            if self.trouble is not None:
                _log.info("the receiver takes SETs again", stream=self.stream.stream_id)
            self.trouble = None
            self._refusals.pop(token.jti, None)
            return True
        if self.trouble != answer.why:
            _log.warning("a SET did not get through", stream=self.stream.stream_id, jti=token.jti, why=answer.why)
        self.trouble = answer.why
        return answer.outcome == "refused" and self._refused_too_often(token.jti)

    def _refused_too_often(self, jti: str) -> bool:
        refusals = self._refusals.setdefault(jti, _Refusals())
        if not refusals.once_more(asyncio.get_running_loop().time()):
            return False
        del self._refusals[jti]
        _log.error("a SET is given up: its receiver refuses it", stream=self.stream.stream_id, jti=jti)
        SETS.labels("given_up").inc()
        return True


class _Held:
    """A SET in the hand of a receiver that polls, and when it may be given out again, by the event loop's clock."""

    __slots__ = ("not_before", "refusals", "reply", "token")

    def __init__(self, token: Token, reply: str) -> None:
        self.token = token
        self.reply = reply
        self.refusals = _Refusals()
        self.not_before = 0.0


class Polled(Struct, frozen=True):
    """What a poll is answered with: SETs by `jti`, in order, and whether there are more."""

    sets: dict[str, str]
    more: bool


class Polling(Delivering):
    """Delivery by poll."""

    def __init__(self, stream: Stream, durable: Durable, tools: Tools) -> None:
        super().__init__(stream, durable, tools)
        self.moved: Final = asyncio.Event()
        """Set when there is something new to give out."""
        self.filled: Final = asyncio.Event()
        """Set once what the feed had at the start is in hand: before, what is acknowledged may not be known yet."""
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._room = asyncio.Event()

    async def run(self) -> None:
        """Keep in hand what the feed hands out."""
        await self._forever(self._hold)

    def replaced(self, stream: Stream) -> None:
        """The stream was changed: perhaps a verification was asked for."""
        super().replaced(stream)
        self.moved.set()

    def give(self, most: int) -> Polled:
        """At most so many SETs, the oldest first: those that were given out before and not acknowledged, too."""
        asked = [verification_token(each, self.stream, self._tools) for each in self.stream.verifications]
        now = asyncio.get_running_loop().time()
        every = [*asked, *(each.token for each in self._held.values() if each.not_before <= now)]
        self.moved.clear()
        return Polled({each.jti: each.text for each in every[:most]}, more=len(every) > most)

    async def acknowledge(self, taken: Sequence[str], refused: Mapping[str, str]) -> None:
        """The receiver has these, and refuses those, each with an error (RFC 8936 sections 2.4.2 to 2.4.4).

        Raises `Unavailable`. What is refused comes again, ever less often, until it was refused for long as such.

        What is not in hand is ignored: it was acknowledged before, or will be given out again.
        """
        done = [jti for jti in taken if jti in self._held]
        verifications = {sets.jti_of(self.stream.stream_id, each.id): each.id for each in self.stream.verifications}
        loop = asyncio.get_running_loop()
        for jti, error in refused.items():
            held = self._held.get(jti)
            SETS.labels("refused").inc()
            if held is None:
                continue
            if held.refusals.once_more(loop.time()) and error not in push.NOT_OF_THE_SET:
                _log.error("a SET is given up: its receiver refuses it", stream=self.stream.stream_id, jti=jti)
                SETS.labels("given_up").inc()
                done.append(jti)
            else:
                seconds = self._backoff_seconds(held.refusals.count)
                held.not_before = loop.time() + seconds
                loop.call_later(seconds, self.moved.set)  # for a poll that waits
        SETS.labels("taken").inc(len(set(taken) & (set(self._held) | set(verifications))))
        await asyncio.gather(*(self._durable.acknowledge(self._held[jti].reply) for jti in dict.fromkeys(done)))
        for jti in done:
            self._held.pop(jti, None)
        self._room.set()
        # A verification that came out wrong is over, too: the receiver that asked for it asks again.
        for jti in dict.fromkeys([*taken, *refused]):
            if jti in verifications:
                await self._tools.verified(self.stream, verifications[jti])

    async def _hold(self) -> None:
        await self._durable.open()
        # What was in hand is handed out again, and takes the place of what it was.
        seconds = 0.0
        while True:
            room = MAX_HELD - len(self._held)
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            for each in await self._durable.pull(room, seconds):
                await self._take(each)
            seconds = WAIT_SECONDS
            self.filled.set()

    async def _take(self, handed: Handed) -> None:
        token = token_of(handed.raw, self.stream, self._tools)
        if token is None:
            await self._durable.acknowledge(handed.reply)
        elif token.jti in self._held:
            self._held[token.jti].reply = handed.reply
        else:
            self._held[token.jti] = _Held(token, handed.reply)
            self.moved.set()


def delivering(stream: Stream, durable: Durable, tools: Tools) -> Pushing | Polling:
    """The delivery that a stream asks for."""
    kind = Polling if stream.delivery.endpoint_url is None else Pushing
    return kind(stream, durable, tools)


def what_it_is(stream: Stream) -> tuple[Any, ...]:
    """What a delivery is made of: when that changes, it ends, and another begins."""
    return (stream.status, stream.delivery, stream.start_at)
