"""Deleting a client with a million grants: what the deletion takes, and what others notice of what comes after it.

`python -m benchmarks.fanout --grants 1000000`. Figures are compared within one run: of others before the deletion,
while its events are written, and after them.
"""

import asyncio
import itertools
import json
import math
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import nats
import psutil
import uuid_utils
from msgspec import Struct
from nats.aio.client import Client
from rich.console import Console

from benchmarks import raw
from benchmarks.figures import Figure, machine, show
from deploy.dev import processes
from grantbook import subjects, wire
from grantbook.events import Actor, ClientMetadata, ClientRegistered, Event, GrantIssued
from grantbook.sdk.log import LogReader
from grantbook.sdk.revocations import RevocationFeed
from grantbook.sdk.tasks import end
from grantbook.sealed import KEY_BYTES, NONCE_BYTES, Sealed, seal, user_key_id

GRANTS: Final = 1_000_000
USERS: Final = 10_000
BATCH: Final = 500
SMALL_CLIENTS: Final = 45
"""Clients with one grant that are deleted, to compare with."""
WARM_CLIENTS: Final = 5
"""More of these, just before the one with all the grants. That one has no median: see `LARGE_CLIENTS`."""
LARGE_CLIENTS: Final = 9
"""Clients that are deleted beside the one with all the grants: one deletion alone has no median."""
LARGE_SHARE: Final = 100
"""Each of these has so many times fewer grants."""
CALM_SECONDS: Final = 30.0
REGISTRATIONS_PER_SECOND: Final = 50
REVOCATIONS_PER_SECOND: Final = 10
LOOKED_AT: Final = 5
"""One of so many registrations is looked for in the read model."""
OTHERS_GRANTS: Final = 40_000
CONNECTIONS: Final = 64
LOOK_SECONDS: Final = 0.000_5
POLL_SECONDS: Final = 0.1
SAMPLE_SECONDS: Final = 0.25
ANSWER_SECONDS: Final = 30.0
PROJECTION_SECONDS: Final = 900.0
FANOUT_SECONDS: Final = 3_600.0
SETTLE_SECONDS: Final = 5.0
TELL_SECONDS: Final = 10.0
LIFETIME: Final = timedelta(days=30)
TOKEN_LIFETIME: Final = timedelta(hours=1)
MEGABYTE: Final = 1_000_000

BAR_SAME: Final = 1.2
"""What is as fast as without takes at most so many times as long."""
BAR_READ_MILLISECONDS: Final = 1_000.0
BAR_FANOUT_SECONDS: Final = 90.0
BAR_MEGABYTES: Final = 300.0

BIG: Final = "big"
ALONE: Final = "alone"
LARGE: Final = "large"
SMALL: Final = "small"
OTHERS: Final = "others"

console: Final = Console(stderr=True)


class Answer(Struct, frozen=True):
    """An HTTP answer, and the seconds from sending its request to having all of it."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    @property
    def position(self) -> str:
        """Where in the log what was done stands."""
        return self.headers["grantbook-position"]

    @property
    def sequence(self) -> int:
        """Its sequence there."""
        return int(self.position.rpartition("-")[2])


class Connection:
    """A keep-alive HTTP/1.1 connection to a service on this machine."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: object = None) -> Answer:
        """Send a request, and wait for its answer."""
        if self._streams is None or self._streams[0].at_eof():  # idle for so long that the server closed it
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        content = b"" if body is None else json.dumps(body).encode()
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: bench",
            f"Content-Length: {len(content)}",
            *(["Content-Type: application/json"] if content else []),
            f"Authorization: Bearer {self._token}",
        ]
        started = time.perf_counter()
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        fields = (line.partition(":") for line in head.split("\r\n")[1:])
        headers = {name.lower(): value.strip() for name, _, value in fields}
        content = await reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(int(head[9:12]), headers, content, time.perf_counter() - started)


class Times(Struct):
    """Milliseconds of what others did in a stretch of time."""

    registrations: list[float] = []
    revocations: list[float] = []
    projections: list[float] = []
    late: int = 0
    """Reads that said 503: not projected within what they wait for."""


