"""What a token service asks before it honours a token: has its grant ended?

    async with RevocationFeed("nats://feed:...@nats:4222", timedelta(hours=1)) as feed:
        ...
        if feed.is_revoked(client_id, grant_id, user_id, token_issued_at):
            ...  # answer 401

The feed keeps in memory every revocation of the last `longest_token_lifetime`: whatever ended earlier has no living
token. It follows the stream `GRANTBOOK_REVOCATIONS` from there on, and knows how fresh it is. When it cannot prove
that it has heard of everything, it denies all tokens, unless told otherwise.

Its policy for events of types that it does not know, and for events that do not decode: whatever the subject names (a
client, a grant, a user) is denied, and the event is counted.

`grantbook.sdk.revocations_http` has the same for services that do not speak NATS.
"""

import asyncio
import contextlib
import math
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Final, Literal, Self, TypedDict, Unpack, get_args

from msgspec import structs
from nats.aio.client import Client
from nats.errors import Error as NatsError

from grantbook import positions, receipts, subjects
from grantbook.receipts import Receipt
from grantbook.sdk import clocks
from grantbook.sdk.connection import close, connect, refuse_unreadable
from grantbook.sdk.denials import APPENDED_WITHIN_SECONDS, Denials
from grantbook.sdk.log import Follower, Gap, LogReader, Raw, StreamState, Unavailable, place_in_log
from grantbook.sdk.reading import before
from grantbook.sdk.subscription import Applications, Observer, put_receipt, take_receipt_away
from grantbook.sdk.tasks import end, together

State = Literal["starting", "fresh", "stale"]
WhenStale = Literal["deny", "allow"]

MAX_STALENESS: Final = timedelta(seconds=5)
"""Default of how long the feed may go without proof that it has everything: a restart of a server fits in."""
CLOCK_SKEW: Final = timedelta(seconds=5)
"""Default of how far the clocks of the identity provider and of NATS may differ."""
MARGIN: Final = timedelta(seconds=60)
"""How much longer than the longest token lifetime a revocation is remembered."""
SOURCE_ACTIVE_SECONDS: Final = 3.0
"""A feed that has not heard from the log for longer may be frozen and look complete."""
SETTLE_SECONDS: Final = 3.0
"""A feed that is younger and empty may be one that was made anew, before its first message has come."""
CHECK_SECONDS: Final = 1.0
RECHECK_SECONDS: Final = 0.1
"""Between checks after one that proved nothing: while much is revoked at once, the feed is behind the log at most
moments, and has all of it at some."""
CATCH_UP_SECONDS: Final = 60.0
"""Default of how long entering waits until the feed is caught up."""
IN_FLIGHT_SECONDS: Final = 0.1
"""What was sent from the log to the feed has come by then, if the feed hears from the log at all."""
RECEIPT_SECONDS: Final = 0.1
"""Between two receipts, at least."""
_NEXT_SECONDS: Final = 0.25


class FeedUnavailable(Exception):
    """The feed could not be caught up in time. Says why."""


class Replaced(Exception):
    """What is followed is not what was followed, or lost what was applied: start anew."""


class Options(TypedDict, total=False):
    """What every feed may be told: see `Revocations`."""

    when_stale: "WhenStale | Callable[[Revocations], bool]"
    max_staleness: timedelta
    clock_skew: timedelta
    clock: Callable[[], datetime] | None
    on_trouble: Callable[[str], None] | None
    observer: Observer | None
    catch_up_seconds: float
    subscriber: str | None
    instance: str | None


