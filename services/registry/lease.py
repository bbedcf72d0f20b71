"""A lease in a bucket: of all registries, one does a piece of work in the background.

The work itself is idempotent and states what it expects of the log, so that a lease that two believe to hold costs
work twice and nothing else. That is why it may be told by clocks.
"""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import msgspec
from msgspec import Struct

from grantbook.sdk.log import Unavailable
from registry.buckets import Bucket
from registry.commit import AppendFailed

LEASE_SECONDS: Final = 5.0
RENEW_SECONDS: Final = 1.0


class Entry(Struct, frozen=True):
    """Who does the work, and until when (UTC) without renewing."""

    holder: str
    until: datetime


class LeaseLost(Exception):
    """Another registry does the work now."""


class Lease:
    """The lease of the name `key`, as `holder` sees it. `now` is its clock."""

    def __init__(self, bucket: Bucket, key: str, *, holder: str, now: Callable[[], datetime]) -> None:
        self._bucket = bucket
        self._key = key
        self._holder = holder
        self._now = now
        self._revision = 0
        self._renew_at = 0.0

    async def take(self) -> bool:
        """Take it, where it is free. Raises `LeaseLost`, `Unavailable` and the `AppendFailed`s."""
        entry = await self._bucket.get(self._key)
        if entry is not None and entry.value is not None:
            found = msgspec.json.decode(entry.value, type=Entry)
            if found.holder != self._holder and found.until > self._now():
                return False
        self._revision = 0 if entry is None else entry.revision
        await self._renew()
        return True

    async def keep(self) -> None:
        """Renew it when it is time: call this at least every `RENEW_SECONDS`. Raises as `take` does."""
        if asyncio.get_running_loop().time() >= self._renew_at:
            await self._renew()

    async def release(self) -> None:
        """Let go of it, so that another need not wait. With NATS away, it ends by itself."""
        ended = msgspec.json.encode(Entry(self._holder, self._now()))
        if self._revision:
            with contextlib.suppress(Unavailable, AppendFailed):
                await self._bucket.put(self._key, ended, revision=self._revision)

    async def _renew(self) -> None:
        entry = Entry(self._holder, self._now() + timedelta(seconds=LEASE_SECONDS))
        revision = await self._bucket.put(self._key, msgspec.json.encode(entry), revision=self._revision)
        if revision is None:
            self._revision = 0
            raise LeaseLost(self._holder)
        self._revision = revision
        self._renew_at = asyncio.get_running_loop().time() + RENEW_SECONDS
