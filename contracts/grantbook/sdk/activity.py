"""Reporting the use of grants, without slowing a call. Needs `pip install 'grantbook[http]'`.

    async with ActivityReporter("https://grantbook.example", idp_token) as activity:
        activity.report(client_id, grant_id, "tool_call")

`report` only counts. What was counted goes to Grantbook once a second, or as soon as 1,000 grants were used. A crash of
the process loses what had not gone: at most that second, or those 1,000, and while Grantbook is away what is being
tried again and what waits behind it. All other losses are counted and told.
"""

import asyncio
import contextlib
import math
import random
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Literal, Self, get_args
from urllib.parse import urlsplit

import httpx
import msgspec
from msgspec import Struct

from grantbook.sdk.tasks import end

PATH: Final = "/idp/v1/activity"
FLUSH_SECONDS: Final = 1.0
FLUSH_ENTRIES: Final = 1_000
MAX_PENDING: Final = 100_000
"""Default of how many entries wait at most. Beyond it use of further grants is lost, and said to be."""
MAX_REFRESHES: Final = 100_000
"""Refreshes that wait beside: what they say of an expiry is worth more than a count."""
MAX_ENTRIES: Final = 5_000
MAX_REFRESHES_SENT: Final = 400
MAX_ID_CHARACTERS_SENT: Final = 1_000_000
"""Of one report: the contract takes twice as many entries, and 8 MiB; a character may be six bytes in JSON."""
MAX_CLIENT_ID_CHARACTERS: Final = 2_048
MAX_ID_CHARACTERS: Final = 512
REPORT_SECONDS: Final = 10.0
FIRST_RETRY_SECONDS: Final = 0.2
MAX_RETRY_SECONDS: Final = 10.0
MAX_WAIT_SECONDS: Final = 60.0
"""Longest that a server's `Retry-After` is obeyed."""
ONCE_SECONDS: Final = 110.0
"""Within it a report that is tried again counts once: the server remembers its id for two minutes."""
CLOSE_SECONDS: Final = 5.0

EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""Between these Grantbook takes a time."""

Kind = Literal["tool_call", "refresh"]

_WRITABLE: Final = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]+\Z")
"""Ids that Grantbook takes, and that UTF-8 can say."""
_SENDABLE: Final = re.compile(r"[\x21-\x7e]+\Z")
_NEVER_WENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_NOT_YET: Final = frozenset({408, 425, 429})
"""Answers below 500 that say that nothing was recorded, and that another try may be."""


class Counters(Struct):
    """What became of the uses that were reported, since the start. Uses, not entries."""

    reported: int = 0
    recorded: int = 0
    """Durable in the activity log. After trouble of more than two minutes some may be there twice: see `doubtful`."""
    rejected: int = 0
    """Of grants or kinds that Grantbook does not know."""
    lost: int = 0
    """Not known to be recorded, and not sent again."""
    doubtful: int = 0
    """Recorded by a try more than two minutes after the first, of which nobody knows whether it was recorded too."""
    reports: int = 0
    retries: int = 0


class _Window:
    """Use of one grant that has not gone yet."""

    __slots__ = ("count", "first_at", "last_at")

    def __init__(self, at: datetime) -> None:
        self.count = 0
        self.first_at = at
        self.last_at = at


class _Report(Struct, frozen=True):
    """What goes in one request, as often as it must: always the same bytes."""

    body: bytes
    uses: int


class ActivityReporter:
    """Counts use, and reports it. Open it with `async with`; leaving sends what is left, for some seconds.

    `idp_token` is a bearer token of the role `idp`. `on_loss` hears how many uses were lost or rejected, and why, as
    often as that is; it must not block. `http` may bring a client of your own, for other certificates or a proxy; it is
    left open. Call all of it in the thread of the event loop that it was opened in.

    Raises `ValueError` for a URL or a token that no request can be sent with.
    """

    def __init__(
        self,
        base_url: str,
        idp_token: str,
        *,
        max_pending: int = MAX_PENDING,
        flush_seconds: float = FLUSH_SECONDS,
        on_loss: Callable[[int, str], None] | None = None,
        http: httpx.AsyncClient | None = None,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("base_url is an http or https URL without query")
        if _SENDABLE.match(idp_token) is None:
            raise ValueError("idp_token has characters that no header can have")
        self.counters = Counters()
        self._url = base_url.rstrip("/") + PATH
        self._headers = {"Authorization": f"Bearer {idp_token}", "Content-Type": "application/json"}
        self._max_pending = max_pending
        self._flush_seconds = flush_seconds
        self._on_loss = on_loss
        self._given = http
        self._http: httpx.AsyncClient | None = None
        self._clock = _utc_now if clock is None else clock
        self._windows: dict[tuple[str, str, str], _Window] = {}
        self._refreshes: list[dict[str, Any]] = []
        self._waiting = 0
        self._sending = 0
        self._full = asyncio.Event()
        self._closed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def pending(self) -> int:
        """Uses that have not been recorded yet."""
        return self._waiting + self._sending

    def report(
        self,
        client_id: str,
        grant_id: str,
        kind: str,
        at: datetime | None = None,
        expires_at: datetime | None = None,
    ) -> None:
        """A grant was used, just now unless `at` says when. Only counts: never waits, and never raises for trouble.

        A `refresh` with `expires_at` moved the grant's expiry: each of these is kept and sent as it is. Raises
        `ValueError` for a time without zone, which would be somebody's local time.
        """
        said = [each for each in (at, expires_at) if each is not None]
        if any(each.utcoffset() is None for each in said):
            raise ValueError("a time needs a zone")
        self.counters.reported += 1
        if self._closed.is_set():
            why: str | None = "the reporter is closed"
        # One entry that is refused as malformed would take its whole report with it.
        elif not _is_id(client_id, MAX_CLIENT_ID_CHARACTERS) or not _is_id(grant_id, MAX_ID_CHARACTERS):
            why = "no grant has such an id"
        elif kind not in get_args(Kind):
            why = "use is a tool_call or a refresh"
        elif not all(EARLIEST <= each <= LATEST for each in said):
            why = "a time is between the years 1970 and 9999"
        elif expires_at is not None and kind == "refresh":
            why = self._keep_refresh(client_id, grant_id, at or self._clock(), expires_at)
        else:
            why = self._count((client_id, grant_id, kind), at or self._clock())
        if why is not None:
            self._lose(1, why)
            return
        self._waiting += 1
        if self._is_full:
            self._full.set()

    async def __aenter__(self) -> Self:
        self._http = self._given or httpx.AsyncClient(timeout=REPORT_SECONDS)
        self._task = asyncio.create_task(self._run(), name="grantbook activity")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._full.set()
        assert self._task is not None
        try:
            await asyncio.wait({self._task}, timeout=CLOSE_SECONDS)
        finally:
            await end(self._task)
            if self.pending:
                left, self._waiting, self._sending = self.pending, 0, 0
                self._windows.clear()
                self._refreshes.clear()
                self._lose(left, "the reporter was closed before Grantbook had confirmed it")
            if self._given is None and self._http is not None:
                await self._http.aclose()

    @property
    def _is_full(self) -> bool:
        return len(self._windows) + len(self._refreshes) >= FLUSH_ENTRIES

    def _count(self, key: tuple[str, str, str], at: datetime) -> str | None:
        """Count one use; why it cannot be, or None."""
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= self._max_pending:
                return "too many grants' use waits"
            window = self._windows[key] = _Window(at)
        window.count += 1
        window.first_at = min(window.first_at, at)
        window.last_at = max(window.last_at, at)
        return None

    def _keep_refresh(self, client_id: str, grant_id: str, at: datetime, expires_at: datetime) -> str | None:
        """Keep a refresh as it is; why it cannot be, or None."""
        if len(self._refreshes) >= MAX_REFRESHES:
            return "too many refreshes wait"
        grant = {"client_id": client_id, "grant_id": grant_id, "kind": "refresh"}
        self._refreshes.append(grant | {"at": at.astimezone(UTC), "expires_at": expires_at.astimezone(UTC)})
        return None

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), self._flush_seconds)
            more = True
            while more:
                self._full.clear()
                report = self._next()
                if report is None:
                    break
                await self._send(report)
                self._sending = 0
                # What came meanwhile waits for its second: else a busy service would send a report a call.
                more = self._closed.is_set() or self._is_full
            if self._closed.is_set():
                return

    def _next(self) -> _Report | None:
        """What goes next: refreshes first, then use, oldest grants first. None where there is nothing."""
        refreshes = self._refreshes[:MAX_REFRESHES_SENT]
        del self._refreshes[: len(refreshes)]
        entries = list(refreshes)
        uses = len(refreshes)
        characters = sum(len(each["client_id"]) + len(each["grant_id"]) for each in refreshes)
        while self._windows and len(entries) < MAX_ENTRIES and characters < MAX_ID_CHARACTERS_SENT:
            key = next(iter(self._windows))
            characters += 2 * (len(key[0]) + len(key[1]))
            window = self._windows.pop(key)
            entries += _entries(key, window)
            uses += window.count
        if not entries:
            return None
        self._waiting -= uses
        self._sending = uses
        # The id makes a second try of the same bytes count once.
        report_id = str(uuid.uuid4())  # noqa: TID251  for programs that are not ours
        return _Report(msgspec.json.encode({"activity": entries, "report_id": report_id}), uses)

    async def _post(self, report: _Report) -> httpx.Response:
        assert self._http is not None
        return await self._http.post(
            self._url, content=report.body, headers=self._headers, timeout=REPORT_SECONDS, follow_redirects=False
        )

    async def _send(self, report: _Report) -> None:
        """Send a report until it is recorded, or never can be. Returns then; raises nothing."""
        loop = asyncio.get_running_loop()
        unsure_since = math.inf
        pause = FIRST_RETRY_SECONDS
        while True:
            tried_at = loop.time()
            wait = pause * random.uniform(0.5, 1.0)  # noqa: S311  jitter
            try:
                answer = await self._post(report)
            except _NEVER_WENT:
                pass
            except Exception:  # noqa: BLE001  whatever became of the request: what was counted is not thrown away
                unsure_since = min(unsure_since, tried_at)
            else:
                if answer.status_code == 202:
                    self._recorded(report, answer, doubtful=loop.time() - unsure_since > ONCE_SECONDS)
                    return
                if answer.status_code < 500 and answer.status_code not in _NOT_YET:
                    self._lose(report.uses, f"Grantbook answered {answer.status_code}")
                    return
                if answer.status_code >= 500:
                    unsure_since = min(unsure_since, tried_at)
                wait = max(wait, _retry_after(answer))
            self.counters.retries += 1
            pause = min(pause * 2, MAX_RETRY_SECONDS)
            await self._wait(wait)

    async def _wait(self, seconds: float) -> None:
        """Wait, but not for long once it closes."""
        if self._closed.is_set():
            await asyncio.sleep(min(seconds, FIRST_RETRY_SECONDS))
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), seconds)

    def _recorded(self, report: _Report, answer: httpx.Response, *, doubtful: bool) -> None:
        rejected = _rejected(report, answer)
        self.counters.reports += 1
        self.counters.rejected += rejected
        self.counters.recorded += report.uses - rejected
        if doubtful:
            self.counters.doubtful += report.uses - rejected
        if rejected:
            self._tell(rejected, "Grantbook does not know these grants")

    def _lose(self, uses: int, why: str) -> None:
        self.counters.lost += uses
        self._tell(uses, why)

    def _tell(self, uses: int, why: str) -> None:
        if self._on_loss is not None:
            # Neither the call that is reported nor the reports that follow pay for an error in it.
            with contextlib.suppress(Exception):
                self._on_loss(uses, why)


def _entries(key: tuple[str, str, str], window: _Window) -> list[dict[str, Any]]:
    """A window as the contract has entries: the first use, and the others at the time of the last."""
    client_id, grant_id, kind = key
    grant = {"client_id": client_id, "grant_id": grant_id, "kind": kind}
    first = grant | {"at": window.first_at.astimezone(UTC)}
    if window.count == 1:
        return [first]
    return [first, grant | {"at": window.last_at.astimezone(UTC), "count": window.count - 1}]


def _rejected(report: _Report, answer: httpx.Response) -> int:
    """How many of the uses were not recorded, as the answer says."""
    try:
        indices = {each["index"] for each in answer.json()["rejected"]}
        if not indices:
            return 0
        entries = msgspec.json.decode(report.body)["activity"]
        return sum(entries[index].get("count", 1) for index in indices if index >= 0)
    except (ValueError, LookupError, TypeError):
        return 0  # recorded it is: 202 says so


def _is_id(text: str, max_characters: int) -> bool:
    return len(text) <= max_characters and _WRITABLE.match(text) is not None


def _retry_after(answer: httpx.Response) -> float:
    text = answer.headers.get("retry-after", "")
    return min(float(text), MAX_WAIT_SECONDS) if text.isascii() and text.isdigit() else 0.0


def _utc_now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251  the default for programs that are not ours; ours hand their clock in