class Revocations(ABC):
    """Knows in memory what was revoked. Open it with `async with`; entering waits until it is caught up.

    What `RevocationFeed` (over NATS) and `HttpRevocationFeed` (over HTTP) have in common.

    `longest_token_lifetime` is that of the tokens whose revocation matters: what ended earlier is not loaded, and a
    token that is older than it is denied, because the feed cannot know. `when_stale` says what `is_revoked` answers
    for tokens that are not known to be revoked while the feed is not fresh: `deny`, `allow`, or a function of the feed
    that decides, True to deny; it is called on each such question and must not block. `on_trouble` hears, in words, of
    what keeps the feed from being fresh; `observer` hears of all that a metric may count. Neither may block.

    With `subscriber`, the name of the token service, it puts receipts where admins see how far each subscriber is;
    `instance` tells its processes apart, and is the host's name and the process id unless it is given.

    Entering raises `FeedUnavailable` when the feed cannot be caught up within `catch_up_seconds`, and `ValueError`
    when tokens live longer than the feed keeps revocations.
    """

    def __init__(
        self,
        longest_token_lifetime: timedelta,
        *,
        when_stale: WhenStale | Callable[["Revocations"], bool] = "deny",
        max_staleness: timedelta = MAX_STALENESS,
        clock_skew: timedelta = CLOCK_SKEW,
        clock: Callable[[], datetime] | None = None,
        on_trouble: Callable[[str], None] | None = None,
        observer: Observer | None = None,
        catch_up_seconds: float = CATCH_UP_SECONDS,
        subscriber: str | None = None,
        instance: str | None = None,
    ) -> None:
        if not longest_token_lifetime > timedelta(0):
            raise ValueError("longest_token_lifetime is a positive timedelta")
        if not callable(when_stale) and when_stale not in get_args(WhenStale):
            raise ValueError(f"when_stale is one of {', '.join(get_args(WhenStale))}, or a function")
        for name in (subscriber, instance):
            if name is not None and not receipts.is_name(name):
                raise ValueError(f"{name!r} is no name for a subscriber: 1 to 64 letters, digits, dots, - and _")
        self._lifetime = longest_token_lifetime
        self._keep = longest_token_lifetime + MARGIN
        self._when_stale = when_stale
        self._max_staleness_seconds = max_staleness.total_seconds()
        self._skew_seconds = clock_skew.total_seconds()
        self._clock = _utc_now if clock is None else clock
        self._on_trouble = on_trouble
        self._observer = Observer() if observer is None else observer
        self._catch_up_seconds = catch_up_seconds
        self._subscriber = subscriber
        self._instance = instance or _this_process()
        self._denials = Denials(self._keep.total_seconds())
        self._building: Denials | None = None
        self._moved = asyncio.Event()
        self._caught_up = asyncio.Event()
        self._applications = Applications()
        self._fresh_at: float | None = None
        self._heard_at = -math.inf
        self._told: State = "starting"
        self._trouble: str | None = None
        self._log_identity: str | None = None
        self._log_sequence: int | None = None
        self._running: asyncio.Task[None] | None = None
        self._observer.watch(self)

    @property
    def state(self) -> State:
        """`starting` until it was caught up for the first time; then `fresh`, or `stale` while that is not proven."""
        if not self._caught_up.is_set():
            return "starting"
        return "fresh" if self.age <= self._max_staleness_seconds else "stale"

    @property
    def age(self) -> float:
        """Seconds since it was last proven to have everything. Infinite before the first proof."""
        return math.inf if self._fresh_at is None else clocks.now() - self._fresh_at

    @property
    def position(self) -> positions.Position | None:
        """Position in the log of the last event applied. None before one, or where the log may not be looked at."""
        if self._log_identity is None or self._log_sequence is None:
            return None
        return positions.Position("log", self._log_identity, self._log_sequence)

    @property
    def trouble(self) -> str | None:
        """Why it cannot be proven fresh at the moment, in words, or None."""
        return self._trouble

    @property
    def entries(self) -> int:
        """How many revocations are in memory."""
        return len(self._denials) + (0 if self._building is None else len(self._building))

    @property
    def unknown_events(self) -> int:
        """Events that this version does not understand. What they are about is denied; update the package."""
        return self._denials.unknown + (0 if self._building is None else self._building.unknown)

    def is_revoked(self, client_id: str, grant_id: str, user_id: str, token_issued_at: datetime | float | None) -> bool:
        """Whether a token must not be honoured. In memory, in constant time, never waits.

        `token_issued_at` is the token's `iat` (RFC 7519 section 4.1.6): seconds since 1970, or an aware datetime, or
        None where the token has none. Raises `ValueError` for a datetime without time zone.
        """
        if isinstance(token_issued_at, datetime):
            if token_issued_at.tzinfo is None:
                raise ValueError("token_issued_at needs a time zone")
            token_issued_at = token_issued_at.timestamp()
        stale = self.state != "fresh"
        if stale and self._when_stale == "deny":
            self._observer.answered_stale(denied=True)
            return True
        if token_issued_at is not None and token_issued_at < (self._clock() - self._keep).timestamp():
            return True
        asked = (
            subjects.token(client_id),
            subjects.token(grant_id),
            subjects.token(user_id),
            token_issued_at,
            self._skew_seconds,
        )
        if self._denials.denies(*asked) or (self._building is not None and self._building.denies(*asked)):
            return True
        if not stale:
            return False
        denied = callable(self._when_stale) and self._when_stale(self)
        self._observer.answered_stale(denied=denied)
        return denied

    async def wait_until(self, position: positions.Position | str, timeout_seconds: float) -> None:
        """Wait until everything that was revoked up to a position of the log is applied here.

        For a position that a revocation was answered with, that is as soon as it has come. For any other it may take
        some seconds more: until it is proven that nothing from before it is still on its way.

        Raises `FeedUnavailable` when that was not in time, or the feed is not open, and `positions.InvalidPosition`.
        """
        wanted = positions.parse(position) if isinstance(position, str) else position
        if wanted.kind != "log":
            raise positions.InvalidPosition("a position of the activity is no position of a revocation")
        if self._running is None:
            raise FeedUnavailable("the feed is not open")
        if self._log_identity is not None and self._log_identity != wanted.identity:
            raise FeedUnavailable(f"{wanted} is a position of another log")
        called_at = clocks.now()

        def reached() -> bool:
            return (self._log_sequence or 0) >= wanted.sequence or self._heard_at > called_at + IN_FLIGHT_SECONDS

        await self._wait_for(reached, timeout_seconds)

    async def wait_until_current(self, timeout_seconds: float) -> None:
        """Wait until all that was revoked before this call is applied here. Raises `FeedUnavailable`."""
        if self._running is None:
            raise FeedUnavailable("the feed is not open")
        called_at = clocks.now()
        await self._wait_for(lambda: self._heard_at > called_at + IN_FLIGHT_SECONDS, timeout_seconds)

    async def __aenter__(self) -> Self:
        waiting = None
        try:
            async with asyncio.timeout(self._catch_up_seconds):
                await self._open()
                self._running = asyncio.create_task(self._run(), name="grantbook revocations")
                waiting = asyncio.create_task(self._caught_up.wait())
                await asyncio.wait((self._running, waiting), return_when=asyncio.FIRST_COMPLETED)
                if self._running.done():
                    await self._running
        except BaseException as error:
            why = self._trouble
            await self._end()
            if isinstance(error, TimeoutError | NatsError | OSError):
                raise FeedUnavailable(why or f"cannot be reached: {str(error) or type(error).__name__}") from error
            raise
        finally:
            if waiting is not None:
                waiting.cancel()
        self._running.add_done_callback(self._ended)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    @abstractmethod
    async def _open(self) -> None:
        """Connect, or what there is to do before anything can be read."""

    @abstractmethod
    async def _follow(self) -> None:
        """Read and apply for as long as the task lives. Ends by itself only with what must not be tried again."""

    @abstractmethod
    async def _put_receipt(self, receipt: Receipt) -> None:
        """Hand a receipt in. Raises `Unavailable`."""

    @abstractmethod
    async def _take_receipt_away(self) -> None:
        """This subscriber ends in good order: nobody need miss it. Raises `Unavailable`."""

    @abstractmethod
    async def _close(self) -> None:
        """Let go of everything."""

    def _receipt(self) -> Receipt:
        receipt = Receipt(
            name=self._subscriber or "",
            instance=self._instance,
            state=self.state,
            age_ms=None if self._fresh_at is None else receipts.milliseconds(self.age),
            log=self._log_identity,
            log_sequence=self._log_sequence or 0,
        )
        return self._applications.told_in(receipt, clocks.now())

    async def _run(self) -> None:
        beside = [asyncio.create_task(self._watch(), name="grantbook revocations: watch")]
        if self._subscriber is not None:
            beside.append(asyncio.create_task(self._report_to_admins(), name="grantbook revocations: receipts"))
        try:
            await self._follow()
        finally:
            await end(*beside)

    async def _watch(self) -> None:
        """Tell the observer when the state changes: by time alone, too."""
        while True:
            if self.state != self._told:
                self._told = self.state
                self._observer.state_changed(self._told)
                self._applications.due.set()
            await asyncio.sleep(RECHECK_SECONDS)

    async def _report_to_admins(self) -> None:
        """Put a receipt whenever something was applied, and now and then beside. Trouble with it denies nobody."""
        due = self._applications.due
        while True:
            due.clear()
            try:
                await self._put_receipt(self._receipt())
            except Exception as error:  # noqa: BLE001  whatever it is, the next receipt may go
                self._observer.receipt_failed(str(error) or repr(error))
            await asyncio.sleep(RECEIPT_SECONDS)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(due.wait(), receipts.HEARTBEAT_SECONDS - RECEIPT_SECONDS)

    async def _wait_for(self, true: Callable[[], bool], timeout_seconds: float) -> None:
        try:
            async with asyncio.timeout(timeout_seconds):
                while not true():
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError as error:
            raise FeedUnavailable(self._trouble or "it was not reached in time") from error

    def _took(self, messages: int, newest: Raw, now: float) -> None:
        """Some messages were applied together, and are known to whoever waits."""
        self._moved.set()
        if self._building is not None:
            self._observer.loaded(messages)  # old ones: how long they took to come says nothing
            return
        if self._log_sequence is not None:
            self._applications.add(self._log_sequence, now)
        self._observer.applied(messages, max(0.0, (self._clock() - newest.stored_at).total_seconds()))

    def _proven(self, asked_at: float, heard_at: float) -> None:
        """Everything is applied that the log had at `heard_at`; it was asked at `asked_at`. Monotonic seconds."""
        if self._building is not None:
            self._denials, self._building = self._building, None
            self._applications.begin(self._log_sequence or 0)
        self._fresh_at = asked_at
        self._heard_at = max(self._heard_at, heard_at)
        self._caught_up.set()
        self._moved.set()

    def _restart(self, why: str) -> None:
        """What was followed is followed no longer. What is known stays denied until it is read anew."""
        self._fresh_at = None
        self._heard_at = -math.inf
        self._log_sequence = None
        self._observer.restarted()
        self._report(why)

    async def _end(self) -> None:
        running, self._running = self._running, None
        self._fresh_at = None
        if running is not None:
            await end(running)
            if self._subscriber is not None:
                with contextlib.suppress(Unavailable):
                    await self._take_receipt_away()
        await self._close()

    def _ended(self, running: asyncio.Task[None]) -> None:
        if not running.cancelled():
            self._fresh_at = None
            self._report(f"the feed ended: {running.exception()!r}")

    def _doubted(self, doubt: str | None) -> None:
        """Report it, if it lasts: while much is revoked at once there is one at most moments, and none at some."""
        if doubt is None or self.age > CHECK_SECONDS:
            self._report(doubt)

    def _report(self, trouble: str | None) -> None:
        if trouble != self._trouble and trouble is not None:
            self._observer.troubled(trouble)
            if self._on_trouble is not None:
                self._on_trouble(trouble)
        self._trouble = trouble


