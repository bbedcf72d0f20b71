"""How long a revocation takes until token services deny: at rest, under load, on one node, on three, through a loss."""

import asyncio
import gc
import itertools
import json
import time
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import nats
import psutil

from benchmarks import http_load
from benchmarks.figures import Figure
from deploy.dev import processes
from deploy.dev.servers import Server
from grantbook import subjects, wire
from grantbook.events import Actor, GrantRevoked
from grantbook.sdk import clocks
from grantbook.sdk.denials import Denials
from grantbook.sdk.log import Raw
from grantbook.sdk.revocations import RevocationFeed

LIFETIME: Final = timedelta(hours=1)
LOOK_SECONDS: Final = 0.000_5
"""How often a token service looks whether it denies yet; spinning would take one of the machine's cores away."""
LOAD_PER_SECOND: Final = 1_000
LOAD_CONNECTIONS: Final = 32
ENTRIES: Final = 1_000_000
QUESTIONS: Final = 500_000
BAR_P99_MS: Final = 100.0
BAR_MAX_MS: Final = 1_000.0
BAR_LOSS_SECONDS: Final = 10.0
LOSS_SECONDS: Final = 25.0
"""How long revocations go on after a node was lost."""
BEFORE_LOSS_SECONDS: Final = 3.0
BETWEEN_SECONDS: Final = 0.05
ANSWER_SECONDS: Final = 5.0
DENIED_SECONDS: Final = 30.0
REGISTRATION: Final = json.dumps(
    {"redirect_uris": ["https://claude.ai/api/mcp/auth_callback"], "token_endpoint_auth_method": "none"}
).encode()


