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
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Final, Literal, Self, assert_never, get_args

from nats.aio.client import Client
from nats.errors import Error as NatsError

from grantbook import positions, subjects, wire
from grantbook.events import (
    ActivityRecorded,
    ClientDeleted,
    ClientMetadataChanged,
    ClientRegistered,
    ClientResumed,
    ClientSuspended,
    GrantExtended,
    GrantIssued,
    GrantRevoked,
    UserGrantsRevoked,
)
from grantbook.sdk.connection import close, connect
from grantbook.sdk.log import Follower, LogReader, Raw, StreamState, Unavailable
from grantbook.sdk.reading import before
from grantbook.sdk.tasks import end

State = Literal["starting", "fresh", "stale"]
WhenStale = Literal["deny", "allow"]

MAX_STALENESS: Final = timedelta(seconds=5)
"""Default of how long the feed may go without proof that it has everything: a restart of a server fits in."""
CLOCK_SKEW: Final = timedelta(seconds=5)
"""Default of how far the clocks of the identity provider and of NATS may differ."""
MARGIN: Final = timedelta(seconds=60)
"""How much longer than the longest token lifetime a revocation is remembered."""
APPENDED_WITHIN_SECONDS: Final = 900.0
"""No event is stored later than this after it was decided: its writer gives up after 20 s, and a server that was paused
with the event on its way is not paused for so long."""
SOURCE_ACTIVE_SECONDS: Final = 3.0
"""A feed that has not heard from the log for longer may be frozen and look complete."""
SETTLE_SECONDS: Final = 3.0
"""A feed that is younger and empty may be one that was made anew, before its first message has come."""
CHECK_SECONDS: Final = 1.0
RECHECK_SECONDS: Final = 0.1
"""Between checks while the feed is not fresh."""
CATCH_UP_SECONDS: Final = 60.0
"""Default of how long entering waits until the feed is caught up."""
_NEXT_SECONDS: Final = 0.25

_Denied = tuple[Literal["deleted", "suspended", "grant", "user"], str, str]


class FeedUnavailable(Exception):
    """The feed could not be caught up in time. Says why."""


class _Replaced(Exception):
    """The stream is not the one that was followed, or lost what was applied: start anew."""


class Denials:
    """What is denied, by subject token. In memory, bounded by what was heard of within `keep_seconds`.

    Everything leaves so long after it was heard of, by a clock that never jumps: what was revoked earlier leaves later
    than it must, and never too early. Tokens of a deleted client, of a revoked grant or from before a user's cut-off
    have expired by then. So have a suspended client's: those from before the suspension, for none is issued during it.
    What was not understood never leaves: nobody knows what it ended, and for how long.
    """

    def __init__(self, keep_seconds: float) -> None:
        self._keep_seconds = keep_seconds
        self._since: dict[_Denied, float] = {}
        self._cutoffs: dict[str, float] = {}
        self._oldest: deque[tuple[float, _Denied]] = deque()
        self.unknown = 0
        """Events that were not understood, and so denied what they are about."""

    def __len__(self) -> int:
        return len(self._since)

    def denies(self, client: str, grant: str, user: str, issued_at: float | None, skew_seconds: float) -> bool:
        """Whether tokens of these, given as subject tokens, issued at a POSIX time, are denied. Constant time."""
        since = self._since
        if ("deleted", client, "") in since or ("suspended", client, "") in since or ("grant", client, grant) in since:
            return True
        cutoff = self._cutoffs.get(user)
        # Written so that a time that is no number (NaN) is denied.
        return cutoff is not None and (issued_at is None or not issued_at > cutoff + skew_seconds)

    def apply(self, raw: Raw, now: float, *, decided_after: float = -math.inf) -> None:
        """Take a message of the feed into account, heard of `now`, in monotonic seconds; forget what is too old.

        What was decided before a POSIX time is passed over: for reading a feed that was made anew, which has all of
        the log.
        """
        self.forget(now)
        cutoff = raw.stored_at.timestamp()
        try:
            event = raw.recorded().event
        except wire.Malformed:
            self._deny_subject(raw.subject)
            return
        if not isinstance(event, wire.Unknown) and event.at.timestamp() < decided_after:
            return
        match event:
            case ClientDeleted():
                self._deny(("deleted", subjects.token(event.client_id), ""), now)
            case ClientSuspended():
                self._deny(("suspended", subjects.token(event.client_id), ""), now)
            case ClientResumed():
                self._since.pop(("suspended", subjects.token(event.client_id), ""), None)
            case GrantRevoked():
                self._deny(("grant", subjects.token(event.client_id), subjects.token(event.grant_id)), now)
            case UserGrantsRevoked():
                # A feed that was made anew stores old events at the time of that. The log itself stored them, and so
                # ended what they end, no later than APPENDED_WITHIN_SECONDS after they were decided.
                cutoff = min(cutoff, event.at.timestamp() + APPENDED_WITHIN_SECONDS)
                self._cut_off(event.user_key, cutoff, now)
            case (
                wire.Unknown()
                | ClientRegistered()
                | ClientMetadataChanged()
                | GrantIssued()
                | GrantExtended()
                | ActivityRecorded()
            ):
                # The known ones stand on no gate: the feed has them only when somebody changed what it is made of.
                self._deny_subject(raw.subject)
            case _:
                assert_never(event)

    def forget(self, now: float) -> None:
        """Let go of what was heard of so long before `now`, in monotonic seconds, that no token of it lives."""
        while self._oldest and self._oldest[0][0] + self._keep_seconds < now:
            since, what = self._oldest.popleft()
            if self._since.get(what) == since:
                del self._since[what]
                if what[0] == "user":
                    del self._cutoffs[what[1]]

    def _deny_subject(self, subject: str) -> None:
        self.unknown += 1
        client, grant = subjects.client_token_of(subject), subjects.grant_token_of(subject)
        user = subjects.user_token_of(subject)
        if client is not None and grant is not None:
            self._since[("grant", client, grant)] = math.inf
        elif client is not None:
            self._since[("suspended", client, "")] = math.inf
        elif user is not None:
            self._since[("user", user, "")] = math.inf
            self._cutoffs[user] = math.inf

    def _cut_off(self, user: str, cutoff: float, now: float) -> None:
        self._deny(("user", user, ""), now)
        # Never back: a later cut-off by a writer whose clock is behind ends no less than the one before.
        self._cutoffs[user] = max(cutoff, self._cutoffs.get(user, cutoff))

    def _deny(self, what: _Denied, now: float) -> None:
        if self._since.get(what) != math.inf:
            self._since[what] = now
            self._oldest.append((now, what))