class RevocationFeed(Revocations):
    """Knows in memory what was revoked, from NATS: see `Revocations` for all that it takes and raises.

    `nats_url` may name several servers of one cluster, with commas between. One that cannot be read is a `ValueError`,
    which says so without any of it.
    """

    def __init__(self, nats_url: str, longest_token_lifetime: timedelta, **options: Unpack[Options]) -> None:
        super().__init__(longest_token_lifetime, **options)
        refuse_unreadable(nats_url)
        self._url = nats_url
        self._reads_from = -math.inf
        self._applied = 0
        self._starving = False
        self._feed_identity: str | None = None
        self._connection: Client | None = None

    async def _open(self) -> None:
        self._connection = await connect(self._url, name="grantbook-revocations", on_trouble=self._report)

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await close(connection)

    def _connected(self) -> Client:
        if self._connection is None or not self._connection.is_connected:
            raise Unavailable("not connected to NATS")
        return self._connection

    def _receipt(self) -> Receipt:
        return structs.replace(super()._receipt(), feed=self._feed_identity, feed_sequence=self._applied)

    async def _put_receipt(self, receipt: Receipt) -> None:
        await put_receipt(self._connected(), receipt)

    async def _take_receipt_away(self) -> None:
        await take_receipt_away(self._connected(), self._subscriber or "", self._instance)

    async def _follow(self) -> None:
        connection = self._connection
        assert connection is not None
        async with LogReader(connection, subjects.REVOCATIONS) as feed:
            while True:
                try:
                    state = await feed.state()
                    self._refuse_short_feed(state)
                    # By the server's time, which the messages have too: a clock of ours that is ahead would skip some.
                    after = await before(feed, state, state.now - self._keep)
                    self._reads_from = (state.now - self._keep).timestamp() - APPENDED_WITHIN_SECONDS
                except Unavailable as error:
                    self._report(str(error))
                    await asyncio.sleep(RECHECK_SECONDS)
                    continue
                # What was known stays in force until this stream is read: a restart never allows what was denied.
                self._building = Denials(self._keep.total_seconds())
                self._applied, self._feed_identity = after, state.identity
                try:
                    async with feed.follow(after) as follower:
                        await together(self._identify(connection), self._apply(follower), self._prove(feed, state))
                except (Replaced, Gap):  # whoever notices first: the proof, or the follower
                    self._restart("the feed was replaced: starting anew")
                    await asyncio.sleep(RECHECK_SECONDS)
                except Exception as unexpected:  # noqa: BLE001  whatever it is: what is known stays denied, and it goes on
                    self._restart(f"starting anew after {unexpected!r}")
                    await asyncio.sleep(RECHECK_SECONDS)

    def _refuse_short_feed(self, state: StreamState) -> None:
        if not 0 < state.max_age_seconds < self._lifetime.total_seconds():
            return
        kept = timedelta(seconds=state.max_age_seconds)
        message = f"tokens live for {self._lifetime}, but {state.name} keeps revocations for {kept} only"
        if not self._caught_up.is_set():
            raise ValueError(message)
        raise Unavailable(message)

    async def _apply(self, follower: Follower) -> None:
        while True:
            if self._starving:
                self._starving = False
                await follower.close()
            messages = await follower.next(_NEXT_SECONDS)
            denials = self._denials if self._building is None else self._building
            now = clocks.now()
            # Once it was proven complete, what comes is new: then no writer's clock makes it too old to count.
            decided_after = -math.inf if self._building is None else self._reads_from
            denials.forget(now)
            for each in messages:
                if each.sequence != self._applied + 1:
                    raise Replaced
                denials.apply(each, now, decided_after=decided_after)
                self._applied = each.sequence
                self._log_sequence = place_in_log(each) or self._log_sequence
            if messages:
                self._took(len(messages), messages[-1], now)

    async def _prove(self, feed: LogReader, followed: StreamState) -> None:
        while True:
            asked_at, applied = clocks.now(), self._applied
            doubt: str | None
            try:
                state = await feed.state()
            except Unavailable as error:
                doubt = str(error)
            else:
                if state.created != followed.created or state.last < applied:
                    raise Replaced
                doubt = doubt_of(state)
                if doubt is None and not await self._has_applied(state.last):
                    # A consumer that gives nothing although there is something starves. Another is made.
                    self._starving = self._applied == applied
                    doubt = f"behind: applied {self._applied} of {state.last} in {subjects.REVOCATIONS}"
                if doubt is None:
                    self._proven(asked_at, asked_at - heard_seconds_ago(state))
            self._doubted(doubt)
            pause = CHECK_SECONDS if doubt is None else RECHECK_SECONDS
            await asyncio.sleep(max(0.0, asked_at + pause - clocks.now()))

    async def _has_applied(self, last: int) -> bool:
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                while self._applied < last:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    async def _identify(self, connection: Client) -> None:
        """Learn the log's identity, for positions. A service that may read the feed alone goes without."""
        self._log_identity = None
        try:
            async with LogReader(connection, subjects.LOG) as log:
                self._log_identity = (await log.state()).identity
        except (Unavailable, NatsError):
            return


