"""Credentials that are kept ahead of the clients they will be given to, so that a registration waits for one append.

Hashes come before the event that makes them count. While many register, each would wait for two appends in a row, and
for half of the round before each. So the hashes of as many as will register in the next moment are kept together, as
one batch, and a registration takes its credentials, with the client id that they are kept under, from those.

What nobody takes in time is dropped: its hashes are orphans, of credentials that nobody was ever shown. They are no
more than were taken, and in each process at most a batch of each kind in `FRESH_SECONDS`. Where few register there are
none.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec
import structlog
from msgspec import Struct

from grantbook import subjects
from registry import credentials
from registry.buckets import Bucket
from registry.commit import MAX_BATCH_MESSAGES, MIN_BATCH_MESSAGES, AppendFailed, OutcomeUnknown
from registry.credentials import RANDOM_BYTES, Issued

AHEAD_SECONDS: Final = 0.2
"""As many are kept ahead as were taken in so long, up to a batch: several rounds of the server."""
FRESH_SECONDS: Final = 5.0
"""No older ones are given, or soon even there: a client's id tells when it was made, and secrets do not lie about."""
WAIT_SECONDS: Final = 0.5
"""Before another try, where they could not be kept."""

_log = structlog.get_logger("registry")


class Blank(Struct, frozen=True):
    """An id that no client has yet, and credentials whose hashes are kept under it."""

    client_id: str
    issued: Issued


class Ahead:
    """Blanks, for whoever registers. `new_id` gives a UUIDv7, `random` that many random bytes, `clock` seconds."""

    def __init__(
        self,
        bucket: Bucket,
        *,
        new_id: Callable[[], str],
        random: Callable[[int], bytes],
        clock: Callable[[], float],
    ) -> None:
        self._bucket = bucket
        self._new_id = new_id
        self._random = random
        self._clock = clock
        self._shelves = {with_secret: _Shelf() for with_secret in (False, True)}
        self._wakeup = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Blanks that nobody has taken yet."""
        return sum(len(each) for each in self._shelves.values())

    async def take(self, *, with_secret: bool) -> Blank:
        """A blank that nobody else is given, its hashes on disk. Raises the `AppendFailed`s and `Unavailable`."""
        shelf, now = self._shelves[with_secret], self._clock()
        blank = shelf.take(now)
        if shelf.missing(now):
            self._wakeup.set()
        if blank is None:
            blank = self._blank(self._random(RANDOM_BYTES), with_secret=with_secret)
            await credentials.keep(self._bucket, subjects.token(blank.client_id), blank.issued.kept)
        return blank

    async def run(self) -> None:
        """Keep as many ahead as are wanted. Ends only by being cancelled."""
        while True:
            await self._asked_for()
            try:
                for with_secret in self._shelves:
                    await self._fill(with_secret=with_secret)
            except AppendFailed as error:
                _log.warning("no credentials are kept ahead", reason=f"{type(error).__name__}: {error}")
            except Exception:  # noqa: BLE001  whatever it is, registering goes on
                _log.exception("no credentials can be kept ahead")
            else:
                continue
            # Whoever registers meanwhile waits for two appends, and is told what fails.
            await asyncio.sleep(WAIT_SECONDS)

    async def _asked_for(self) -> None:
        """Wait until somebody finds too few. What grows old meanwhile is dropped."""
        while not self._wakeup.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(FRESH_SECONDS if self.waiting else None):
                    await self._wakeup.wait()
            for shelf in self._shelves.values():
                shelf.drop_old(self._clock())
        self._wakeup.clear()

    async def _fill(self, *, with_secret: bool) -> None:
        shelf = self._shelves[with_secret]
        made_at = self._clock()
        missing = shelf.missing(made_at)
        if not missing:
            return
        random = self._random(missing * RANDOM_BYTES)  # asked for at once: each asking is a call of the kernel
        blanks = [
            self._blank(random[start : start + RANDOM_BYTES], with_secret=with_secret)
            for start in range(0, len(random), RANDOM_BYTES)
        ]
        hashes = {subjects.token(each.client_id): msgspec.json.encode(each.issued.kept) for each in blanks}
        if not await self._bucket.put_new(hashes):
            message = "not all were stored, or nobody knows"
            raise OutcomeUnknown(message)
        shelf.put(blanks, made_at)

    def _blank(self, random: bytes, *, with_secret: bool) -> Blank:
        return Blank(self._new_id(), credentials.issue(random, with_secret=with_secret))


class _Shelf:
    """Blanks of one kind, the oldest first with the time when it was made, and how many are wanted."""

    def __init__(self) -> None:
        self._blanks: deque[tuple[float, Blank]] = deque()
        self._window = 0
        self._taken = 0
        """In this window of `AHEAD_SECONDS`."""
        self._taken_before = 0
        """In the window before."""

    def __len__(self) -> int:
        return len(self._blanks)

    def take(self, now: float) -> Blank | None:
        window = int(now / AHEAD_SECONDS)
        if window != self._window:
            self._taken_before = self._taken if window == self._window + 1 else 0
            self._window, self._taken = window, 0
        self._taken += 1
        self.drop_old(now)
        return self._blanks.popleft()[1] if self._blanks else None

    def put(self, blanks: list[Blank], made_at: float) -> None:
        self._blanks.extend((made_at, blank) for blank in blanks)

    def drop_old(self, now: float) -> None:
        while self._blanks and now - self._blanks[0][0] >= FRESH_SECONDS:
            self._blanks.popleft()

    def missing(self, now: float) -> int:
        """How many to make now: none while half of what is wanted is there, or where a batch would be too small."""
        if int(now / AHEAD_SECONDS) != self._window:
            return 0
        wanted = min(max(self._taken, self._taken_before), MAX_BATCH_MESSAGES)
        missing = wanted - len(self._blanks)
        return missing if missing >= MIN_BATCH_MESSAGES and 2 * missing >= wanted else 0