class Others:
    """A steady load of other clients. Each request has its time, and what is late for it counts from there."""

    def __init__(self, registry: int, reads: int, token: str) -> None:
        self.times = Times()
        """Where times go now: put another there for the next stretch."""
        self._idle: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        self._idle_reads: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        for _ in range(CONNECTIONS):
            self._idle.put_nowait(Connection(registry, token))
            self._idle_reads.put_nowait(Connection(reads, token))
        self._grants = itertools.count()
        self._requests: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._every(1 / REGISTRATIONS_PER_SECOND, self._register))
            group.create_task(self._every(1 / REVOCATIONS_PER_SECOND, self._revoke))

    async def _every(self, seconds: float, request: Callable[[int, float], Coroutine[None, None, None]]) -> None:
        at = time.perf_counter()
        for number in itertools.count():
            at += seconds
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            task = asyncio.create_task(request(number, at))
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)

    async def _register(self, number: int, at: float) -> None:
        times = self.times
        body = {
            "client_name": f"Agent {number % 50}",
            "redirect_uris": [f"https://agent-{number % 50}.example/callback"],
            "token_endpoint_auth_method": "none",
        }
        answer = await _ask(self._idle, "POST", "/auth/connect/register", body)
        done = time.perf_counter()
        assert answer.status == 201, answer
        times.registrations.append((done - at) * 1_000)
        if number % LOOKED_AT == 0:
            path = f"/admin/v1/clients/{json.loads(answer.body)['client_id']}?at_least={answer.position}"
            while (await _ask(self._idle_reads, "GET", path)).status != 200:
                times.late += 1  # not there within what the read API waits for
            times.projections.append((time.perf_counter() - done) * 1_000)

    async def _revoke(self, _: int, at: float) -> None:
        times = self.times
        path = f"/admin/v1/clients/{OTHERS}/grants/{OTHERS}-{next(self._grants)}/revoke"
        answer = await _ask(self._idle, "POST", path, {})
        assert answer.status == 204, answer
        times.revocations.append((time.perf_counter() - at) * 1_000)


async def _ask(idle: "asyncio.LifoQueue[Connection]", method: str, path: str, body: object = None) -> Answer:
    connection = await idle.get()
    answer = await connection.ask(method, path, body)
    idle.put_nowait(connection)
    return answer


@asynccontextmanager
async def loaded(others: Others) -> AsyncIterator[None]:
    """The load, for as long as this is open."""
    task = asyncio.create_task(others.run())
    try:
        yield
    finally:
        if task.done():
            task.result()
        await end(task)


class Memory:
    """The most that each service process had in memory, sampled."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}
        self._processes = {
            " ".join(each.cmdline()[2:4]): each for each in psutil.Process().children() if "-m" in each.cmdline()
        }

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            for name, process in self._processes.items():
                self.bytes[name] = max(self.bytes.get(name, 0), process.memory_info().rss)
            await asyncio.sleep(SAMPLE_SECONDS)


async def seed(connection: Client, grants: int) -> int:
    """The clients and their grants, straight into the log. Where the last event stands."""
    dice = random.Random(7)
    names: list[tuple[str, Sealed]] = []
    for number in range(USERS):
        user, key = f"user-{number}", dice.randbytes(KEY_BYTES)
        await connection.publish(subjects.bucket_key(subjects.USER_KEYS, user_key_id(user)), key)
        name = f"{user}@example.com".encode()
        names.append((user, seal(name, key_id=user_key_id(user), key=key, nonce=dice.randbytes(NONCE_BYTES))))
    await connection.flush()
    sizes = {BIG: grants, ALONE: grants, OTHERS: OTHERS_GRANTS}
    sizes |= {f"{LARGE}-{number}": grants // LARGE_SHARE for number in range(LARGE_CLIENTS)}
    sizes |= {f"{SMALL}-{number}": 1 for number in range(SMALL_CLIENTS + WARM_CLIENTS)}
    events = itertools.chain.from_iterable(_client(client, size, names) for client, size in sizes.items())
    last = 0
    for number in itertools.count():
        batch = list(itertools.islice(events, BATCH))
        if not batch:
            break
        last = await _append(connection, f"seed-{number}", batch)
    return last


def _client(client: str, grants: int, names: Sequence[tuple[str, Sealed]]) -> Iterator[Event]:
    now = datetime.now(UTC)
    metadata = ClientMetadata(
        redirect_uris=(f"https://{client}.example/callback",),
        token_endpoint_auth_method="none",  # noqa: S106  a method, no password
        grant_types=("authorization_code", "refresh_token"),
        response_types=("code",),
        client_name=client,
    )
    yield ClientRegistered(client_id=client, source="dcr", metadata=metadata, at=now, by=Actor("agent"))
    for number in range(grants):
        user, username = names[number % len(names)]
        yield GrantIssued(
            client_id=client,
            grant_id=f"{client}-{number}",
            user_id=user,
            username=username,
            scopes=("read", "write"),
            expires_at=now + LIFETIME,
            at=now,
            by=Actor("idp", "seed"),
        )


async def _append(connection: Client, batch_id: str, events: Sequence[Event]) -> int:
    for number, event in enumerate(events, start=1):
        each = wire.encode(event, event_id=str(uuid_utils.uuid7()))
        headers = each.headers | {"Nats-Batch-Id": batch_id, "Nats-Batch-Sequence": str(number)}
        if number < len(events):
            await connection.publish(each.subject, each.body, headers=headers)
    headers["Nats-Batch-Commit"] = "1"
    answer = await connection.request(each.subject, each.body, headers=headers, timeout=ANSWER_SECONDS)
    acknowledged = msgspec.json.decode(answer.data)
    assert "error" not in acknowledged, acknowledged
    return int(acknowledged["seq"])


class Deletion(Struct, frozen=True):
    """A client's deletion: milliseconds to the answer, and to the moment at which a token service denies."""

    answered: float
    denied: float
    position: str

    @property
    def sequence(self) -> int:
        """Where in the log it stands."""
        return int(self.position.rpartition("-")[2])


