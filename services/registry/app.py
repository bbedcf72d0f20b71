"""The registry's composition root: real clock, real randomness, real connections; nobody else makes them."""

import asyncio
import json
import os
import random
import secrets
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
import uuid_utils
from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide
from nats.aio.client import Client

from door import front, health, roles
from grantbook import subjects
from grantbook.sdk import connection
from grantbook.sdk.log import LogReader, Unavailable
from grantbook.sdk.tasks import end
from registry import streams
from registry.activity import ActivityLog
from registry.api import admin, idp, registration
from registry.api.answers import ANSWERS
from registry.buckets import Bucket
from registry.commit import GroupCommit
from registry.fanout import Fanout
from registry.keys import Seals
from registry.register import Register
from registry.settings import Settings
from registry.store import Log

WATCH_SECONDS: Final = 1.0
MONITOR_SECONDS: Final = 2.0
REPLACED: Final = "the log was replaced or restored: restart the registry"

ROUTES: Final = [*registration.ROUTES, *idp.ROUTES, *admin.ROUTES]
RENDERINGS: Final = {registration.PATH: registration.rendering}

_log = structlog.get_logger("registry")


class UnsafeServer(Exception):
    """The NATS server would acknowledge what is not on disk yet."""


def now() -> datetime:
    """UTC, in microseconds."""
    return datetime.now(UTC)


def new_id() -> str:
    """A UUIDv7 (RFC 9562): unique, and in order of time, which databases like."""
    return str(uuid_utils.uuid7())


def settings_from(environment: Mapping[str, str]) -> Settings:
    """Settings out of `GRANTBOOK_...` variables. Raises `KeyError` with the name of a variable that is missing."""
    return Settings(
        nats_url=environment["GRANTBOOK_NATS_URL"],
        tokens_file=Path(environment["GRANTBOOK_TOKENS_FILE"]),
        base_url=environment["GRANTBOOK_URL"].rstrip("/"),
        nats_monitor_url=environment.get("GRANTBOOK_NATS_MONITOR_URL"),
        fanout=environment.get("GRANTBOOK_FANOUT", "on") != "off",
    )


class Running:
    """A registry that runs: its parts, and how it is."""

    def __init__(self, register: Register, connection: Client, fanout: Fanout | None) -> None:
        self.register = register
        self.connection = connection
        self.fanout = fanout
        self.log_share = 0.0
        """How much of the log's `max_bytes` is used."""
        self._highest = 0

    async def watch(self) -> None:
        """Keep an eye on the log: how full it is, and that it is still the one that was checked at the start."""
        while True:
            try:
                state = await self.register.log.reader.state()
            except Unavailable:
                pass  # readiness says so; what we knew of the log's size still holds
            except Exception:  # noqa: BLE001  whatever a server answers, the watch goes on
                _log.exception("cannot read the log's state")
            else:
                self.log_share = state.stored_bytes / state.max_bytes if state.max_bytes > 0 else 0.0
                self.register.log.only_gates = self.log_share >= streams.FULL_SHARE
                # A log that was restored under us has a feed of another past: what is appended would never reach it.
                restored = state.identity != self.register.log_identity or state.last < self._highest
                self.register.log.replaced = (
                    "the log was replaced or restored: restart the registry" if restored else None
                )
                self._highest = max(self._highest, state.last)
            await asyncio.sleep(WATCH_SECONDS)


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    """A registry connected and checked. At the end it finishes what it took, and lets go of everything.

    Raises `streams.UnsafeStreams`, `UnsafeServer`, `Unavailable`, `OSError`: it does not start on unsafe ground.
    """
    if settings.nats_monitor_url is not None:
        await refuse_lazy_server(settings.nats_monitor_url)
    async with AsyncExitStack() as stack:
        nats = await connection.connect(
            settings.nats_url, name="grantbook registry", on_trouble=lambda what: _log.warning("nats", what=what)
        )
        stack.push_async_callback(connection.close, nats)
        await streams.check(nats)
        reader = await stack.enter_async_context(LogReader(nats, subjects.LOG))
        activity_reader = await stack.enter_async_context(LogReader(nats, subjects.ACTIVITY))
        async with LogReader(nats, subjects.REVOCATIONS) as feed:
            await streams.check_feed(reader, feed)
        credentials = await stack.enter_async_context(Bucket(nats, subjects.CREDENTIALS, new_id=new_id))
        user_keys = await stack.enter_async_context(Bucket(nats, subjects.USER_KEYS, new_id=new_id))
        log = Log(
            reader,
            await stack.enter_async_context(GroupCommit(nats, subjects.LOG)),
            new_id=new_id,
            jitter=random.random,
        )
        register = Register(
            log=log,
            log_identity=(await reader.state()).identity,
            activity=ActivityLog(
                log, await stack.enter_async_context(GroupCommit(nats, subjects.ACTIVITY)), new_id=new_id
            ),
            activity_identity=(await activity_reader.state()).identity,
            credentials=credentials,
            seals=Seals(user_keys, random=secrets.token_bytes),
            now=now,
            new_id=new_id,
            random=secrets.token_bytes,
            base_url=settings.base_url,
        )
        fanout = None
        if settings.fanout:
            bucket = await stack.enter_async_context(Bucket(nats, subjects.FANOUT, new_id=new_id))
            fanout = Fanout(log, bucket, holder=new_id(), now=now, pace_per_second=settings.fanout_pace_per_second)
        run = Running(register, nats, fanout)
        tasks = [asyncio.create_task(run.watch(), name="watch the log")]
        if fanout is not None:
            tasks.append(asyncio.create_task(fanout.run(), name="fan-out"))
        try:
            yield run
        finally:
            await end(*tasks)
            if fanout is not None:
                await fanout.release()