def doubt_of(state: StreamState) -> str | None:
    """Why a feed may lack something that the log has, or None. Its own last message proves nothing."""
    if not state.sources:
        return f"{state.name} has no source"
    if state.last == 0 and (state.now - state.created).total_seconds() < SETTLE_SECONDS:
        return f"{state.name} was made just now, and may not have begun to follow the log"
    for source in state.sources:
        if source.error is not None:
            return f"{state.name} cannot follow the log: {source.error}"
        if source.active_seconds is None or source.active_seconds > SOURCE_ACTIVE_SECONDS:
            return f"{state.name} does not hear from the log"
        if source.lag > 0:
            return f"{state.name} is {source.lag} messages behind the log"
    return None


def heard_seconds_ago(state: StreamState) -> float:
    """How long before the feed said so it had heard from the log; infinite where it has not."""
    return max(
        (math.inf if each.active_seconds is None else each.active_seconds for each in state.sources), default=0.0
    )


def _this_process() -> str:
    """The host's name and the process id, as far as a name may have them."""
    host = "".join(
        each if each.isascii() and (each.isalnum() or each in "._-") else "-" for each in socket.gethostname()
    )
    return f"{host[:50] or 'host'}-{os.getpid()}"


def _utc_now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251  the default for programs that are not ours; ours hand their clock in