class Revoker:
    """An admin on a connection of its own, an identity provider, and a client with grants to revoke."""

    def __init__(self, port: int, tokens: Any) -> None:
        self._port = port
        self._idp, self._admin = tokens["idp"], tokens["admin"]
        self.client = _post(port, "/auth/connect/register", {"redirect_uris": ["http://localhost/callback"]})[
            "client_id"
        ]
        self._numbers = 0

    async def grant(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """A grant more; its id."""
        self._numbers += 1
        grant_id = f"r{self._numbers}"
        body = {
            "grant_id": grant_id,
            "user_id": "ada",
            "username": "ada",
            "scopes": [],
            "expires_at": (datetime.now(UTC) + LIFETIME).isoformat(),
        }
        path = f"/idp/v1/clients/{self.client}/grants"
        writer.write(http_load.request("POST", path, json.dumps(body).encode(), self._idp))
        assert await http_load.answer(reader) == 201
        return grant_id

    def revocation(self, grant_id: str) -> bytes:
        """The request that ends a grant."""
        path = f"/admin/v1/clients/{self.client}/grants/{grant_id}/revoke"
        return http_load.request("POST", path, b"{}", self._admin)


async def until_denied(feed: RevocationFeed, port: int, tokens: Any, rounds: int) -> list[float]:
    """Milliseconds from sending an admin's revocation to the moment at which a token service denies, sorted."""
    revoker = Revoker(port, tokens)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    times = []
    for _ in range(rounds):
        grant = await revoker.grant(reader, writer)
        issued_at = datetime.now(UTC)
        assert not feed.is_revoked(revoker.client, grant, "ada", issued_at)
        started = time.perf_counter()
        writer.write(revoker.revocation(grant))
        answered = asyncio.create_task(http_load.answer(reader))
        while not feed.is_revoked(revoker.client, grant, "ada", issued_at):
            await asyncio.sleep(LOOK_SECONDS)
        times.append((time.perf_counter() - started) * 1_000)
        assert await answered == 204
    writer.close()
    return sorted(times)


def delay_figures(when: str, times: Sequence[float], deliveries: Sequence[float]) -> list[Figure]:
    """p50, p99 and the longest, each beside a bare message's."""
    most = int(len(times) * 0.99)
    limit = "publish to push consumer"
    p50, p99, longest = times[len(times) // 2], times[most], times[-1]
    return [
        Figure(f"revoke to denied, {when}, p50", p50, "ms", deliveries[len(deliveries) // 2], limit, "", None),
        Figure(
            f"revoke to denied, {when}, p99",
            p99,
            "ms",
            deliveries[int(len(deliveries) * 0.99)],
            limit,
            f"<= {BAR_P99_MS:g} ms",
            p99 <= BAR_P99_MS,
        ),
        Figure(
            f"revoke to denied, {when}, longest",
            longest,
            "ms",
            deliveries[-1],
            limit,
            f"<= {BAR_MAX_MS:g} ms",
            longest <= BAR_MAX_MS,
        ),
    ]


async def delays(servers: processes.Product, port: int, rounds: int, deliveries: Sequence[float]) -> list[Figure]:
    """Revoke to denied with nothing else going on, and under registrations at a steady pace."""
    nodes = "one node" if len(servers.nats) == 1 else f"{len(servers.nats)} nodes"
    async with RevocationFeed(servers.environment["GRANTBOOK_NATS_URL"], LIFETIME) as feed:
        times = await until_denied(feed, port, servers.tokens, rounds)
        figures = delay_figures(f"{nodes}, idle", times, deliveries)
        done = asyncio.Event()
        load = asyncio.create_task(paced(port, LOAD_PER_SECOND, done))
        await asyncio.sleep(1)  # until the load is steady
        times = await until_denied(feed, port, servers.tokens, rounds)
        done.set()
        rate = await load
        figures += delay_figures(f"{nodes}, beside {rate:,.0f} registrations/s", times, deliveries)
    return figures


async def paced(port: int, per_second: int, done: asyncio.Event) -> float:
    """Registrations at a pace, over connections of their own, whether they are answered in time or not; their rate.

    An open loop: what is sent does not wait for what was answered, but for as many as there are connections.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    request = http_load.request("POST", "/auth/connect/register", REGISTRATION)
    sent = answered = 0

    async def one() -> None:
        nonlocal sent, answered
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while not done.is_set():
            sent += 1
            pause = started + sent / per_second - loop.time()
            if pause > 0:
                await asyncio.sleep(pause)
            writer.write(request)
            status = await http_load.answer(reader)
            answered += status == 201
        writer.close()

    await asyncio.gather(*(one() for _ in range(LOAD_CONNECTIONS)))
    return answered / (loop.time() - started)


async def loss(servers: processes.Product, port: int) -> list[Figure]:
    """Kill the node that leads the log while revocations go on: when writes and delivery are back, what was lost."""
    url = servers.environment["GRANTBOOK_NATS_URL"]
    revoker = Revoker(port, servers.tokens)
    acknowledged: dict[str, float] = {}
    denied: dict[str, float] = {}
    denied_by_default: dict[str, float] = {}
    sent: dict[str, float] = {}
    waiting: dict[str, datetime] = {}
    stop = asyncio.Event()
    # One as services have it by default, which denies all while it is stale; and one that honours what it does not know
    # to be revoked, which shows when each revocation itself came.
    async with RevocationFeed(url, LIFETIME, when_stale="allow") as feed, RevocationFeed(url, LIFETIME) as default:

        async def look() -> None:
            while not stop.is_set() or waiting:
                for grant, issued_at in list(waiting.items()):
                    if grant not in denied_by_default and default.is_revoked(revoker.client, grant, "ada", issued_at):
                        denied_by_default[grant] = time.perf_counter()
                    if feed.is_revoked(revoker.client, grant, "ada", issued_at):
                        denied[grant] = time.perf_counter()
                        if grant in denied_by_default:
                            del waiting[grant]
                await asyncio.sleep(LOOK_SECONDS)

        looking = asyncio.create_task(look())
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        grants = [await revoker.grant(reader, writer) for _ in range(int(LOSS_SECONDS / BETWEEN_SECONDS))]
        killed_at = await _revoke_through(servers, port, revoker, grants, sent, acknowledged, waiting)
        stop.set()
        async with asyncio.timeout(DENIED_SECONDS):
            await looking
        writer.close()
    back = min(at for at in acknowledged.values() if at > killed_at) - killed_at
    gaps = sorted(acknowledged.values())
    longest = max(later - earlier for earlier, later in itertools.pairwise(gaps))
    delivered = min(at for grant, at in denied.items() if acknowledged[grant] > killed_at) - killed_at
    slowest = max(denied[grant] - acknowledged[grant] for grant in acknowledged)
    promised = max(denied_by_default[grant] - sent[grant] for grant in acknowledged)
    lost = len(acknowledged) - len(denied)
    bar = f"<= {BAR_LOSS_SECONDS:g} s"
    limit = "kill to the first acknowledged"
    return [
        Figure(
            "longest without an acknowledged revocation", longest, "s", back, limit, bar, longest <= BAR_LOSS_SECONDS
        ),
        Figure(
            "longest from the admin's click to denied", promised, "s", back, limit, bar, promised <= BAR_LOSS_SECONDS
        ),
        Figure("where a service allows when stale: acknowledged to denied", slowest, "s", back, limit, "", None),
        Figure("the same, kill to the first revocation denied", delivered, "s", back, limit, "", None),
        Figure(f"revocations lost, of {len(acknowledged)} acknowledged", lost, "", 1, "one", "0", lost == 0),
    ]


async def _revoke_through(
    servers: processes.Product,
    port: int,
    revoker: Revoker,
    grants: Sequence[str],
    sent: dict[str, float],
    acknowledged: dict[str, float],
    waiting: dict[str, datetime],
) -> float:
    """Revoke at a steady pace, and kill the log's leader on the way. When that was."""
    killed_at = None
    started = time.perf_counter()
    for number, grant in enumerate(grants):
        if killed_at is None and time.perf_counter() - started > BEFORE_LOSS_SECONDS:
            leader = await leader_of(servers, subjects.LOG)
            killed_at = time.perf_counter()
            leader.kill()
        # From the click on it is looked at: by default it may be denied before it is acknowledged.
        sent[grant] = time.perf_counter()
        waiting[grant] = datetime.now(UTC)
        while grant not in acknowledged:
            try:
                status = await asyncio.wait_for(http_load.ask(port, revoker.revocation(grant)), ANSWER_SECONDS)
            except (TimeoutError, OSError, asyncio.IncompleteReadError):
                continue
            if status == 204:
                acknowledged[grant] = time.perf_counter()
            else:
                await asyncio.sleep(BETWEEN_SECONDS)
        await asyncio.sleep(max(0.0, started + (number + 1) * BETWEEN_SECONDS - time.perf_counter()))
    assert killed_at is not None
    return killed_at


async def leader_of(servers: processes.Product, stream: str) -> Server:
    """The node that leads a stream."""
    connection = await nats.connect(servers.environment["GRANTBOOK_NATS_URL"].split(","))
    try:
        info = await connection.jetstream().stream_info(stream)
        assert info.cluster is not None
        number = int(str(info.cluster.leader).removeprefix("n"))
        return servers.nats[number]
    finally:
        await connection.close()


class Loaded(RevocationFeed):
    """A feed that has what it was given, and is fresh for the rest of the day: for questions alone."""

    def __init__(self, denials: Denials) -> None:
        super().__init__("nats://127.0.0.1:1", LIFETIME, max_staleness=timedelta(days=1))
        self._denials = denials
        self._proven(clocks.now(), clocks.now())


def in_memory() -> list[Figure]:
    """A million revocations in memory: what they take, and how many questions a second are answered."""
    process = psutil.Process()
    at = datetime.now(UTC)
    gc.collect()
    before = process.memory_info().rss
    denials = Denials(LIFETIME.total_seconds())
    for number in range(ENTRIES):
        client, grant = f"client-{number % 1_000:08d}", f"{number:036d}"
        event = GrantRevoked(client_id=client, grant_id=grant, user_id="u", reason="admin", at=at, by=Actor("admin"))
        outgoing = wire.encode(event, event_id="x")
        denials.apply(Raw(outgoing.subject, outgoing.headers, outgoing.body, number + 1, at), number / 20_000)
    gc.collect()
    taken = process.memory_info().rss - before
    feed = Loaded(denials)
    plain = {f"client-{number % 1_000:08d}.{number:036d}" for number in range(ENTRIES)}
    asked = [(f"client-{n % 1_000:08d}", f"{n:036d}") for n in range(0, 2 * ENTRIES, 2 * ENTRIES // QUESTIONS)]
    started = time.perf_counter()
    found = sum(f"{client}.{grant}" in plain for client, grant in asked)
    limit = len(asked) / (time.perf_counter() - started)
    started = time.perf_counter()
    denied = sum(feed.is_revoked(client, grant, "u", at.timestamp()) for client, grant in asked)
    rate = len(asked) / (time.perf_counter() - started)
    assert found == denied
    del plain
    megabytes = taken / 1e6
    return [
        Figure("is_revoked, beside 1,000,000 revocations", rate, "/s", limit, "a set of strings", "", None),
        Figure("memory for 1,000,000 revocations", megabytes, "MB", ENTRIES * 16 / 1e6, "16 bytes each", "", None),
    ]


def _post(port: int, path: str, body: object) -> dict[str, str]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
        found: dict[str, str] = json.load(answer)
        return found