async def refuse_lazy_server(monitor_url: str) -> None:
    """Refuse a NATS server that does not sync to disk before it acknowledges. Raises `UnsafeServer`.

    With JetStream's own default a power cut loses every event that was acknowledged in the last two minutes.
    """
    try:
        said = json.loads(await asyncio.to_thread(_read, f"{monitor_url.rstrip('/')}/varz"))
    except (OSError, ValueError) as error:
        message = f"cannot read the NATS server's settings at {monitor_url}: {error}"
        raise UnsafeServer(message) from error
    if not said.get("jetstream", {}).get("config", {}).get("sync_always"):
        message = "the NATS server acknowledges before its data is on disk: set `sync_interval: always` under jetstream"
        raise UnsafeServer(message)


def _read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=MONITOR_SECONDS) as answer:  # noqa: S310  an operator's setting
        body: bytes = answer.read()
        return body


async def log_is_reachable(state: State) -> str | None:
    """Readiness: the log answers."""
    run: Running = state.registry
    try:
        await run.register.log.reader.state()
    except Unavailable:
        return "NATS does not answer"
    if run.register.log.replaced is not None:
        return run.register.log.replaced
    return "the log is full: only revocations are recorded" if run.register.log.only_gates else None


async def log_has_room(state: State) -> str | None:
    """A warning from 80 % of the log's `max_bytes`."""
    run: Running = state.registry
    return f"the log is {run.log_share:.0%} full" if run.log_share >= streams.WARN_SHARE else None


async def fanout_goes_on(state: State) -> str | None:
    """A warning while the fan-out waits for something."""
    run: Running = state.registry
    return None if run.fanout is None else run.fanout.trouble


READY: Final[dict[str, health.Check]] = {"log": log_is_reachable}
WARN: Final[dict[str, health.Check]] = {"log_size": log_has_room, "fanout": fanout_goes_on}


async def the_register(state: State) -> Register:
    """The handlers' `register`."""
    run: Running = state.registry
    return run.register


DEPENDENCIES: Final = {"register": Provide(the_register)}


def create_app(settings: Settings | None = None) -> Litestar:
    """The registry as an ASGI application of its own, for any server. Without settings: from the environment."""
    chosen = settings or settings_from(os.environ)

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with running(chosen) as run:
            app.state.registry = run
            yield

    return front.litestar_app(
        ROUTES,
        name="registry",
        keyring=roles.load(chosen.tokens_file, allow_development=chosen.allow_development_tokens),
        mint_request_id=new_id,
        ready=READY,
        warn=WARN,
        lifespan=[lifespan],
        dependencies=DEPENDENCIES,
        answers=ANSWERS,
        renderings=RENDERINGS,
    )
