"""The registry's composition root: real clock, real randomness, real connections; nobody else makes them."""

import asyncio
import json
import os
import random
import secrets
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog
import uuid_utils
from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide
from msgspec import structs
from nats.aio.client import Client

from door import front, health, limits, roles, sources
from door.limits import Limits
from grantbook import subjects
from grantbook.sdk import connection
from grantbook.sdk.log import LogReader, StreamState, Unavailable
from grantbook.sdk.tasks import end
from registry import enrolment, statements, streams
from registry.activity import ActivityLog
from registry.ahead import Ahead
from registry.api import admin, idp, registration
from registry.api.answers import ANSWERS
from registry.buckets import Bucket
from registry.commit import GroupCommit
from registry.fanout import Fanout
from registry.keys import Seals
from registry.register import Register
from registry.settings import Policy, Settings
from registry.store import Log
from registry.unused import Unused

WORKERS: Final = "GRANTBOOK_WORKERS"
"""Variable in which `serve --workers` tells each worker of how many it is one: they share what is let in."""
WATCH_SECONDS: Final = 1.0
MONITOR_SECONDS: Final = 2.0
WARN_CLOCK_SECONDS: Final = 5.0
MAX_CLOCK_SECONDS: Final = 60.0
"""A registry whose clock differs from the log's by more is not ready: users' cut-offs are as of the time it says."""
REPLACED: Final = "the log was replaced or restored: restart the registry"

ROUTES: Final = [*registration.ROUTES, *idp.ROUTES, *admin.ROUTES]
RENDERINGS: Final = {enrolment.PATH: registration.rendering}

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
        policy=policy_from(environment),
        nats_url=environment["GRANTBOOK_NATS_URL"],
        tokens_file=Path(environment["GRANTBOOK_TOKENS_FILE"]),
        base_url=environment["GRANTBOOK_URL"].rstrip("/"),
        nats_monitor_url=environment.get("GRANTBOOK_NATS_MONITOR_URL"),
        fanout=environment.get("GRANTBOOK_FANOUT", "on") != "off",
    )


def policy_from(environment: Mapping[str, str]) -> Policy:
    """The operator's choices about registration. Raises `ValueError` with the name of a variable that is wrong."""
    chosen: dict[str, Any] = {}
    for variable, (name, parse) in _POLICY.items():
        text = environment.get(variable)
        if text:
            try:
                chosen[name] = parse(text)
            except ValueError as error:
                message = f"{variable}: {error}"
                raise ValueError(message) from error
    policy, workers = Policy(**chosen), environment.get(WORKERS, "1")
    if not (workers.isascii() and workers.isdigit() and int(workers)):
        message = f"{WORKERS}: {workers!r} is no number of processes"
        raise ValueError(message)
    parts: dict[str, limits.Rate | None] = {}
    for variable, whole in (
        ("GRANTBOOK_REGISTRATION_LIMIT", policy.everyone),
        ("GRANTBOOK_REGISTRATION_LIMIT_PER_SOURCE", policy.source),
    ):
        try:
            parts[_POLICY[variable][0]] = limits.shared(whole, int(workers), largest=registration.MAX_TOKENS)
        except ValueError as error:
            message = f"{variable}: {error}"
            raise ValueError(message) from error
    return structs.replace(policy, **parts)


def _ceiling(text: str) -> int | None:
    if text == "off":
        return None
    if not (text.isascii() and text.isdigit()):
        message = f"{text!r} is no number, and not off"
        raise ValueError(message)
    return int(text)


def _switch(text: str) -> bool:
    if text not in {"on", "off"}:
        message = f"{text!r} is neither on nor off"
        raise ValueError(message)
    return text == "on"


