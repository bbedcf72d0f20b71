"""The bucket of event streams (a NATS key-value bucket, ADR-8): what receivers configured, and nothing else.

Reads that decide are leader reads, writes compare and set. Receivers' secrets in it are sealed.
"""

from typing import Any, Final

import msgspec
from msgspec import Struct
from nats.aio.client import Client
from nats.errors import Error as NatsError

from grantbook import subjects
from grantbook.receipts import FORGET_HEADERS
from grantbook.sdk.log import REQUEST_SECONDS, LogReader, Raw, Unavailable
from transmitter.streams import Stream

DUPLICATE_WINDOW_SECONDS: Final = 120
MAX_TRIES: Final = 5

_NANOSECONDS: Final = 1_000_000_000
_NO_STREAM: Final = 10_059
_WRONG_LAST_SEQUENCE: Final = 10_071


class Contended(Exception):
    """Others changed the stream at the same time: nothing was stored. Safe to try again."""


class Entry(Struct, frozen=True):
    """A stream, and the revision that it was read at."""

    stream: Stream
    revision: int


def stream_in(raw: Raw) -> Stream | None:
    """The event stream that a message of the bucket says; None where it was deleted. Raises `msgspec.MsgspecError`."""
    if "KV-Operation" in (raw.headers or {}):
        return None
    return msgspec.json.decode(raw.data, type=Stream)


class Bucket:
    """The bucket, over a connection. Reads use `reader`, which its maker opens and closes."""

    def __init__(self, connection: Client, reader: LogReader) -> None:
        self._connection = connection
        self.reader: Final = reader

    async def ensure(self, *, replicas: int) -> None:
        """Make the bucket where it is missing. Raises `Unavailable`."""
        name = subjects.bucket_stream(subjects.SSF)
        found = await self._ask(f"$JS.API.STREAM.INFO.{name}", b"")
        if "error" not in found:
            return
        if found["error"].get("err_code") != _NO_STREAM:
            raise Unavailable(f"bucket {subjects.SSF}: {found['error'].get('description')}")
        config = {
            "name": name,
            "subjects": [subjects.bucket_subjects(subjects.SSF)],
            "storage": "file",
            "retention": "limits",
            "num_replicas": replicas,
            "discard": "new",
            "max_msgs_per_subject": 1,
            "deny_delete": True,
            "allow_direct": True,
            "allow_rollup_hdrs": True,
            "allow_msg_ttl": True,
            "duplicate_window": DUPLICATE_WINDOW_SECONDS * _NANOSECONDS,
        }
        made = await self._ask(f"$JS.API.STREAM.CREATE.{name}", msgspec.json.encode(config))
        if "error" in made:
            raise Unavailable(f"bucket {subjects.SSF} cannot be made: {made['error'].get('description')}")

    async def get(self, key: str) -> Entry | None:
        """The stream of a key, as the leader has it. Raises `Unavailable`."""
        subject = subjects.bucket_key(subjects.SSF, key)
        found = (await self.reader.last_on_leader([subject])).get(subject)
        stream = None if found is None else stream_in(found)
        return None if found is None or stream is None else Entry(stream, found.sequence)

    async def streams_of(self, owner: str) -> list[Stream]:
        """The streams of a receiver, oldest first. Raises `Unavailable`."""
        found = await self.reader.last([subjects.bucket_key(subjects.SSF, f"{subjects.token(owner)}.*")])
        streams = [stream_in(each) for each in sorted(found.values(), key=lambda each: each.sequence)]
        return sorted((each for each in streams if each is not None), key=lambda each: each.stream_id)

    async def put(self, stream: Stream, *, revision: int) -> None:
        """Store a stream, if it still has this revision (0: is not there). Raises `Contended`, `Unavailable`."""
        subject = subjects.bucket_key(subjects.SSF, stream.key)
        headers = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        answer = await self._ask(subject, msgspec.json.encode(stream), headers)
        if "error" in answer:
            if answer["error"].get("err_code") == _WRONG_LAST_SEQUENCE:
                raise Contended(stream.stream_id)
            raise Unavailable(f"bucket {subjects.SSF}: {answer['error'].get('description')}")

    async def forget(self, key: str) -> None:
        """Delete a stream, with a mark that goes by itself. Raises `Unavailable`."""
        answer = await self._ask(subjects.bucket_key(subjects.SSF, key), b"", FORGET_HEADERS)
        if "error" in answer:
            raise Unavailable(f"bucket {subjects.SSF}: {answer['error'].get('description')}")

    async def _ask(self, subject: str, body: bytes, headers: dict[str, str] | None = None) -> dict[str, Any]:
        if not self._connection.is_connected:
            raise Unavailable("not connected to NATS")
        try:
            answer = await self._connection.request(
                subject, body, timeout=REQUEST_SECONDS, headers=None if headers is None else dict(headers)
            )
            decoded: dict[str, Any] = msgspec.json.decode(answer.data)
        except (TimeoutError, NatsError, OSError, msgspec.MsgspecError) as error:
            raise Unavailable(f"no answer from NATS about bucket {subjects.SSF}") from error
        return decoded
