"""A durable consumer of the revocation feed, one for each event stream: what was not acknowledged comes again.

Whoever opens it takes it over: the server is told to hand out again, from the first that is not acknowledged, in
order. So a process that was killed with messages in its hands loses none, and the next need not wait until the server
misses the acknowledgements.

The feed is dense (nobody may delete from it), so this checks that nothing is missing between what comes: durable
consumers have been seen to skip. One that does is set back to what it skipped.
"""

import asyncio
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import structlog
from msgspec import Struct
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeoutError

from grantbook import subjects
from grantbook.sdk.log import REQUEST_SECONDS, LogReader, Raw, Unavailable

ACKNOWLEDGE_SECONDS: Final = 300
"""After so long without an acknowledgement the server hands a message out again by itself. Longer than the pushes of
all that is in hand may take; taking over does not wait for it."""
MAX_IN_HAND: Final = 1_024
"""Messages that are handed out and not acknowledged."""
INACTIVE_SECONDS: Final = 60 * 86_400
"""The server forgets a consumer that nobody pulls from for so long: one of a stream that was deleted while nobody was
there to delete it. A stream that was paused for longer begins anew, and hears of some things again."""
HEARTBEAT_SECONDS: Final = 1.0
SILENCE_SECONDS: Final = 3.0

_NANOSECONDS: Final = 1_000_000_000
_NOT_FOUND: Final = 10_014
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_log = structlog.get_logger("transmitter")


class Handed(Struct, frozen=True):
    """A message of the feed, and where to acknowledge it."""

    raw: Raw
    reply: str


