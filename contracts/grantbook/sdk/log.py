"""The one reader of the streams: last messages of subjects, one message, and following from a position on.

Three kinds of read, by what they may cost and what they guarantee:

- `last` is one direct get for many subjects (ADR-31, `multi_last`). In a cluster a follower may answer, a few
  milliseconds behind: good enough to decide on, because an append states what it expects.
- `last_on_leader`, `at_on_leader` and `next_on_leader` ask the stream's leader: for answers that no append guards,
  refusals, "nothing to do", and lookups that must never be stale.
- `Follower` pulls from a position on with a throw-away consumer and without acknowledgements. It checks that nothing
  is missing, and makes its consumer anew when it falls silent.
"""

import asyncio
import base64
import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, Final, Self

import msgspec
from msgspec import Struct
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError

from grantbook import positions, wire
from grantbook.sdk import arrivals
from grantbook.sdk.arrivals import Headers
from grantbook.sdk.tasks import end

REQUEST_SECONDS: Final = 2.0
FILTERED_SECONDS: Final = 10.0
"""For a consumer with a filter: the server counts what it has for it first, a tenth of a second for a million subjects.
Given up sooner, it would be asked for again and again, and never be made."""
MAX_SUBJECTS: Final = 1_024
"""Most subjects in one `multi_last`: the server answers 413 past it."""
PULL_MESSAGES: Final = 1_000
PULL_BYTES: Final = 8 * 1024 * 1024
"""Of one pull, which ends before: a thousand registrations may be as large as each may be."""
PULL_SECONDS: Final = 30
HEARTBEAT_SECONDS: Final = 1.0
SILENCE_SECONDS: Final = 3.0
"""Without a message or a heartbeat for so long, a consumer is made anew."""
RETRY_SECONDS: Final = 0.25
INACTIVE_SECONDS: Final = 30
"""The server forgets a consumer that nobody pulls from for so long."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NANOSECONDS: Final = 1_000_000_000
_PULL_ENDED: Final = ("Message Size Exceeds MaxBytes", "Batch Completed")
"""What the server says with a 409 as it ends a pull that is bounded in bytes (ADR-13). The consumer goes on."""
_NO_MESSAGE: Final = 10_037
"""The server's code for a sequence at which nothing stands."""


class Unavailable(Exception):
    """NATS, or the stream, did not answer in time. Says what was asked. Safe to try again."""


class Gap(Exception):
    """Messages that must be there are not: the log lost something, or it is another log."""


class Raw(Struct, frozen=True):
    """A message of a stream. `sequence` is its place in that stream, `stored_at` that stream's time for it (UTC)."""

    subject: str
    headers: Mapping[str, str] | None
    data: bytes
    sequence: int
    stored_at: datetime

    def recorded(self) -> wire.Recorded:
        """The event that it is. Raises `wire.Malformed`."""
        return wire.decode(self.subject, self.headers, self.data, position=self.sequence, recorded_at=self.stored_at)


class SourceState(Struct, frozen=True):
    """How a sourced stream follows its source: messages behind, and time since it last heard of it."""

    lag: int
    active_seconds: float | None
    """None while it has not heard of its source since it started."""
    error: str | None


class StreamState(Struct, frozen=True):
    """What a stream says of itself. Sequences are inclusive; an empty stream has `first` = `last` + 1, a new one 0."""

    name: str
    now: datetime
    """The server's own time (UTC) when it said so: what the times of messages may be compared with."""
    created: datetime
    first: int
    last: int
    stored_bytes: int
    max_bytes: int
    max_age_seconds: float
    config: dict[str, Any]
    sources: tuple[SourceState, ...]

    @property
    def identity(self) -> str:
        """The identity that positions of this stream carry."""
        return positions.identity(self.name, self.created)