_POLICY: Final[dict[str, tuple[str, Callable[[str], object]]]] = {
    "GRANTBOOK_REGISTRATION_LIMIT": ("everyone", limits.rate),
    "GRANTBOOK_REGISTRATION_LIMIT_PER_SOURCE": ("source", limits.rate),
    "GRANTBOOK_TRUSTED_PROXIES": ("proxies", sources.proxies),
    "GRANTBOOK_MAX_UNUSED_CLIENTS": ("max_unused_clients", _ceiling),
    "GRANTBOOK_IDEMPOTENT_REGISTRATION": ("idempotent_registration", _switch),
    "GRANTBOOK_ROTATE_CLIENT_SECRETS": ("rotate_client_secrets", _switch),
    "GRANTBOOK_SOFTWARE_STATEMENT_ISSUERS": ("software_statement_issuers", Path),
}


class Running:
    """A registry that runs: its parts, and how it is."""

    def __init__(self, register: Register, connection: Client, fanout: Fanout | None, unused: Unused | None) -> None:
        self.register = register
        self.connection = connection
        self.fanout = fanout
        self.unused = unused
        self.log_share = 0.0
        """How much of the log's `max_bytes` is used."""
        self.clock_off_seconds = 0.0
        """By how much this process's clock is ahead of the log's."""
        self._highest = 0
        self._connections = 0

    def compare_clocks(self, state: StreamState) -> None:
        """Whether this process's time is the log's. While it is not, nothing is written: see `Log.clock_wrong`."""
        self.clock_off_seconds = off = (self.register.now() - state.now).total_seconds()
        wrong = abs(off) > MAX_CLOCK_SECONDS
        self.register.log.clock_wrong = f"the registry's clock is {off:+.0f} s off the log's: set it" if wrong else None

    async def watch(self, feed: LogReader) -> None:
        """Keep an eye on the log: how full it is, and that it is still the one that was checked at the start."""
        while True:
            try:
                state = await self.register.log.reader.state()
                await self._look_again(feed)
            except Unavailable:
                pass  # readiness says so; what we knew of the log's size still holds
            except Exception:  # noqa: BLE001  whatever a server answers, the watch goes on
                _log.exception("cannot read the log's state")
            else:
                self.log_share = state.stored_bytes / state.max_bytes if state.max_bytes > 0 else 0.0
                self.compare_clocks(state)
                self.register.log.only_gates = self.log_share >= streams.FULL_SHARE
                # A log that was restored under us has a feed of another past: what is appended would never reach it.
                if state.identity != self.register.log_identity or state.last < self._highest:
                    self.register.log.replaced = REPLACED
                self._highest = max(self._highest, state.last)
            await asyncio.sleep(WATCH_SECONDS)

    async def _look_again(self, feed: LogReader) -> None:
        """After each reconnect: a log that was restored, and has grown since, looks like ours by its numbers."""
        connections = self.connection.stats["reconnects"]
        if connections == self._connections:
            return
        log = self.register.log
        try:
            await streams.check_feed(log.reader, feed)
        except streams.UnsafeStreams as error:
            log.replaced = str(error)
        if not await log.is_still_the_same():
            log.replaced = REPLACED
        self._connections = connections


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    """A registry connected and checked. At the end it finishes what it took, and lets go of everything.

    Raises `streams.UnsafeStreams`, `UnsafeServer`, `Unavailable`, `OSError`: it does not start on unsafe ground.
    `statements.StatementsRefused`: nor with issuers that it cannot read.
    """
    policy = settings.policy
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
        feed = await stack.enter_async_context(LogReader(nats, subjects.REVOCATIONS))
        await streams.check_feed(reader, feed)
        credentials = await stack.enter_async_context(Bucket(nats, subjects.CREDENTIALS, new_id=new_id))
        subscribers = await stack.enter_async_context(Bucket(nats, subjects.SUBSCRIBERS, new_id=new_id))
        user_keys = await stack.enter_async_context(Bucket(nats, subjects.USER_KEYS, new_id=new_id))
        log = Log(
            reader,
            await stack.enter_async_context(GroupCommit(nats, subjects.LOG)),
            new_id=new_id,
            jitter=random.random,
        )
        ahead = Ahead(credentials, new_id=new_id, random=secrets.token_bytes, clock=time.monotonic)
        register = Register(
            log=log,
            log_identity=(await reader.state()).identity,
            activity=ActivityLog(
                log, await stack.enter_async_context(GroupCommit(nats, subjects.ACTIVITY)), new_id=new_id
            ),
            activity_identity=(await activity_reader.state()).identity,
            activity_reader=activity_reader,
            credentials=credentials,
            ahead=ahead,
            subscribers=subscribers,
            seals=Seals(user_keys, random=secrets.token_bytes),
            now=now,
            new_id=new_id,
            random=secrets.token_bytes,
            limits=Limits(policy.everyone, policy.source, clock=time.monotonic),
            statements=statements.load(policy.software_statement_issuers, audience=settings.base_url),
            policy=policy,
            base_url=settings.base_url,
        )
        fanout = unused = None
        if settings.fanout:
            bucket = await stack.enter_async_context(Bucket(nats, subjects.FANOUT, new_id=new_id))
            fanout = Fanout(
                log, feed, bucket, holder=new_id(), now=now, pace_per_second=settings.fanout_pace_per_second
            )
            if policy.max_unused_clients is not None:
                unused = Unused(log, bucket, holder=new_id(), now=now, ceiling=policy.max_unused_clients)
        run = Running(register, nats, fanout, unused)
        run.compare_clocks(await reader.state())
        tasks = [
            asyncio.create_task(run.watch(feed), name="watch the log"),
            asyncio.create_task(ahead.run(), name="credentials kept ahead"),
        ]
        if fanout is not None:
            tasks.append(asyncio.create_task(fanout.run(), name="fan-out"))
        if unused is not None:
            tasks.append(asyncio.create_task(unused.run(), name="expiry of unused clients"))
        try:
            yield run
        finally:
            await end(*tasks)
            if fanout is not None:
                await fanout.release()
            if unused is not None:
                await unused.release()


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