class Durable:
    """The consumer `name`, which begins with what the feed stored at `start_at` or after it (UTC).

    Needs nats-server 2.14, which can reset consumers (ADR-60).
    """

    def __init__(self, connection: Client, name: str, start_at: datetime) -> None:
        self._connection = connection
        self._name = name
        self._start_at = start_at
        self._feed = LogReader(connection, subjects.REVOCATIONS)
        self._after: int | None = None
        """Feed sequence of the last message that was handed out; None before the first."""

    async def open(self) -> None:
        """Make it where it is missing, and take over what is in hand elsewhere. Raises `Unavailable`."""
        info = await _ask(self._connection, f"$JS.API.CONSUMER.INFO.{subjects.REVOCATIONS}.{self._name}", {})
        if not _is_missing(info):
            _refuse_error(info)
            if _moment(info["config"].get("opt_start_time")) != self._start_at:
                # Of before the stream was disabled: what it still holds is not wanted any more.
                await remove(self._connection, self._name)
                info = await self._create()
        else:
            info = await self._create()
        self._after = None
        if info["num_ack_pending"] or info["num_redelivered"]:
            await self._set_back(None)
        elif info["delivered"]["stream_seq"] and info["delivered"]["consumer_seq"]:
            self._after = info["delivered"]["stream_seq"]

    async def pull(self, most: int, wait_seconds: float) -> list[Handed]:
        """At most so many messages: what is there, or else the next that comes in time, if any. Raises `Unavailable`.

        After that, or when it was cancelled, open it again: messages may be on their way to nobody.
        """
        messages = await self._pulled({"batch": most, "no_wait": True}, most, REQUEST_SECONDS)
        if not messages and wait_seconds > 0:
            request = {
                "batch": 1,
                "expires": int(wait_seconds * _NANOSECONDS),
                "idle_heartbeat": int(HEARTBEAT_SECONDS * _NANOSECONDS),
            }
            messages = await self._pulled(request, 1, wait_seconds + SILENCE_SECONDS)
        handed = [_handed(each) for each in messages]
        for each in handed:
            await self._refuse_gap(each.raw.sequence)
        return handed

    async def acknowledge(self, reply: str) -> None:
        """The receiver has it: never again. Durable when this returns. Raises `Unavailable`."""
        try:
            await self._connection.request(reply, b"+ACK", timeout=REQUEST_SECONDS)
        except (TimeoutError, NatsError, OSError) as error:
            message = f"consumer {self._name} did not take an acknowledgement"
            raise Unavailable(message) from error

    async def _create(self) -> dict[str, Any]:
        config = {
            "name": self._name,
            "durable_name": self._name,
            "ack_policy": "explicit",
            "ack_wait": ACKNOWLEDGE_SECONDS * _NANOSECONDS,
            "max_ack_pending": MAX_IN_HAND,
            "inactive_threshold": INACTIVE_SECONDS * _NANOSECONDS,
            "deliver_policy": "by_start_time",
            "opt_start_time": self._start_at.isoformat(),
        }
        request = {"stream_name": subjects.REVOCATIONS, "config": config, "action": ""}
        subject = f"$JS.API.CONSUMER.CREATE.{subjects.REVOCATIONS}.{self._name}"
        return _refuse_error(await _ask(self._connection, subject, request))

    async def _set_back(self, sequence: int | None) -> None:
        """Hand out again from a feed sequence on, or from the first that is not acknowledged."""
        subject = f"$JS.API.CONSUMER.RESET.{subjects.REVOCATIONS}.{self._name}"
        answer = _refuse_error(await _ask(self._connection, subject, {} if sequence is None else {"seq": sequence}))
        self._after = answer["reset_seq"] - 1

    async def _pulled(self, request: dict[str, Any], most: int, seconds: float) -> list[Msg]:
        inbox = self._connection.new_inbox()
        messages: list[Msg] = []
        try:
            subscription = await self._connection.subscribe(inbox)
            try:
                await self._connection.publish(
                    f"$JS.API.CONSUMER.MSG.NEXT.{subjects.REVOCATIONS}.{self._name}",
                    msgspec.json.encode(request),
                    reply=inbox,
                )
                async with asyncio.timeout(seconds):
                    while len(messages) < most:
                        message = await subscription.next_msg(timeout=SILENCE_SECONDS)
                        match (message.headers or {}).get("Status") if not message.data else None:
                            case None:
                                messages.append(message)
                            case "100":
                                continue
                            case "404" | "408":
                                break  # nothing there; nothing came
                            case status:
                                raise Unavailable(f"consumer {self._name}: {status}")
            finally:
                await subscription.unsubscribe()
        except (TimeoutError, NatsTimeoutError, NatsError, OSError) as error:
            message_ = f"consumer {self._name} fell silent"
            raise Unavailable(message_) from error
        return messages

    async def _refuse_gap(self, sequence: int) -> None:
        after, self._after = self._after, max(sequence, self._after or 0)
        if after is None or sequence <= after + 1:
            return  # the first, the next, or one that comes again
        first = (await self._feed.state()).first
        if first > after + 1 and sequence == first:
            return  # what is missing has aged out of the feed
        _log.error("a durable consumer skipped; it is set back", consumer=self._name, after=after, to=sequence)
        await self._set_back(max(after + 1, first))
        message = f"consumer {self._name} skipped from {after} to {sequence}"
        raise Unavailable(message)


async def remove(connection: Client, name: str) -> None:
    """Delete a consumer, if it is there. Raises `Unavailable`."""
    answer = await _ask(connection, f"$JS.API.CONSUMER.DELETE.{subjects.REVOCATIONS}.{name}", {})
    if not _is_missing(answer):
        _refuse_error(answer)


def _handed(message: Msg) -> Handed:
    metadata = message.metadata
    raw = Raw(
        message.subject,
        message.headers,
        message.data,
        metadata.sequence.stream,
        metadata.timestamp.astimezone(UTC),
    )
    return Handed(raw, message.reply)


def _moment(text: str | None) -> datetime:
    return _EPOCH if text is None else msgspec.convert(text, datetime)


def _is_missing(answer: dict[str, Any]) -> bool:
    return "error" in answer and answer["error"].get("err_code") == _NOT_FOUND


def _refuse_error(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        message = f"the feed's consumer: {answer['error'].get('description')}"
        raise Unavailable(message)
    return answer


async def _ask(connection: Client, subject: str, request: dict[str, Any]) -> dict[str, Any]:
    if not connection.is_connected:
        raise Unavailable("not connected to NATS")
    try:
        answer = await connection.request(subject, msgspec.json.encode(request), timeout=REQUEST_SECONDS)
        decoded: dict[str, Any] = msgspec.json.decode(answer.data)
    except (TimeoutError, NatsError, OSError, msgspec.MsgspecError) as error:
        message = f"no answer from NATS to {subject}"
        raise Unavailable(message) from error
    return decoded
