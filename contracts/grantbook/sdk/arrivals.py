"""Messages as they come off the wire. Readers of the log get them by the ten thousand, and need little of each.

The client of NATS reads all headers of a message, makes an object of it, and hands that to a task through a queue: more
work than all that follows. A `Connection` is that client, but hands over the messages of the subscriptions made here
while it reads them, with headers that are looked at when somebody asks. Any other client does as well, and slower.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import count
from typing import Any, Final, TypeVar, overload

from nats.aio.client import NO_RESPONDERS_STATUS, Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import NoRespondersError, ProtocolError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

from grantbook.sdk import departures

Sink = Callable[[str, str, Mapping[str, str] | None, bytes], None]
"""Takes a message: its subject, where to reply ('' for nowhere), its headers, its body."""

T = TypeVar("T")
_VERSION: Final = b"NATS/1.0"
_END: Final = b"\r\n"


class Headers(Mapping[str, str]):
    """Headers of a message, out of their block (NATS ADR-4). Of two with one name, the last counts.

    Names are what stands before the colon, in the case in which they were sent. What the block's first line says is
    `Status` and `Description`.
    """

    __slots__ = ("_block",)

    def __init__(self, block: bytes) -> None:
        self._block = block

    @overload
    def get(self, key: str, /) -> str | None: ...
    @overload
    def get(self, key: str, default: str, /) -> str: ...
    @overload
    def get(self, key: str, default: T, /) -> str | T: ...
    def get(self, key: str, default: T | None = None, /) -> str | T | None:
        """The header, or the default where there is none."""
        block = self._block
        name = _line(key)
        start = block.rfind(name)
        if start >= 0:
            start += len(name)
            return block[start : block.find(_END, start)].strip().decode("utf-8", "replace")
        if key in _OF_THE_STATUS and block[len(_VERSION) : len(_VERSION) + 1] == b" ":
            return self._all().get(key, default)
        return default

    def __getitem__(self, key: str) -> str:
        value = self.get(key)
        # What is listed is there: also a name that is no text, and a first line that says a status in another way.
        return self._all()[key] if value is None else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __bool__(self) -> bool:
        return True  # else `headers or {}` would read all of them

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, str]:
        first, *lines = self._block.decode("utf-8", "replace").split("\r\n")
        status, _, description = first.removeprefix(_VERSION.decode()).strip().partition(" ")
        found = {"Status": status} if status else {}
        if description:
            found["Description"] = description.strip()
        for line in lines:
            name, colon, value = line.partition(":")
            if colon:
                found[name] = value.strip()
        return found


@lru_cache(maxsize=64)
def _line(key: str) -> bytes:
    """What a header's line begins with. The few that are asked for are asked for with each message."""
    return _END + key.encode() + b":"


_OF_THE_STATUS: Final = frozenset({"Status", "Description"})


