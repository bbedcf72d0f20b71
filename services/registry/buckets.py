"""Key-value buckets (NATS ADR-8) as the registry needs them: leader reads, writes by compare and set, group commit.

A bucket's key is a subject of a stream that keeps the last message of each. Every read that decides something is a
leader read: "missing" must not look like "erased".
"""

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Self

from msgspec import Struct
from nats.aio.client import Client

from grantbook import subjects
from grantbook.receipts import FORGET_HEADERS
from grantbook.sdk.log import LogReader
from registry.commit import Expected, GroupCommit, InFlight, Message, OutcomeUnknown, Stale

MAX_SENDS: Final = 3
MAX_WAITS: Final = 8
FIRST_WAIT_SECONDS: Final = 0.005
"""Where a write to the same key is under way; doubled each time, 1.3 s in all."""


class Entry(Struct, frozen=True):
    """A key's value and revision. `value` is None where the key was deleted or purged."""

    value: bytes | None
    revision: int


class Bucket:
    """One bucket. `async with` starts its group commit and its reader."""

    def __init__(self, connection: Client, name: str, *, new_id: Callable[[], str]) -> None:
        self._name = name
        self._new_id = new_id
        self._reader = LogReader(connection, subjects.bucket_stream(name))
        self._commit = GroupCommit(connection, subjects.bucket_stream(name))

    async def __aenter__(self) -> Self:
        await self._reader.__aenter__()
        await self._commit.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._commit.__aexit__(kind, error, trace)
        await self._reader.__aexit__(kind, error, trace)

    async def get(self, key: str) -> Entry | None:
        """What the leader has for the key; None where it never had a value. Raises `Unavailable`."""
        subject = subjects.bucket_key(self._name, key)
        found = (await self._reader.last_on_leader([subject])).get(subject)
        if found is None:
            return None
        operation = (found.headers or {}).get("KV-Operation")
        return Entry(None if operation in ("DEL", "PURGE") else found.data, found.sequence)

    async def put(self, key: str, value: bytes, *, revision: int) -> int | None:
        """Write the key if it still has `revision` (0: never written). The new revision; None when it has another.

        Raises the `AppendFailed`s and `Unavailable`.
        """
        subject = subjects.bucket_key(self._name, key)
        message = Message(subject, {}, value, self._new_id(), Expected(subject, revision))
        sends = waits = 0
        while sends < MAX_SENDS:
            try:
                return (await self._commit.submit(message)).sequence
            except Stale:
                return await self._ours(key, value, revision)
            except InFlight:
                # In a cluster: another's write, or a first try of this one, is not decided yet. So nobody was faster.
                if waits == MAX_WAITS:
                    raise
                await asyncio.sleep(FIRST_WAIT_SECONDS * 2**waits)
                waits += 1
            except OutcomeUnknown:
                sends += 1
            written = await self._ours(key, value, revision)
            if written is not None:
                return written
        message_ = f"bucket {self._name} did not say whether it stored a key"
        raise OutcomeUnknown(message_)

    async def put_new(self, entries: Mapping[str, bytes]) -> bool:
        """Write many keys that never had a value, beside what else is written. Whether all of them were.

        False where some were not, or nobody knows: none of them may be counted on. Raises the `AppendFailed`s.
        """
        messages = []
        for key, value in entries.items():
            subject = subjects.bucket_key(self._name, key)
            # Without an id for the server to remember: it is not tried again.
            messages.append(Message(subject, {}, value, "", Expected(subject, 0)))
        return await self._commit.together(messages) is not None

    async def forget(self, key: str) -> bool:
        """Take the key away, whatever it has, with a mark that goes by itself. Whether there was anything.

        Raises the `AppendFailed`s and `Unavailable`.
        """
        entry = await self.get(key)
        if entry is None or entry.value is None:
            return False
        subject = subjects.bucket_key(self._name, key)
        await self._commit.submit(Message(subject, FORGET_HEADERS, b"", self._new_id(), None))
        return True

    async def _ours(self, key: str, value: bytes, revision: int) -> int | None:
        """Revision of our own write, where a first try of it was stored although nobody said so."""
        entry = await self.get(key)
        if entry is None or entry.revision <= revision or entry.value != value:
            return None
        return entry.revision
