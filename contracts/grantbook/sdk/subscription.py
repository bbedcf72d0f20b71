"""What a subscriber of the revocations tells of itself: to its own metrics, and in receipts to admins."""

import asyncio
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Final

from msgspec import Struct, structs
from nats.aio.client import Client
from nats.errors import Error as NatsError

from grantbook import receipts, subjects
from grantbook.receipts import MAX_RECENT, Receipt
from grantbook.sdk.log import REQUEST_SECONDS, LogReader, Raw, Unavailable

if TYPE_CHECKING:
    from grantbook.sdk.revocations import Revocations

MAX_SUBSCRIBERS: Final = 10_000
"""Most subscribers that are read at once; admins remove those that are gone for good."""
READ_SECONDS: Final = 2.0

TOGETHER_SECONDS: Final = 0.02
"""Applications within so long of each other are told as one, at the time of the last."""


class Observer:
    """Hears of what a metric may count. All of it does nothing; override what you want. None of it may block or raise.

    `grantbook.sdk.metrics` has one for Prometheus.
    """

    def watch(self, feed: "Revocations") -> None:
        """This is the feed that it hears of: told once, before all else."""

    def applied(self, revocations: int, delay_seconds: float) -> None:
        """So many were applied together, the newest so long after the log stored it (by this machine's clock)."""

    def loaded(self, revocations: int) -> None:
        """So many were read at the start, or after a restart: they are not new."""

    def state_changed(self, state: str) -> None:
        """`fresh` or `stale` now."""

    def restarted(self) -> None:
        """What is followed was replaced, or could not be followed further: it is read anew."""

    def answered_stale(self, *, denied: bool) -> None:
        """`is_revoked` was asked while not fresh, about a token that is not known to be revoked."""

    def troubled(self, trouble: str) -> None:
        """Something keeps the feed from being fresh, in words."""

    def receipt_failed(self, trouble: str) -> None:
        """A receipt could not be handed in, in words. Nobody is denied for that; admins see this subscriber silent."""


class Application(Struct, frozen=True):
    """What was applied together: behind one place in the log, up to another. Monotonic seconds."""

    after: int
    up_to: int
    began_at: float
    ended_at: float


class Applications:
    """When the latest revocations were applied, bounded. `due` is set when there is something to tell."""

    def __init__(self) -> None:
        self.due = asyncio.Event()
        self._latest: deque[Application] = deque(maxlen=MAX_RECENT)
        self._up_to = 0

    def begin(self, log_sequence: int) -> None:
        """What is in the log up to there was loaded: when it was applied says nothing of how fast it came."""
        self._latest.clear()
        self._up_to = log_sequence
        self.due.set()

    def add(self, log_sequence: int, now: float) -> None:
        """Everything up to this place in the log is applied, since `now`."""
        newest = self._latest[-1] if self._latest else None
        if newest is not None and now - newest.began_at <= TOGETHER_SECONDS:
            self._latest[-1] = Application(newest.after, log_sequence, newest.began_at, now)
        else:
            self._latest.append(Application(self._up_to, log_sequence, now, now))
        self._up_to = log_sequence
        self.due.set()

    def told_in(self, receipt: Receipt, now: float) -> Receipt:
        """The receipt with these in it."""
        recent = tuple((each.up_to, receipts.milliseconds(now - each.ended_at)) for each in reversed(self._latest))
        after = self._latest[0].after if self._latest else self._up_to
        return structs.replace(receipt, recent=recent, recent_after=after)


class Received(Struct, frozen=True):
    """A receipt, and when it was stored, by the server's clock (UTC)."""

    receipt: Receipt
    stored_at: datetime


class AllReceived(Struct, frozen=True):
    """The receipts of all subscribers that have not ended in good order, by name; or as many of them as are read."""

    received: list[Received]
    truncated: bool
    """There are more."""


async def put_receipt(connection: Client, receipt: Receipt) -> None:
    """Hand a receipt in. Raises `Unavailable`, also where this user may not write it."""
    await _write(connection, receipts.key(receipt.name, receipt.instance), receipts.encode(receipt), None)


async def take_receipt_away(connection: Client, name: str, instance: str) -> None:
    """A subscriber is no more, and nobody shall miss it. Raises `Unavailable`."""
    await _write(connection, receipts.key(name, instance), b"", receipts.FORGET_HEADERS)


async def read_receipt(connection: Client, name: str, instance: str) -> Receipt | None:
    """The last receipt of a subscriber, or what stands for one that cannot be read; None where there is none.

    Raises `Unavailable`.
    """
    bucket = subjects.SUBSCRIBERS
    subject = subjects.bucket_key(bucket, receipts.key(name, instance))
    found = (await LogReader(connection, subjects.bucket_stream(bucket)).last_on_leader([subject])).get(subject)
    return None if found is None else _receipt_in(found)


async def read_receipts(connection: Client) -> AllReceived:
    """The last receipts of all subscribers, at most `MAX_SUBSCRIBERS` of them. Raises `Unavailable`."""
    truncated = False
    found: dict[str, Received] = {}
    async with LogReader(connection, subjects.bucket_stream(subjects.SUBSCRIBERS)) as reader:
        state = await reader.state()
        if state.last == 0 or state.last < state.first:  # never written to, or empty again
            return AllReceived([], truncated)
        every = [subjects.bucket_subjects(subjects.SUBSCRIBERS)]
        async with reader.follow(0, every, last_per_subject=True) as follower:
            while not truncated:
                messages = await follower.next(READ_SECONDS)
                for each in messages:
                    # One comes again where it was replaced meanwhile, or the reading had to begin anew.
                    receipt = _receipt_in(each)
                    if receipt is None:
                        found.pop(each.subject, None)
                    else:
                        found[each.subject] = Received(receipt, each.stored_at)
                truncated = len(found) > MAX_SUBSCRIBERS
                if follower.pending == 0 or follower.after >= state.last:  # many report without a pause
                    break
                if not messages:
                    raise Unavailable(follower.trouble or f"the bucket {subjects.SUBSCRIBERS} cannot be read")
    received = sorted(found.values(), key=lambda each: (each.receipt.name, each.receipt.instance))
    return AllReceived(received[:MAX_SUBSCRIBERS], truncated)


def _receipt_in(message: Raw) -> Receipt | None:
    """The receipt in a message of the bucket. What cannot be read, or names another, hides nobody: see `unreadable`."""
    if "KV-Operation" in (message.headers or {}):
        return None
    at = message.subject.removeprefix(subjects.bucket_key(subjects.SUBSCRIBERS, "")).replace("=", "~")
    receipt = receipts.decode(message.data)
    if receipt is not None and receipts.key(receipt.name, receipt.instance) == at:
        return receipt
    return receipts.unreadable(at)


async def _write(connection: Client, key: str, value: bytes, headers: Mapping[str, str] | None) -> None:
    bucket = subjects.SUBSCRIBERS
    try:
        answer = await connection.request(
            subjects.bucket_key(bucket, key),
            value,
            timeout=REQUEST_SECONDS,
            headers=None if headers is None else dict(headers),
        )
    except (TimeoutError, NatsError, OSError) as error:
        message = f"the bucket {bucket} took no receipt: may this user write there?"
        raise Unavailable(message) from error
    if b'"error"' in answer.data:
        message = f"the bucket {bucket} refused a receipt: {answer.data.decode(errors='replace')}"
        raise Unavailable(message)