class Connection(Client):
    """The client of NATS, which hands over what arrives for the subscriptions of `subscribe` as it reads it.

    Answers to requests, too. Headers of what is sent it puts as `departures` has them. It is connected once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sinks: dict[bytes, Sink] = {}
        """By the number of their subscription."""
        self._ps = _Parser(self)
        self._answers = ""
        """The inbox of all answers, once it is there."""
        self._opening = asyncio.Lock()
        self._asked: dict[str, asyncio.Future[Msg]] = {}
        self._numbers = count(1)

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,  # noqa: ASYNC109  as the client has it
        old_style: bool = False,  # noqa: FBT001, FBT002  the same
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        """Ask, and wait for the answer. Raises what the client raises; it takes half of the steps."""
        if old_style:
            return await super().request(subject, payload, timeout=timeout, old_style=True, headers=headers)
        if not self._answers:
            async with self._opening:
                if not self._answers:
                    inbox = self.new_inbox()
                    await subscribe(self, f"{inbox}.*", self._answered)
                    self._answers = inbox
        loop = asyncio.get_running_loop()
        number = str(next(self._numbers))
        answer: asyncio.Future[Msg] = loop.create_future()
        self._asked[number] = answer
        try:
            await self.publish(subject, payload, reply=f"{self._answers}.{number}", headers=headers)
            giving_up = loop.call_later(timeout, _give_up, answer)
            try:
                return await answer
            finally:
                giving_up.cancel()
        finally:
            del self._asked[number]
            if answer.done() and not answer.cancelled():
                answer.exception()  # looked at, where whoever asked is cancelled just now

    def _answered(self, subject: str, reply: str, headers: Mapping[str, str] | None, data: bytes) -> None:
        answer = self._asked.get(subject.rpartition(".")[2])
        if answer is None or answer.done():
            return  # nobody waits for it any more
        if headers is not None and headers.get("Status") == NO_RESPONDERS_STATUS:
            answer.set_exception(NoRespondersError())
        else:
            answer.set_result(Msg(self, subject, reply, data, None if headers is None else dict(headers)))

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        sink = self.sinks.get(b"%d" % sid)
        if sink is None:
            await super()._process_msg(sid, subject, reply, data, headers)
        else:
            sink(_text(subject), _text(reply), Headers(headers) if headers else None, data)

    async def _send_publish(
        self, subject: str, reply: str, payload: bytes, payload_size: int, headers: dict[str, Any] | None
    ) -> None:
        block = departures.block(headers) if headers else None
        if block is None or not subject:
            await super()._send_publish(subject, reply, payload, payload_size, headers)
            return
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += payload_size
        line = f"HPUB {subject} {reply} {len(block)} {len(block) + len(payload)}\r\n".encode()
        await self._send_command(b"".join((line, block, payload, _END)))
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()


def _give_up(answer: asyncio.Future[Msg]) -> None:
    if not answer.done():
        answer.set_exception(NatsTimeoutError())


class _Parser(Parser):
    """Reads what has arrived: whole messages for sinks in one go; all else as the client does."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._sinks = connection.sinks
        self._needed = 0
        """So many bytes must be there before the message that the buffer begins with is whole."""

    def reset(self) -> None:
        """Begin anew, on another connection."""
        super().reset()
        self._needed = 0

    async def parse(self, data: bytes = b"") -> None:
        """Take what was read. Raises `ProtocolError`."""
        if self.state != AWAITING_CONTROL_LINE or not self._sinks:
            self._needed = 0
            await super().parse(data)
            return
        self.buf.extend(data)
        if len(self.buf) < self._needed:
            return
        self._needed = 0
        if self._take_whole():
            await super().parse()

    def _take_whole(self) -> bool:
        """Hand over the messages at the buffer's beginning. Whether what follows is something else."""
        buffer, sinks = bytes(self.buf), self._sinks
        at, size = 0, len(buffer)
        try:
            while at < size:
                end = buffer.find(_END, at)
                if end < 0:
                    return not any(each.startswith(buffer[at : at + len(each)]) for each in _BEGINNINGS)
                parts = buffer[at:end].split()
                words = _WORDS.get(parts[0], 0) if parts else 0
                # One word more: where to reply.
                if not words or len(parts) not in {words, words + 1} or (sink := sinks.get(parts[2])) is None:
                    return True
                reply = parts[3] if len(parts) > words else b""
                head = end + len(_END)
                has_headers = words == _WORDS[b"HMSG"]
                of_head, of_all = _sizes(parts[-2] if has_headers else b"0", parts[-1])
                body, end = head + of_head, head + of_all
                if end + len(_END) > size:
                    self._needed = end + len(_END) - at
                    return False
                at = end + len(_END)
                headers = Headers(buffer[head:body]) if has_headers else None
                sink(_text(parts[1]), _text(reply), headers, buffer[body:end])
        except ValueError as error:
            raise ProtocolError from error
        finally:
            del self.buf[:at]
        return False


def _sizes(head: bytes, whole: bytes) -> tuple[int, int]:
    """Bytes of the headers, and of all. Raises `ValueError` for what `int` would take, and the protocol would not."""
    if not (head.isdigit() and whole.isdigit() and int(head) <= int(whole)):
        raise ValueError
    return int(head), int(whole)


def _text(raw: bytes) -> str:
    """What is no UTF-8 is no subject of ours, and whoever reads it says so; here it would be a broken connection."""
    return raw.decode("utf-8", "replace")


_WORDS: Final = {b"MSG": 4, b"HMSG": 5}
"""Of the line before a message, without and with headers, where it says nowhere to reply."""
_BEGINNINGS: Final = tuple(each + b" " for each in _WORDS)


async def subscribe(connection: Client, subject: str, sink: Sink) -> Subscription:
    """Have what arrives on a subject handed over. What raises in a sink ends the connection's reading."""

    async def came(message: Msg) -> None:
        # From any other client; and from ours, should a newer version of it no longer ask us.
        sink(message.subject, message.reply, message.headers, message.data)

    subscription = await connection.subscribe(subject, cb=came)
    if isinstance(connection, Connection):
        connection.sinks[b"%d" % subscription._id] = sink  # noqa: SLF001  nothing arrives before somebody knows the subject
    return subscription


async def unsubscribe(connection: Client, subscription: Subscription) -> None:
    """Have nothing more handed over. Raises what the client raises where the connection is lost."""
    if isinstance(connection, Connection):
        connection.sinks.pop(b"%d" % subscription._id, None)  # noqa: SLF001
    await subscription.unsubscribe()