class RevocationFeed:
    """Knows in memory what was revoked. Open it with `async with`; entering waits until it is caught up.

    `longest_token_lifetime` is that of the tokens whose revocation matters: what ended earlier is not loaded, and a
    token that is older than it is denied, because the feed cannot know. `when_stale` says what `is_revoked` answers
    for tokens that are not known to be revoked while the feed is not fresh. `on_trouble` hears, in words, of what
    keeps the feed from being fresh; it must not block.

    Entering raises `FeedUnavailable` when the feed cannot be caught up within `catch_up_seconds`, and `ValueError`
    when tokens live longer than the feed keeps revocations.
    """

    def __init__(
        self,
        nats_url: str,
        longest_token_lifetime: timedelta,
        *,
        when_stale: WhenStale = "deny",
        max_staleness: timedelta = MAX_STALENESS,
        clock_skew: timedelta = CLOCK_SKEW,
        clock: Callable[[], datetime] | None = None,
        on_trouble: Callable[[str], None] | None = None,
        catch_up_seconds: float = CATCH_UP_SECONDS,
    ) -> None:
        if longest_token_lifetime <= timedelta(0):
            raise ValueError("the longest token lifetime must be positive")
        if when_stale not in get_args(WhenStale):
            raise ValueError(f"when_stale is one of {', '.join(get_args(WhenStale))}")
        self._url = nats_url
        self._lifetime = longest_token_lifetime
        self._keep = longest_token_lifetime + MARGIN
        self._deny_when_stale = when_stale == "deny"
        self._max_staleness_seconds = max_staleness.total_seconds()
        self._skew_seconds = clock_skew.total_seconds()
        self._clock = _utc_now if clock is None else clock
        self._on_trouble = on_trouble
        self._catch_up_seconds = catch_up_seconds
        self._denials = Denials(self._keep.total_seconds())
        self._building: Denials | None = None
        self._reads_from = -math.inf
        self._applied = 0
        self._moved = asyncio.Event()
        self._caught_up = asyncio.Event()
        self._starving = False
        self._fresh_at: float | None = None
        self._trouble: str | None = None
        self._log_identity: str | None = None
        self._log_sequence: int | None = None
        self._connection: Client | None = None
        self._following: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        """`starting` until it was caught up for the first time; then `fresh`, or `stale` while that is not proven."""
        if not self._caught_up.is_set():
            return "starting"
        return "fresh" if self.age <= self._max_staleness_seconds else "stale"

    @property
    def age(self) -> float:
        """Seconds since it was last proven to have everything. Infinite before the first proof."""
        return math.inf if self._fresh_at is None else time.monotonic() - self._fresh_at

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
        if self._deny_when_stale and self.state != "fresh":
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
        return self._denials.denies(*asked) or (self._building is not None and self._building.denies(*asked))

    async def wait_until_current(self, timeout_seconds: float) -> None:
        """Wait until everything that the feed has now is applied here. Raises `FeedUnavailable`."""
        if self._connection is None:
            raise FeedUnavailable("the feed is not open")
        try:
            async with asyncio.timeout(timeout_seconds), LogReader(self._connection, subjects.REVOCATIONS) as feed:
                last = (await feed.state()).last
                while self._applied < last:
                    self._moved.clear()
                    await self._moved.wait()
        except (TimeoutError, Unavailable, NatsError) as error:
            raise FeedUnavailable(self._trouble or str(error) or "the feed has more than was applied") from error

    async def __aenter__(self) -> Self:
        waiting = None
        try:
            async with asyncio.timeout(self._catch_up_seconds):
                self._connection = await connect(self._url, name="grantbook-revocations", on_trouble=self._report)
                self._following = asyncio.create_task(self._follow(self._connection), name="grantbook revocations")
                waiting = asyncio.create_task(self._caught_up.wait())
                await asyncio.wait((self._following, waiting), return_when=asyncio.FIRST_COMPLETED)
                if self._following.done():
                    await self._following
        except BaseException as error:
            why = self._trouble
            await self._close()
            if isinstance(error, TimeoutError | NatsError | OSError):
                raise FeedUnavailable(why or f"cannot reach NATS: {str(error) or type(error).__name__}") from error
            raise
        finally:
            if waiting is not None:
                waiting.cancel()
        self._following.add_done_callback(self._ended)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        following, self._following = self._following, None
        connection, self._connection = self._connection, None
        self._fresh_at = None
        if following is not None:
            await end(following)
        if connection is not None:
            await close(connection)

    def _ended(self, following: asyncio.Task[None]) -> None:
        if not following.cancelled():
            self._fresh_at = None
            self._report(f"the feed ended: {following.exception()!r}")

    def _report(self, trouble: str | None) -> None:
        if trouble != self._trouble and trouble is not None and self._on_trouble is not None:
            self._on_trouble(trouble)
        self._trouble = trouble

    async def _follow(self, connection: Client) -> None:
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
                self._applied = after
                try:
                    async with feed.follow(after) as follower, asyncio.TaskGroup() as tasks:
                        tasks.create_task(self._identify(connection))
                        tasks.create_task(self._apply(follower))
                        tasks.create_task(self._prove(feed, state))
                except* _Replaced:
                    self._fresh_at = None
                    self._report("the feed was replaced: starting anew")
                    await asyncio.sleep(RECHECK_SECONDS)
                except* Exception as unexpected:  # noqa: BLE001  whatever it is: what is known stays denied, and it goes on
                    self._fresh_at = None
                    self._report(f"starting anew after {unexpected.exceptions[0]!r}")
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
            now = time.monotonic()
            # Once it was proven complete, what comes is new: then no writer's clock makes it too old to count.
            decided_after = -math.inf if self._building is None else self._reads_from
            for each in messages:
                if each.sequence != self._applied + 1:
                    raise _Replaced
                denials.apply(each, now, decided_after=decided_after)
                self._applied = each.sequence
                self._log_sequence = _log_sequence(each) or self._log_sequence
            if messages:
                self._moved.set()
            else:
                denials.forget(now)

    async def _prove(self, feed: LogReader, followed: StreamState) -> None:
        while True:
            asked_at, applied = time.monotonic(), self._applied
            try:
                state = await feed.state()
            except Unavailable as error:
                self._report(str(error))
            else:
                if state.created != followed.created or state.last < applied:
                    raise _Replaced
                doubt = _doubt(state)
                if doubt is None and not await self._has_applied(state.last):
                    # A consumer that gives nothing although there is something starves. Another is made.
                    self._starving = self._applied == applied
                    doubt = f"behind: applied {self._applied} of {state.last} in {subjects.REVOCATIONS}"
                if doubt is None:
                    if self._building is not None:
                        self._denials, self._building = self._building, None
                    self._fresh_at = asked_at
                    self._caught_up.set()
                self._report(doubt)
            pause = CHECK_SECONDS if self.state == "fresh" else RECHECK_SECONDS
            await asyncio.sleep(max(0.0, asked_at + pause - time.monotonic()))

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


def _doubt(state: StreamState) -> str | None:
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


def _log_sequence(raw: Raw) -> int | None:
    try:
        return wire.position_in_log((raw.headers or {}).get(wire.STREAM_SOURCE_HEADER, ""))
    except wire.Malformed:
        return None


def _utc_now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251  the default for programs that are not ours; ours hand their clock in