async def delete(admin: Connection, feed: RevocationFeed, client: str) -> Deletion:
    """Delete it, and look when it is denied."""
    issued_at = datetime.now(UTC)
    assert not feed.is_revoked(client, f"{client}-0", "user-0", issued_at)
    started = time.perf_counter()
    asked = asyncio.create_task(admin.ask("DELETE", f"/admin/v1/clients/{client}"))
    while not feed.is_revoked(client, f"{client}-0", "user-0", issued_at):
        await asyncio.sleep(LOOK_SECONDS)
    denied = (time.perf_counter() - started) * 1_000
    answer = await asked
    assert answer.status == 204, answer
    return Deletion(answer.seconds * 1_000, denied, answer.position)


async def _ready(feed: RevocationFeed) -> None:
    while feed.state != "fresh":
        await asyncio.sleep(POLL_SECONDS)
    await asyncio.sleep(1.0)  # the second after which it compares itself with its stream is not what is measured


async def fanned_out(bucket: LogReader, sequence: int) -> None:
    """Until the registry says that the fan-out of every deletion up to this place is done."""
    key = subjects.bucket_key(subjects.FANOUT, "checkpoint")
    async with asyncio.timeout(FANOUT_SECONDS):
        while True:
            found = (await bucket.last_on_leader([key])).get(key)
            if found is not None and msgspec.json.decode(found.data)["position"] >= sequence:
                return
            await asyncio.sleep(POLL_SECONDS)


async def projected(reads: Connection, sequence: int, *, tell: bool = False) -> None:
    """Until the read model has come to this place of the log."""
    told = time.perf_counter()
    async with asyncio.timeout(PROJECTION_SECONDS):
        while True:
            status = json.loads((await reads.ask("GET", "/admin/v1/status")).body)
            reached = int(status["read_models"]["log"]["position"].rpartition("-")[2])
            if reached >= sequence:
                return
            if tell and time.perf_counter() - told > 10:
                told = time.perf_counter()
                say(f"projected {reached:,} of {sequence:,}")
            await asyncio.sleep(POLL_SECONDS)


async def fanout(servers: processes.Product, grants: int = GRANTS, calm_seconds: float = CALM_SECONDS) -> list[Figure]:
    """Measure one deletion of a client with so many grants, and others meanwhile. It starts the services itself."""
    connection = await nats.connect(servers.nats_url)
    try:
        say(f"seeding {grants:,} grants of one client")
        head = await seed(connection, grants)
        with (
            processes.service(servers, "registry", "serve") as registry,
            processes.service(servers, "projector", "serve", until="/healthz") as reads,
            processes.service(servers, "projector", "project", serves=False),
        ):
            memory = Memory()
            sampling = asyncio.create_task(memory.run())
            say(f"projecting {head:,} events")
            await projected(Connection(reads, servers.tokens["admin"]), head, tell=True)
            figures = _figures(await Run(servers, connection, registry, reads).measured(grants, calm_seconds), grants)
            await end(sampling)
        return figures + [
            Figure(
                f"most memory of `{name}`",
                most / MEGABYTE,
                "MB",
                BAR_MEGABYTES,
                "bar",
                "<= 300 MB",
                most / MEGABYTE <= BAR_MEGABYTES,
            )
            for name, most in memory.bytes.items()
        ]
    finally:
        await connection.close()