class LogReader:
    """Reads one stream of a connection. Open it with `async with`; it owns one subscription for its answers."""

    def __init__(self, connection: Client, stream: str) -> None:
        self.stream = stream
        self._connection = connection
        self._inbox = connection.new_inbox()
        self._numbers = count()
        self._waiting: dict[str, tuple[list[Raw], asyncio.Future[list[Raw]]]] = {}
        self._subscription: Subscription | None = None

    async def __aenter__(self) -> Self:
        self._subscription = await arrivals.subscribe(self._connection, f"{self._inbox}.*", self._answered)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._subscription is not None and not self._connection.is_closed:
            with contextlib.suppress(NatsError, OSError):  # lost just now: the server has forgotten it already
                await arrivals.unsubscribe(self._connection, self._subscription)

    async def state(self) -> StreamState:
        """The stream's state. Raises `Unavailable`."""
        answer = await self._ask(f"$JS.API.STREAM.INFO.{self.stream}", {})
        if "error" in answer:
            message = f"stream {self.stream}: {answer['error'].get('description')}"
            raise Unavailable(message)
        state, config = answer["state"], answer["config"]
        return StreamState(
            name=self.stream,
            now=_moment(answer["ts"]),
            created=_moment(answer["created"]),
            first=state["first_seq"],
            last=state["last_seq"],
            stored_bytes=state["bytes"],
            max_bytes=config.get("max_bytes", -1),
            max_age_seconds=config.get("max_age", 0) / _NANOSECONDS,
            config=config,
            sources=tuple(
                SourceState(
                    lag=each.get("lag", 0),
                    active_seconds=None if each.get("active", -1) < 0 else each["active"] / _NANOSECONDS,
                    error=(each.get("error") or {}).get("description"),
                )
                for each in answer.get("sources") or ()
            ),
        )

    async def last(self, subjects_: Sequence[str]) -> dict[str, Raw]:
        """Last message of each literal subject that has one, by subject. At most `MAX_SUBJECTS`. Raises `Unavailable`.

        May be a little stale in a cluster; see the module's text.
        """
        if len(subjects_) > MAX_SUBJECTS:
            message = f"{len(subjects_)} subjects asked for at once; the limit is {MAX_SUBJECTS}"
            raise ValueError(message)
        if not subjects_:
            return {}
        self._refuse_to_wait()
        number = str(next(self._numbers))
        answered: asyncio.Future[list[Raw]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = ([], answered)
        try:
            await self._connection.publish(
                f"$JS.API.DIRECT.GET.{self.stream}",
                msgspec.json.encode({"multi_last": list(subjects_)}),
                reply=f"{self._inbox}.{number}",
            )
            async with asyncio.timeout(REQUEST_SECONDS):
                messages = await answered
        except (TimeoutError, NatsError, OSError) as error:
            message = f"stream {self.stream} did not answer a direct get"
            raise Unavailable(message) from error
        finally:
            del self._waiting[number]
        return {each.subject: each for each in messages}

    async def last_on_leader(self, subjects_: Sequence[str]) -> dict[str, Raw]:
        """Last message of each literal subject that has one, as the stream's leader has it. Raises `Unavailable`."""
        found = await asyncio.gather(*(self._on_leader({"last_by_subj": each}) for each in subjects_))
        return {each.subject: each for each in found if each is not None}

    async def newest_on_leader(self) -> Raw | None:
        """The last message, or None where there is none. Raises `Unavailable`."""
        return await self._on_leader({"last_by_subj": ">"})

    async def at_on_leader(self, sequence: int) -> Raw | None:
        """The message at a sequence, or None where there is none. Raises `Unavailable`."""
        return await self._on_leader({"seq": sequence})

    async def next_on_leader(self, subject: str, sequence: int) -> Raw | None:
        """The first message on a subject at `sequence` or after it. Raises `Unavailable`."""
        return await self._on_leader({"seq": sequence, "next_by_subj": subject})

    def follow(
        self,
        after: int,
        filters: Sequence[str] = (),
        *,
        start_at: datetime | None = None,
        last_per_subject: bool = False,
        messages: int = PULL_MESSAGES,
    ) -> "Follower":
        """Follow the stream from the message after sequence `after`, or from a time on, or over last messages only.

        One filter at most. With several, nats-server looks at every subject of the stream as the consumer is made, and
        takes no append meanwhile: 0.6 s for a million subjects. One takes it a tenth of that, and none takes nothing.
        """
        if len(filters) > 1:
            message = "a consumer with several filters holds up whoever writes to the stream"
            raise ValueError(message)
        return Follower(self._connection, self.stream, after, tuple(filters), start_at, last_per_subject, messages)

    async def _on_leader(self, request: dict[str, Any]) -> Raw | None:
        answer = await self._ask(f"$JS.API.STREAM.MSG.GET.{self.stream}", request)
        if "error" in answer:
            if answer["error"].get("code") == 404:
                return None
            message = f"stream {self.stream}: {answer['error'].get('description')}"
            raise Unavailable(message)
        found = answer["message"]
        return Raw(
            found["subject"],
            Headers(base64.b64decode(found.get("hdrs", ""))),
            base64.b64decode(found.get("data", "")),
            found["seq"],
            _moment(found["time"]),
        )

    def _refuse_to_wait(self) -> None:
        """The client would keep a request until it is connected again, longer than anybody waits for the answer."""
        if not self._connection.is_connected:
            message = "not connected to NATS"
            raise Unavailable(message)

    async def _ask(self, subject: str, request: dict[str, Any]) -> dict[str, Any]:
        self._refuse_to_wait()
        try:
            answer = await self._connection.request(subject, msgspec.json.encode(request), timeout=REQUEST_SECONDS)
            decoded: dict[str, Any] = msgspec.json.decode(answer.data)
        except (TimeoutError, NatsError, OSError, msgspec.MsgspecError) as error:
            message = f"no answer from NATS to {subject}"
            raise Unavailable(message) from error
        return decoded

    def _answered(self, subject: str, _: str, headers: Mapping[str, str] | None, data: bytes) -> None:
        waiting = self._waiting.get(subject.rpartition(".")[2])
        if waiting is None or waiting[1].done():
            return
        messages, answered = waiting
        headers = headers or {}
        match headers.get("Status"):
            case None:
                try:
                    sequence, stored_at = int(headers["Nats-Sequence"]), _moment(headers["Nats-Time-Stamp"])
                    messages.append(Raw(headers["Nats-Subject"], headers, data, sequence, stored_at))
                except (KeyError, ValueError) as error:
                    answered.set_exception(NatsError(f"direct get: {error!r}"))
            case "204" | "404":
                answered.set_result(messages)
            case status:
                answered.set_exception(NatsError(f"direct get: {status} {headers.get('Description')}"))


class Follower:
    """Messages of a stream in order, from a position on, nothing missing. Made by `LogReader.follow`.

    `next` gives what has come; between calls the next pull is under way. Its memory is bounded by two pulls.
    Delivery is checked by the consumer's own dense numbering, so a loss under a filter is found too; a consumer that
    loses something or falls silent is thrown away, and made anew after the last message that was handed out.
    """

    def __init__(
        self,
        connection: Client,
        stream: str,
        after: int,
        filters: tuple[str, ...],
        start_at: datetime | None,
        last_per_subject: bool,  # noqa: FBT001  made in one place, `LogReader.follow`
        messages: int,
    ) -> None:
        self.trouble: str | None = None
        """Why nothing comes at the moment, in words, or None while all is well."""
        self.heard_at: float | None = None
        """Event-loop time of the last sign of life from the server, a message or a heartbeat, in seconds."""
        self.after = after
        self._after_id: str | None = None
        """The event's id at `after`. None where none stands there."""
        self._after_known = False
        self.pending: int | None = None
        """Messages that the stream still had for this consumer behind the last one handed out."""
        self._connection = connection
        self._stream = stream
        self._filters = filters
        self._start_at = start_at
        self._last_per_subject = last_per_subject
        self._pull_messages = messages
        self._queue: deque[tuple[Raw, int]] = deque()
        """What has come, each with how many messages the stream had behind it for this consumer."""
        self._queued_bytes = 0
        self._arrived = asyncio.Event()
        self._inbox = ""
        self._consumer = ""
        self._subscription: Subscription | None = None
        self._pulls: deque[list[int]] = deque()
        self._pull_numbers = count()
        self._pulling: asyncio.Task[None] | None = None
        self._delivered = 0
        self._broken: str | None = None
        self._loop: asyncio.AbstractEventLoop

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def next(self, wait_seconds: float) -> list[Raw]:
        """What has come, in order: at most a pull's worth, and nothing when nothing came in time.

        Never raises for a server that is away: `trouble` says so, and the next call tries again. Raises `Gap` when the
        stream was restored to before what was handed out, whatever it has come to have since.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_seconds
        while True:
            if self._subscription is None and not await self._open(deadline):
                return []
            if self._queue:
                messages = self._take()
                if self._broken is None:
                    await self._pull()
                return messages
            if self._broken is not None:
                self.trouble = self._broken
                await self.close()
                continue
            self._arrived.clear()
            left = min(deadline, (self.heard_at or 0.0) + SILENCE_SECONDS) - loop.time()
            try:
                # Not `wait_for`: up to Python 3.11 it loses a cancellation (Ctrl-C) that comes as something arrives.
                async with asyncio.timeout(max(left, 0.0)):
                    await self._arrived.wait()
            except TimeoutError:
                if loop.time() >= (self.heard_at or 0.0) + SILENCE_SECONDS:
                    self._broken = f"the consumer on {self._stream} fell silent"
                if loop.time() >= deadline:
                    return []

    async def close(self) -> None:
        """Let go of the consumer. `next` would make a new one."""
        subscription, self._subscription = self._subscription, None
        consumer, self._consumer = self._consumer, ""
        self._queue.clear()
        self._queued_bytes = 0
        self._pulls.clear()
        self._broken = None
        pulling, self._pulling = self._pulling, None
        self._inbox = ""  # what still arrives is of the past
        try:
            if subscription is not None and not self._connection.is_closed:
                await arrivals.unsubscribe(self._connection, subscription)
                await self._connection.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{consumer}", b"")
        except (NatsError, OSError) as error:
            # The server forgets the consumer by itself after INACTIVE_SECONDS.
            self.trouble = f"nats: {error}"
        finally:
            if pulling is not None:
                await end(pulling)

    async def _open(self, deadline: float) -> bool:
        # Kept, for what comes by the ten thousand: to find out which loop runs is a system call, up to Python 3.11.
        loop = self._loop = asyncio.get_running_loop()
        inbox = self._connection.new_inbox()
        name = "gb" + inbox.rpartition(".")[2]
        config: dict[str, Any] = {
            "name": name,
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": INACTIVE_SECONDS * _NANOSECONDS,
        }
        if self._last_per_subject:
            config["deliver_policy"] = "last_per_subject"
        elif self._start_at is not None and self.after == 0:
            config |= {"deliver_policy": "by_start_time", "opt_start_time": self._start_at.isoformat()}
        else:
            config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": self.after + 1}
        subject = f"$JS.API.CONSUMER.CREATE.{self._stream}.{name}"
        if self._filters:
            # The filter stands in the subject too: that is what NATS permissions can bind.
            config["filter_subject"] = self._filters[0]
            subject += f".{self._filters[0]}"
        request = {"stream_name": self._stream, "config": config, "action": "create"}
        try:
            # Ours before it is asked for: who is cancelled meanwhile lets go of it, too.
            self._inbox, self._consumer = inbox, name
            self._subscription = await arrivals.subscribe(
                self._connection, f"{inbox}.*", partial(self._received, inbox)
            )
            seconds = FILTERED_SECONDS if self._filters else REQUEST_SECONDS
            answer = msgspec.json.decode(
                (await self._connection.request(subject, msgspec.json.encode(request), timeout=seconds)).data
            )
        except (TimeoutError, NatsError, OSError, msgspec.MsgspecError) as error:
            reason = "no responders" if isinstance(error, NoRespondersError) else str(error) or type(error).__name__
            answer = {"error": {"description": reason}}
        if "error" in answer:
            await self.close()  # it may have been made, and the answer have got lost
            self.trouble = f"cannot follow {self._stream}: {answer['error'].get('description')}"
            await asyncio.sleep(max(0.0, min(RETRY_SECONDS, deadline - loop.time())))
            return loop.time() < deadline and await self._open(deadline)
        try:
            await self._refuse_another_past()
        except (TimeoutError, NatsError, OSError, msgspec.MsgspecError) as error:
            await self.close()
            self.trouble = f"cannot follow {self._stream}: {str(error) or type(error).__name__}"
            return False
        self._delivered = 0
        self.pending = answer.get("num_pending")
        self.heard_at = loop.time()
        self.trouble = None
        await self._pull()
        return True

    async def _refuse_another_past(self) -> None:
        """Where it goes on from must stand what it handed out last: sequences of a restored stream are reused.

        Before anything was handed out, it is what stands there as the first consumer is made.
        """
        if self.after == 0 or self._last_per_subject:
            return  # from the very first on there is no past
        found = (await self._asked("STREAM.MSG.GET", {"seq": self.after})).get("message")
        stands = None if found is None else Headers(base64.b64decode(found.get("hdrs", ""))).get("ce-id", "")
        if stands is None:
            # It may have aged out. Or the stream ends before: once it has grown again, nothing would tell any more.
            last = (await self._asked("STREAM.INFO", {}))["state"]["last_seq"]
            if last < self.after:
                await self.close()
                message = f"stream {self._stream} has another past: it ends at {last}, before {self.after}"
                raise Gap(message)
        if not self._after_known:
            self._after_id, self._after_known = stands, True
        elif stands is not None and stands != self._after_id:
            await self.close()
            message = f"stream {self._stream} has another past: at {self.after} stands what was not there before"
            raise Gap(message)

    async def _asked(self, what: str, request: dict[str, Any]) -> dict[str, Any]:
        """What the stream's leader answers. Raises `TimeoutError`, `NatsError`, `OSError` and `MsgspecError`."""
        subject = f"$JS.API.{what}.{self._stream}"
        answer = await self._connection.request(subject, msgspec.json.encode(request), timeout=REQUEST_SECONDS)
        decoded: dict[str, Any] = msgspec.json.decode(answer.data)
        if "error" in decoded and decoded["error"].get("err_code") != _NO_MESSAGE:
            raise NatsError(decoded["error"].get("description"))
        return decoded

    async def _pull(self) -> None:
        """Keep one pull ahead: the server fills it while we work on what came of the one before."""
        while len(self._pulls) < 2 and len(self._queue) <= self._pull_messages and self._queued_bytes <= PULL_BYTES:
            number = next(self._pull_numbers)
            self._pulls.append([number, self._pull_messages])
            request = {
                "batch": self._pull_messages,
                "max_bytes": PULL_BYTES,
                "expires": PULL_SECONDS * _NANOSECONDS,
                "idle_heartbeat": int(HEARTBEAT_SECONDS * _NANOSECONDS),
            }
            try:
                await self._connection.publish(
                    f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}",
                    msgspec.json.encode(request),
                    reply=f"{self._inbox}.{number}",
                )
            except (NatsError, OSError) as error:
                self._break(f"nats: {error}")
                return

    def _received(self, inbox: str, subject: str, reply: str, headers: Mapping[str, str] | None, data: bytes) -> None:
        if inbox != self._inbox:
            return  # of a consumer that was thrown away while the connection was lost
        self.heard_at = self._loop.time()
        # By the subject: what was stored may say anything of itself.
        status = (headers or {}).get("Status") if subject.startswith(inbox) else None
        if status is None:
            self._keep(subject, reply, headers, data)
        elif status == "408" or (status == "409" and (headers or {}).get("Description") in _PULL_ENDED):
            number = int(subject.rpartition(".")[2])
            self._pulls = deque(each for each in self._pulls if each[0] != number)
            if self._pulling is None or self._pulling.done():
                self._pulling = self._loop.create_task(self._pull(), name=f"pull from {self._stream}")
        elif status != "100":
            # 409: the consumer was deleted, its leader changed, the server shuts down. 503: nobody serves it.
            self._break(f"consumer on {self._stream}: {status} {(headers or {}).get('Description', '')}")

    def _keep(self, subject: str, reply: str, headers: Mapping[str, str] | None, data: bytes) -> None:
        if self._broken is not None:
            return  # behind something that is missing: it will come again
        try:
            sequence, number, stored_at, left = _metadata(reply)
        except (ValueError, OverflowError):
            self._break(f"the consumer on {self._stream} sent what no consumer sends: {reply[:80]!r}")
            return
        if number != self._delivered + 1:
            self._break(f"the consumer on {self._stream} skipped from {self._delivered} to {number}")
            return
        self._delivered = number
        self._queue.append((Raw(subject, headers, data, sequence, stored_at), left))
        self._queued_bytes += len(data)
        if self._pulls:
            self._pulls[0][1] -= 1
            if self._pulls[0][1] == 0:
                self._pulls.popleft()
        self._arrived.set()

    def _break(self, why: str) -> None:
        """Have `next` throw the consumer away, once it has handed out what came before."""
        self._broken = why
        self._arrived.set()

    def _take(self) -> list[Raw]:
        taken = [self._queue.popleft() for _ in range(min(len(self._queue), self._pull_messages))]
        self._queued_bytes -= sum(len(each.data) for each, _ in taken)
        last, self.pending = taken[-1]
        self.after = last.sequence
        self._after_id, self._after_known = (last.headers or {}).get("ce-id", ""), True
        return [each for each, _ in taken]


