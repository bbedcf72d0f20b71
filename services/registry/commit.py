"""Group commit: what concurrent requests append goes to the server as one atomic batch, with one disk sync for all.

While one batch is in flight the next one gathers. A batch is all or nothing (ADR-50), so a refused batch is sent again
one message at a time: one stale command fails alone. One batch is in flight at a time, so appends about one client
never race each other from here.
"""

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from itertools import count
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import msgspec
import structlog
from msgspec import Struct
from nats.aio.client import Client
from nats.errors import Error as NatsError

MIN_BATCH_MESSAGES: Final = 6
"""Fewer go one by one, all in flight at once. A batch takes the server 1.4 ms and hardly more for what is in it, or
3.8 ms where it is put together on the disk; a message by itself 0.9 ms, and 0.3 for each beside it."""
SENT_AT_ONCE: Final = 16
"""Messages of a batch sent beside others that are handed to the client before other work here has its turn."""
MAX_BATCH_MESSAGES: Final = 200
MAX_BATCH_BYTES: Final = 4 * 1024 * 1024
MAX_MESSAGE_BYTES: Final = 900 * 1024
"""Just under what NATS takes in one message, 1 MiB, with room for headers."""
MAX_WAITING_MESSAGES: Final = 20_000
"""Past it an append is refused as busy at once: memory does not grow with what cannot be kept up with."""
ACKNOWLEDGE_SECONDS: Final = 5.0
"""Longer than a cluster takes to elect a leader, most of the time. After it the outcome is unknown."""
DRAIN_SECONDS: Final = 10.0
WAIT_SECONDS: Final = 20.0
"""Default of how long an append may wait to be sent: while a server is paused, nothing is sent that nobody wants any
more, or that was decided on a state of long ago."""

_WRONG_LAST_SEQUENCE: Final = 10_071
_IN_FLIGHT: Final = {10_164, 10_158}
_FULL: Final = {10_077, 10_023, 10_047}
"""Maximum bytes exceeded; insufficient resources; insufficient storage."""
_INCOMPLETE: Final = 10_176
"""The server could not put it together: the place where it does so is gone, or full. Some of that lasts for long."""
ALONE_SECONDS: Final = 10.0
"""After it nothing is sent as a batch for so long."""
_SENT_ALONE: Final = {10_071, 10_164, 10_158, _INCOMPLETE, 10_201, 10_077}
"""Refusals of a batch after which each message is worth a try of its own."""

_log = structlog.get_logger("registry")


class AppendFailed(Exception):
    """An append was not acknowledged."""


class Stale(AppendFailed):
    """The subject moved on since it was read: nothing was stored. Look again and decide again."""


class InFlight(AppendFailed):
    """Somebody else is appending to the same subject just now: nothing was stored. Wait a little."""


class Full(AppendFailed):
    """The stream takes no more: nothing was stored."""


class Busy(AppendFailed):
    """Too much waits already: nothing was sent."""


class OutcomeUnknown(AppendFailed):
    """No answer in time: it may be stored or not. Read back by id; never send again blindly."""


class Refused(AppendFailed):
    """The server refused for a reason that is not one of ours. Nothing was stored."""


class Expected(Struct, frozen=True):
    """The last sequence that a literal subject must have for an append to be stored; 0: none yet."""

    subject: str
    sequence: int


class Message(Struct, frozen=True):
    """Something to append. `id` makes a second try of it a duplicate, within the stream's duplicate window.

    Without one (empty) the server has nothing to remember. That is for what is not tried again, and what its
    expectation alone keeps from being stored twice.
    """

    subject: str
    headers: dict[str, str]
    body: bytes
    id: str
    expected: Expected | None


class Stored(Struct, frozen=True):
    """Where it stands. `duplicate`: a message with its id was there before, and need not be the same message."""

    sequence: int
    duplicate: bool = False