class Measured(Struct, kw_only=True):
    """What a run came to. Times of fan-outs are seconds."""

    small: list[Deletion] = []
    large: list[Deletion] = []
    big: Deletion | None = None
    reads: dict[str, float] = {}
    """Milliseconds."""
    before: Times
    during: Times
    after: Times
    beside: float = 0.0
    beside_projected: float = 0.0
    alone: float = 0.0
    alone_projected: float = 0.0


class Run:
    """The services, and who asks them."""

    def __init__(self, servers: processes.Product, connection: Client, registry: int, reads: int) -> None:
        token = servers.tokens["admin"]
        self._servers = servers
        self._admin = Connection(registry, token)
        self._reads = Connection(reads, token)
        self._others = Others(registry, reads, token)
        self._log = LogReader(connection, subjects.LOG)
        self._bucket = LogReader(connection, subjects.bucket_stream(subjects.FANOUT))

    async def measured(self, grants: int, calm_seconds: float) -> Measured:
        """All of it, in order."""
        it = Measured(before=Times(), during=Times(), after=Times())
        async with self._log, self._bucket:
            async with loaded(self._others):
                say("deleting clients with one grant, and with many")
                await self._delete_small_and_large(it)
                say("others, before")
                self._others.times = it.before
                await asyncio.sleep(calm_seconds)
                say(f"deleting the client with {grants:,} grants")
                await self._delete_big(it, grants)
                await asyncio.sleep(SETTLE_SECONDS)
                say("others, after")
                self._others.times = it.after
                await asyncio.sleep(calm_seconds)
            say("deleting another such client, with nobody else there")
            started = time.perf_counter()
            answer = await self._admin.ask("DELETE", f"/admin/v1/clients/{ALONE}")
            await fanned_out(self._bucket, answer.sequence)
            it.alone = time.perf_counter() - started
            await self._all_projected()
            it.alone_projected = time.perf_counter() - started
        return it

    async def _delete_small_and_large(self, it: Measured) -> None:
        async with RevocationFeed(self._servers.nats_url, TOKEN_LIFETIME) as feed:
            await _ready(feed)
            for number in range(SMALL_CLIENTS):
                it.small.append(await delete(self._admin, feed, f"{SMALL}-{number}"))
                if number % (SMALL_CLIENTS // LARGE_CLIENTS) == 0 and len(it.large) < LARGE_CLIENTS:
                    it.large.append(await delete(self._admin, feed, f"{LARGE}-{len(it.large)}"))
                    await fanned_out(self._bucket, it.large[-1].sequence)
                    await self._all_projected()

    async def _delete_big(self, it: Measured, grants: int) -> None:
        async with RevocationFeed(self._servers.nats_url, TOKEN_LIFETIME) as feed:
            await _ready(feed)
            for number in range(SMALL_CLIENTS, SMALL_CLIENTS + WARM_CLIENTS):
                it.small.append(await delete(self._admin, feed, f"{SMALL}-{number}"))
            self._others.times = it.during
            started = time.perf_counter()
            it.big = await delete(self._admin, feed, BIG)
        path = f"/admin/v1/clients/{BIG}"
        first = time.perf_counter()
        detail = await self._read(f"{path}?at_least={it.big.position}")
        page = await self._read(f"{path}/grants?at_least={it.big.position}")
        it.reads["admin reads show no active grant, from the answer on"] = (time.perf_counter() - first) * 1_000
        assert (detail["status"], detail["active_grants"], page["items"]) == ("deleted", 0, [])
        await self._list(it, "at once", grants)
        await fanned_out(self._bucket, it.big.sequence)
        it.beside = time.perf_counter() - started
        say(f"the fan-out took {it.beside:.0f} s")
        await self._all_projected()
        it.beside_projected = time.perf_counter() - started
        await self._list(it, "after the fan-out", grants)

    async def _list(self, it: Measured, when: str, grants: int) -> None:
        path = f"/admin/v1/clients/{BIG}/grants?status=revoked&limit=50"
        started = time.perf_counter()
        assert len((await self._read(path))["items"]) == 50
        it.reads[f"50 revoked grants, {when}"] = (time.perf_counter() - started) * 1_000
        started = time.perf_counter()
        assert (await self._read(f"{path}&count=true"))["total"] == grants
        it.reads[f"50 revoked grants, counted, {when}"] = (time.perf_counter() - started) * 1_000

    async def _all_projected(self) -> None:
        await projected(self._reads, (await self._log.state()).last, tell=True)

    async def _read(self, path: str) -> dict[str, Any]:
        answer = await self._reads.ask("GET", path)
        assert answer.status == 200, answer
        said: dict[str, Any] = json.loads(answer.body)
        return said


def _figures(it: Measured, grants: int) -> list[Figure]:
    assert it.big is not None
    one = f"a client with one grant, of {len(it.small)}"
    many = f"{grants // LARGE_SHARE:,} grants, of {len(it.large)}"
    small = _median(each.answered for each in it.small)
    small_denied = _median(each.denied for each in it.small)
    figures = [
        _time(f"deletion with {many}, p50", _median(each.answered for each in it.large), small, one),
        _time(f"deletion with {grants:,} grants, the one", it.big.answered, small, one),
        _time(f"denied with {many}, p50", _median(each.denied for each in it.large), small_denied, one),
        _time(f"denied with {grants:,} grants, the one", it.big.denied, small_denied, one),
    ]
    for what, milliseconds in it.reads.items():
        met = milliseconds <= BAR_READ_MILLISECONDS
        figures.append(Figure(what, milliseconds, "ms", BAR_READ_MILLISECONDS, "bar", "<= 1,000 ms", met))
    met = it.alone <= BAR_FANOUT_SECONDS
    figures += [
        Figure("fan-out, nobody else there", it.alone, "s", BAR_FANOUT_SECONDS, "goal", "<= 90 s", met),
        Figure("fan-out and projected", it.alone_projected, "s", it.alone, "fan-out", "", None),
        Figure("fan-out beside others", it.beside, "s", it.alone, "nobody else there", "", None),
        Figure("fan-out beside others, and projected", it.beside_projected, "s", it.beside, "fan-out", "", None),
    ]
    for what, name in (
        ("others' registrations", "registrations"),
        ("others' revocations", "revocations"),
        ("others' registrations, from 201 to the read model", "projections"),
    ):
        during, calm = getattr(it.during, name), [*getattr(it.before, name), *getattr(it.after, name)]
        figures.append(Figure(f"{what}, p50", _at(during, 0.5), "ms", _at(calm, 0.5), "without fan-out", "", None))
        figures.append(_time(f"{what}, p99", _at(during, 0.99), _at(calm, 0.99), "without fan-out"))
        told = (
            " ".join(f"{_at(getattr(times, name), share):.1f}" for share in (0.5, 0.9, 0.99, 1.0))
            for times in (it.before, it.during, it.after)
        )
        say(f"{what}, ms at 50, 90, 99, 100 %: before {{}}; during {{}}; after {{}}".format(*told))
    say(f"reads to be tried again: {it.before.late} before, {it.during.late} during, {it.after.late} after")
    return figures


def _time(what: str, milliseconds: float, beside: float, beside_is: str) -> Figure:
    met = milliseconds <= beside * BAR_SAME
    return Figure(what, milliseconds, "ms", beside, beside_is, f"<= {BAR_SAME} times", met)


def _median(values: Iterable[float]) -> float:
    return _at(list(values), 0.5)


def _at(values: Sequence[float], share: float) -> float:
    """The value that this share of them stays within."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] if values else math.nan


@click.command()
@click.option("--grants", default=GRANTS, show_default=True, help="Of the client that is deleted.")
@click.option("--calm", default=CALM_SECONDS, show_default=True, help="Seconds of others alone, before and after.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here too."
)
def main(grants: int, calm: float, json_file: Path | None) -> None:
    """Delete a client with so many grants, beside others who register and revoke."""
    with tempfile.TemporaryDirectory(prefix="grantbook-bench-") as folder:
        place = Path(folder)
        here = machine(raw.disk_sync_milliseconds(place))
        with processes.servers(place) as servers:
            servers.environment["GRANTBOOK_REGISTRATION_LIMIT"] = "off"  # what is measured is not how we refuse
            servers.environment["GRANTBOOK_REGISTRATION_LIMIT_PER_SOURCE"] = "off"
            figures = asyncio.run(fanout(servers, grants, calm))
    show(f"The fan-out on {here}", figures)
    if json_file is not None:
        report = {"machine": here, "figures": [msgspec.to_builtins(each) | {"ratio": each.ratio} for each in figures]}
        json_file.write_text(json.dumps(report, indent=2) + "\n")


def say(what: str) -> None:
    """Progress, for whoever waits."""
    console.print(f"[dim]{time.strftime('%X')} {what}[/dim]")


if __name__ == "__main__":
    main()