def assert_dense(messages: Sequence[Raw], after: int) -> None:
    """Check that an unfiltered read has every sequence after `after`. Raises `Gap`. Sequences of the log are dense."""
    expected = after
    for each in messages:
        expected += 1
        if each.sequence != expected:
            message = f"expected position {expected} of the log, got {each.sequence}"
            raise Gap(message)


def place_in_log(message: Raw | None) -> int:
    """Where a message of the feed stands in the log; 0 where there is none, or it does not say."""
    try:
        return wire.position_in_log(((message and message.headers) or {}).get(wire.STREAM_SOURCE_HEADER, ""))
    except wire.Malformed:
        return 0


def _metadata(reply: str) -> tuple[int, int, datetime, int]:
    """Stream sequence, consumer sequence, time and pending from `$JS.ACK...` in either of its forms (ADR-15)."""
    parts = reply.split(".")
    sequence, delivered, nanoseconds, pending = parts[5:9] if len(parts) == 9 else parts[7:11]
    return int(sequence), int(delivered), _EPOCH + timedelta(0, 0, int(nanoseconds) // 1_000), int(pending)


def _moment(text: str) -> datetime:
    """A Go timestamp, up to nanoseconds, in any offset, as UTC microseconds."""
    date, _, rest = text.partition(".")
    if not rest:
        return datetime.fromisoformat(text).astimezone(UTC)
    digits = rest.rstrip("Zz") if rest[-1] in "Zz" else rest[: max(rest.find("+"), rest.find("-"))]
    offset = rest[len(digits) :]
    return datetime.fromisoformat(f"{date}.{digits[:6]:0<6}{offset.upper().replace('Z', '+00:00')}").astimezone(UTC)
