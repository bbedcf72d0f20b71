"""Acting on many clients at once: begun by a form, done here in the background, looked at on a page.

Jobs live in this process. When it ends, the rest is not done; what was done stays, and asking again is harmless, since
every command is.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Final, Literal, Self

import structlog
from msgspec import Struct

from console.api import Away, Refused
from console.sessions import later
from grantbook.sdk.tasks import end

CONCURRENT_COMMANDS: Final = 16
"""The register commits what comes together together, so several at once cost little more than one."""
MAX_FAILURES_LISTED: Final = 1_000
MAX_JOBS: Final = 200
KEPT: Final = timedelta(hours=1)
TRIES: Final = 3
PERHAPS: Final = "Perhaps it was done, perhaps not: doing it again is harmless."
RETRY_SECONDS: Final = 1.0
"""Between tries, while a service is away."""

State = Literal["running", "finished", "stopped", "broken"]
_log = structlog.get_logger("console")


class Busy(Exception):
    """The admin has a job that runs: one at a time."""


class Failure(Struct, frozen=True):
    """A client that was left as it was, and why: a code of the API's, and its sentence."""

    client: str
    code: str
    detail: str


class Job(Struct, kw_only=True):
    """What is done to how many clients, and how far it is. Counts are of clients."""

    id: str
    admin: str
    what: str
    begun_at: datetime
    total: int
    done: int = 0
    failed: int = 0
    unsure: int = 0
    """Of which nobody knows whether it was done: the register may have heard, and did not say."""
    failures: list[Failure] = []
    """The failed, and the unsure."""
    state: State = "running"
    stopping: bool = False
    """Told to stop: nothing new is begun, and what is under way comes to its end."""
    stopped_by: str | None = None
    ended_at: datetime | None = None
    position: str | None = None
    """The latest of what was done: what token services must have for all of it to have arrived."""

    def reached(self, position: str | None) -> None:
        """Something was done there. Answers may come in another order than what they are about."""
        self.position = later(self.position, position)

    def note(self, client: str, error: Refused | Away) -> None:
        """Count a client that was not dealt with, for all that is known."""
        if isinstance(error, Refused) and error.status < 500:
            self.fail(client, error.code, error.detail)
        elif isinstance(error, Away) and not error.heard:
            self.fail(client, "unavailable", f"The {error.service} could not be asked.")
        else:
            said = error.detail if isinstance(error, Refused) else f"The {error.service} did not say."
            self.unsure += 1
            self._list(client, "unknown", f"{said} {PERHAPS}")

    def fail(self, client: str, code: str, detail: str) -> None:
        """Count a client that could not be dealt with; beyond a thousand they are counted alone."""
        self.failed += 1
        self._list(client, code, detail)

    def _list(self, client: str, code: str, detail: str) -> None:
        if len(self.failures) < MAX_FAILURES_LISTED:
            self.failures.append(Failure(client, code, detail))

    @property
    def left(self) -> int:
        """Clients that nothing was tried with yet."""
        return max(0, self.total - self.done - self.failed - self.unsure)

    def seconds_left(self, now: datetime) -> float | None:
        """How long it will take at the pace so far. None while that cannot be said."""
        tried = self.done + self.failed + self.unsure
        if self.state != "running" or tried == 0:
            return None
        return (now - self.begun_at).total_seconds() / tried * self.left


Work = Callable[[Job], Awaitable[None]]


class Jobs:
    """The jobs of this process. Use it as a context: at its end, jobs that run are stopped."""

    def __init__(self, *, new_id: Callable[[], str], now: Callable[[], datetime]) -> None:
        self._new_id = new_id
        self._now = now
        self._jobs: dict[str, Job] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(*self._tasks.values())

    def begin(self, admin: str, what: str, total: int, work: Work) -> Job:
        """Begin a job. Raises `Busy`."""
        if any(each.admin == admin and each.state == "running" for each in self._jobs.values()):
            raise Busy
        self._forget()
        job = Job(id=self._new_id(), admin=admin, what=what, begun_at=self._now(), total=total)
        self._jobs[job.id] = job
        self._tasks[job.id] = asyncio.create_task(self._run(job, work), name=f"job {job.id}")
        return job

    def find(self, job_id: str) -> Job | None:
        """The job of this id, while it is kept."""
        return self._jobs.get(job_id)

    def latest(self) -> list[Job]:
        """All that are kept, the newest first."""
        return sorted(self._jobs.values(), key=lambda each: each.begun_at, reverse=True)

    def stop(self, job_id: str, admin: str) -> None:
        """Stop a job after the commands that are under way. Any admin may."""
        job = self._jobs.get(job_id)
        if job is not None and job.state == "running" and not job.stopping:
            job.stopping, job.stopped_by = True, admin
            _log.info("a job is stopped", job=job_id, begun_by=job.admin, stopped_by=admin)

    async def _run(self, job: Job, work: Work) -> None:
        try:
            await work(job)
            job.state = "stopped" if job.stopping and job.left else "finished"
        except asyncio.CancelledError:
            job.state = "stopped"
        except Exception as error:  # noqa: BLE001  whatever it is: the page says that it did not come to its end
            job.state = "broken"
            _log.warning("a job broke off", exc_info=error)
        finally:
            job.ended_at = self._now()
            self._tasks.pop(job.id, None)

    def _forget(self) -> None:
        ended = [each for each in self.latest() if each.ended_at is not None]
        for number, job in enumerate(ended, start=len(self._tasks) + 1):
            if number >= MAX_JOBS or self._now() - (job.ended_at or job.begun_at) > KEPT:
                del self._jobs[job.id]


async def for_each(job: Job, clients: Sequence[str], command: Callable[[str], Awaitable[str]]) -> None:
    """Run a command, which gives its position, for each client, some at a time. What is refused is noted."""
    waiting = iter(clients)

    async def worker() -> None:
        for each in waiting:
            if job.stopping:
                return
            try:
                job.reached(await patiently(lambda each=each: command(each)))  # type: ignore[misc]
                job.done += 1
            except asyncio.CancelledError:
                job.unsure += 1
                raise
            except (Refused, Away) as error:
                job.note(each, error)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(CONCURRENT_COMMANDS, len(clients))):
            group.create_task(worker())


async def patiently(ask: Callable[[], Awaitable[str]]) -> str:
    """Ask again while the service is away, a few times. Raises `Away`, heard if any try was, and `Refused`."""
    heard = False
    for tried in range(1, TRIES + 1):
        try:
            return await ask()
        except Away as away:
            heard = heard or away.heard
            if tried == TRIES:
                raise Away(away.service, away.why, heard=heard) from away
            await asyncio.sleep(RETRY_SECONDS)
    raise AssertionError("the last try returns or raises")


async def gathered(pages: AsyncIterator[list[str]], most: int) -> list[str]:
    """All that the pages hold, up to `most`."""
    found: list[str] = []
    async for page in pages:
        found += page
        if len(found) >= most:
            break
    return found[:most]