class GroupCommit:
    """Appends to one stream, in the event loop in which it is made.

    `async with` starts it and, at the end, finishes what it took.
    """

    def __init__(self, connection: Client, stream: str) -> None:
        self.stream = stream
        self._connection = connection
        self._waiting: deque[_Entry] = deque()
        self._wakeup = asyncio.Event()
        self._batches = count(1)
        self._batch_prefix = connection.new_inbox().rpartition(".")[2]
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        # Kept: to find out which loop runs is a system call, up to Python 3.11.
        self._loop: Final = asyncio.get_running_loop()
        self._alone_until = -math.inf

    async def __aenter__(self) -> Self:
        self._task = self._loop.create_task(self._run(), name=f"group commit {self.stream}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._wakeup.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=DRAIN_SECONDS)
            self._task.cancel()
        for entry in self._waiting:
            _fail(entry.answer, Busy("the registry is stopping"))

    def time(self) -> float:
        """The event loop's time, in seconds."""
        return self._loop.time()

    def submit(self, message: Message, *, before: float | None = None) -> asyncio.Future[Stored]:
        """Append a message. The future ends once it is on disk, or with an `AppendFailed`.

        It is sent `before` that `time`, or not at all, and `Busy`. Raises `Busy` and `Refused` at once.
        """
        if self._closing or len(self._waiting) >= MAX_WAITING_MESSAGES:
            raise Busy("the registry is stopping" if self._closing else "too many appends are waiting")
        if not self._connection.is_connected:
            # The client would keep it and send it whenever it is connected again: later than anybody waits for.
            message_ = "not connected to NATS"
            raise Busy(message_)
        if len(message.body) > MAX_MESSAGE_BYTES:
            too_large = f"{len(message.body)} bytes are more than the log takes in one event"
            raise Refused(too_large)
        answer: asyncio.Future[Stored] = self._loop.create_future()
        self._waiting.append(_Entry(message, answer, self.time() + WAIT_SECONDS if before is None else before))
        self._wakeup.set()
        return answer

    async def together(self, messages: Sequence[Message]) -> int | None:
        """Append messages at once, beside what waits here, which is sent meanwhile. The sequence of the last one.

        Many go as one atomic batch, a few each by itself. None when not all were stored, or nobody knows: look for
        each. Raises `Busy`, and for a batch `Full` and `Refused`: nothing was stored.
        """
        if self._closing or not self._connection.is_connected:
            message = "the registry is stopping, or not connected to NATS"
            raise Busy(message)
        try:
            if self._may_be_batch(messages):
                return await self._send_together(messages, at_once=SENT_AT_ONCE)
            stored = await asyncio.gather(
                *(self._request(each, _headers(each)) for each in messages), return_exceptions=True
            )
        except (_SendAlone, OutcomeUnknown):
            return None
        failed = [each for each in stored if isinstance(each, BaseException)]
        for each in failed:
            if not isinstance(each, AppendFailed):
                raise each
        return None if failed else max(each["seq"] for each in stored if not isinstance(each, BaseException))

    async def _run(self) -> None:
        while not (self._closing and not self._waiting):
            await self._wakeup.wait()
            self._wakeup.clear()
            while self._waiting:
                batch = self._gather()
                try:
                    await self._commit(batch)
                except Exception as error:  # noqa: BLE001  whatever it is, those that wait must hear of it
                    _log.exception("group commit failed", stream=self.stream)
                    for each in batch:
                        _fail(each.answer, OutcomeUnknown(f"unexpected {type(error).__name__}"))

    def _gather(self) -> list["_Entry"]:
        """What goes into the next batch: all that waits, in order, but for what depends on a write in the batch."""
        batch: list[_Entry] = []
        later: list[_Entry] = []
        written: set[str] = set()
        size = 0
        now = self.time()
        while self._waiting and len(batch) < MAX_BATCH_MESSAGES and size < MAX_BATCH_BYTES:
            entry = self._waiting.popleft()
            message = entry.message
            if not entry.is_wanted(now):
                continue
            if message.expected is not None and message.expected.subject in written:
                later.append(entry)
                continue
            batch.append(entry)
            written.add(message.subject)
            size += len(message.body)
        self._waiting.extendleft(reversed(later))
        return batch

    async def _commit(self, batch: Sequence["_Entry"]) -> None:
        if self._may_be_batch(batch):
            try:
                last = await self._send_together([each.message for each in batch])
            except _SendAlone:
                pass
            except AppendFailed as error:
                for each in batch:
                    _fail(each.answer, error)
                return
            else:
                for place, each in enumerate(batch, start=last - len(batch) + 1):
                    _succeed(each.answer, Stored(place))
                return
        # Those that look at one subject go in order, so that a cluster does not refuse them as in flight (10164).
        groups: dict[str, list[_Entry]] = {}
        for entry in batch:
            message = entry.message
            groups.setdefault(message.expected.subject if message.expected else message.subject, []).append(entry)
        await asyncio.gather(*(self._send_in_order(group) for group in groups.values()))

    def _may_be_batch(self, messages: Sequence[object]) -> bool:
        return len(messages) >= MIN_BATCH_MESSAGES and self.time() >= self._alone_until

    async def _send_in_order(self, group: Sequence["_Entry"]) -> None:
        for entry in group:
            if not entry.is_wanted(self.time()):  # it has waited for those before it
                continue
            try:
                acknowledged = await self._request(entry.message, _headers(entry.message))
            except AppendFailed as error:
                _fail(entry.answer, error)
            else:
                _succeed(entry.answer, Stored(acknowledged["seq"], bool(acknowledged.get("duplicate"))))

    async def _send_together(self, messages: Sequence[Message], *, at_once: int = MAX_BATCH_MESSAGES) -> int:
        """One atomic batch. The sequence of its last message. Raises `_SendAlone` when each is worth its own try."""
        batch_id = f"{self._batch_prefix}-{next(self._batches)}"
        *others, last = messages
        try:
            for number, message in enumerate(others, start=1):
                await self._connection.publish(
                    message.subject, message.body, headers=_headers(message) | _batch_headers(batch_id, number)
                )
                if number % at_once == 0:
                    await asyncio.sleep(0)
        except (NatsError, OSError) as error:
            # Without its commit a batch is forgotten by the server: nothing of it is ever stored.
            raise Busy(str(error) or "not connected to NATS") from error
        commit = _batch_headers(batch_id, len(messages)) | {"Nats-Batch-Commit": "1"}
        try:
            acknowledged = await self._request(last, _headers(last) | commit, together=True)
        except _Incomplete:
            _log.warning("nats-server can put no batch together", stream=self.stream, singly_for_seconds=ALONE_SECONDS)
            self._alone_until = self.time() + ALONE_SECONDS
            raise
        sequence: int = acknowledged["seq"]
        return sequence

    async def _request(self, message: Message, headers: dict[str, str], *, together: bool = False) -> dict[str, Any]:
        try:
            answer = await self._connection.request(
                message.subject, message.body, timeout=ACKNOWLEDGE_SECONDS, headers=headers
            )
            acknowledged: dict[str, Any] = msgspec.json.decode(answer.data)
        except (TimeoutError, NatsError, OSError, msgspec.MsgspecError) as error:
            raise OutcomeUnknown(str(error) or type(error).__name__) from error
        if "error" in acknowledged:
            _raise_for(acknowledged["error"], together=together)
        return acknowledged


class _Entry(Struct, frozen=True):
    """An append that waits, who waits for it, and until when it may be sent."""

    message: Message
    answer: asyncio.Future[Stored]
    before: float

    def is_wanted(self, now: float) -> bool:
        """Whether it is still to be sent. One whose time is over fails here."""
        if now > self.before and not self.answer.done():
            _fail(self.answer, Busy("the log took too long to take it"))
        return not self.answer.done()


class _SendAlone(AppendFailed):
    """A batch was refused for the sake of one of its messages."""


class _Incomplete(_SendAlone):
    """The server could not put a batch together."""


def _raise_for(error: dict[str, Any], *, together: bool) -> NoReturn:
    code, text = error.get("err_code"), str(error.get("description"))
    if together and code == _INCOMPLETE:
        raise _Incomplete(text)
    if together and code in _SENT_ALONE:
        raise _SendAlone(text)
    if code == _WRONG_LAST_SEQUENCE:
        raise Stale(text)
    if code in _IN_FLIGHT:
        raise InFlight(text)
    if code in _FULL:
        raise Full(text)
    raise Refused(f"{code}: {text}")


def _headers(message: Message) -> dict[str, str]:
    headers = dict(message.headers)
    if message.id:
        headers["Nats-Msg-Id"] = message.id
    if message.expected is not None:
        headers["Nats-Expected-Last-Subject-Sequence"] = str(message.expected.sequence)
        if message.expected.subject != message.subject:
            headers["Nats-Expected-Last-Subject-Sequence-Subject"] = message.expected.subject
    return headers


def _batch_headers(batch_id: str, number: int) -> dict[str, str]:
    return {"Nats-Batch-Id": batch_id, "Nats-Batch-Sequence": str(number)}


def _succeed(answer: asyncio.Future[Stored], stored: Stored) -> None:
    if not answer.done():
        answer.set_result(stored)


def _fail(answer: asyncio.Future[Stored], error: AppendFailed) -> None:
    if not answer.done():
        answer.set_exception(error)