async def clock_agrees(state: State) -> str | None:
    """Readiness: this process tells the time that the log does."""
    run: Running = state.registry
    return run.register.log.clock_wrong


async def clock_drifts(state: State) -> str | None:
    """A warning before that."""
    run: Running = state.registry
    off = run.clock_off_seconds
    return None if abs(off) <= WARN_CLOCK_SECONDS else f"the clock is {off:+.0f} s off the log's"


async def log_has_room(state: State) -> str | None:
    """A warning from 80 % of the log's `max_bytes`."""
    run: Running = state.registry
    return f"the log is {run.log_share:.0%} full" if run.log_share >= streams.WARN_SHARE else None


async def fanout_goes_on(state: State) -> str | None:
    """A warning while the fan-out waits for something."""
    run: Running = state.registry
    return None if run.fanout is None else run.fanout.trouble


async def expiry_goes_on(state: State) -> str | None:
    """A warning while the expiry of unused clients waits for something."""
    run: Running = state.registry
    return None if run.unused is None else run.unused.trouble


READY: Final[dict[str, health.Check]] = {"log": log_is_reachable, "clock": clock_agrees}
WARN: Final[dict[str, health.Check]] = {
    "log_size": log_has_room,
    "fanout": fanout_goes_on,
    "unused_clients": expiry_goes_on,
    "clock_drift": clock_drifts,
}


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

    keyring = roles.load(chosen.tokens_file, allow_development=chosen.allow_development_tokens)
    return application(keyring, lifespan)


def application(keyring: roles.Keyring, *lifespan: Callable[[Litestar], AbstractAsyncContextManager[None]]) -> Litestar:
    """The same for whoever has this keyring. Its state gets a `registry` that is `Running` before it is asked."""
    return front.litestar_app(
        ROUTES,
        name="registry",
        keyring=keyring,
        mint_request_id=new_id,
        ready=READY,
        warn=WARN,
        lifespan=lifespan,
        dependencies=DEPENDENCIES,
        answers=ANSWERS,
        renderings=RENDERINGS,
    )
