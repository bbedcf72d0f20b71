"""A flood of hostile registrations: from one source, from many, and with forged forwarding headers.

How many: `GRANTBOOK_FLOOD`, 20,000 by default.
"""

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator

import psutil
import pytest

from deploy.dev import processes
from deploy.dev.processes import Product, Service
from tests.system.http import Caller

FLOOD = int(os.environ.get("GRANTBOOK_FLOOD", "20000"))
CONNECTIONS = 40
REQUESTS_A_CONNECTION = 25
HONEST_SECONDS = 1.0
HONEST_EVERY_SECONDS = 0.1
LIST_SECONDS = 1.0
CAUGHT_UP_SECONDS = 120.0
MEMORY_GROWTH_BYTES = 100 * 1024 * 1024
CEILING = 1_000
HONEST = "127.200.0.1"

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(3_600)]


@pytest.fixture
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with processes.servers(tmp_path_factory.mktemp("flood")) as servers:
        servers.environment["GRANTBOOK_REGISTRATION_LIMIT"] = "100/5000"
        servers.environment["GRANTBOOK_REGISTRATION_LIMIT_PER_SOURCE"] = "5/200"
        servers.environment["GRANTBOOK_MAX_UNUSED_CLIENTS"] = str(CEILING)
        yield servers


def request(number: int, dice: random.Random, *, forged: bool) -> bytes:
    """A registration that differs from every other, so that nothing is saved by remembering."""
    body = json.dumps(
        {"client_name": f"Flood {number}", "redirect_uris": [f"https://h{dice.randrange(10**6)}.example/cb"]}
    ).encode()
    said = ".".join(str(dice.randrange(256)) for _ in range(4))
    forgery = f"X-Forwarded-For: {said}\r\nForwarded: for={said}\r\nX-Real-IP: {said}\r\n" if forged else ""
    return (
        f"POST /auth/connect/register HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{forgery}"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def answered(reader: asyncio.StreamReader) -> int:
    """The status of the next answer, whose body is read too."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.partition(b":")[2]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    await reader.readexactly(length)
    return int(head[9:12])


async def register(port: int, source: str, requests: list[bytes]) -> list[int]:
    """Statuses of requests on one connection, from a loopback address of one's own choice."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    try:
        statuses = []
        for each in requests:
            writer.write(each)
            statuses.append(await answered(reader))
        return statuses
    finally:
        writer.close()


async def flood(port: int, count: int, source: Callable[[random.Random], str], *, forged: bool) -> Counter[int]:
    """Hostile registrations, as fast as they are answered. How often each status was."""
    dice = random.Random(3)
    said: Counter[int] = Counter()
    gate = asyncio.Semaphore(CONNECTIONS)

    async def one(start: int) -> None:
        async with gate:
            requests = [request(start + place, dice, forged=forged) for place in range(REQUESTS_A_CONNECTION)]
            said.update(await register(port, source(dice), requests))

    await asyncio.gather(*(one(start) for start in range(0, count, REQUESTS_A_CONNECTION)))
    return said


async def honest(port: int, waits: list[float], statuses: list[int]) -> None:
    """One agent that registers now and then, and how long it waits for its answer."""
    dice = random.Random(5)
    while True:
        started = time.monotonic()
        statuses += await register(port, HONEST, [request(0, dice, forged=False)])
        waits.append(time.monotonic() - started)
        await asyncio.sleep(HONEST_EVERY_SECONDS)


def memory(service: Service) -> int:
    assert service._process is not None
    return int(psutil.Process(service._process.pid).memory_info().rss)


async def test_an_honest_agent_gets_in_while_strangers_flood(product: Product) -> None:
    """Honest agents, and admins who look on: a flood costs its senders, and memory and lists stay as they were."""
    registry = Service(product, "registry", "serve")
    registry.start()
    with (
        processes.service(product, "projector", "project", serves=False),
        processes.service(product, "projector", "serve") as reads,
    ):
        try:
            registry.wait_ready()
            admin = Caller(f"http://127.0.0.1:{reads}", product.tokens["admin"])
            await flood(registry.port, 500, lambda _: "127.99.0.1", forged=False)
            before = memory(registry)
            waits: list[float] = []
            statuses: list[int] = []
            agent = asyncio.create_task(honest(registry.port, waits, statuses))
            third = FLOOD // 3
            one = await flood(registry.port, third, lambda _: "127.1.0.1", forged=False)
            forged = await flood(registry.port, third, lambda _: "127.2.0.1", forged=True)
            many = await flood(
                registry.port,
                third,
                lambda dice: f"127.{dice.randrange(3, 9)}.{dice.randrange(256)}.{dice.randrange(1, 255)}",
                forged=False,
            )
            agent.cancel()
            assert set(one) | set(forged) | set(many) == {201, 429}
            assert one[201] < third / 4
            assert forged[201] < third / 4, "each forged address was a source of its own"
            assert set(statuses) == {201}
            assert len(waits) > 10
            assert max(waits) < HONEST_SECONDS
            assert memory(registry) - before < MEMORY_GROWTH_BYTES

            started = time.monotonic()
            listed = await asyncio.to_thread(admin, "GET", "/admin/v1/clients?limit=200")
            assert listed.status == 200
            assert time.monotonic() - started < LIST_SECONDS
            await asyncio.to_thread(until_expired, admin)
        finally:
            registry.stop()


def until_expired(admin: Caller) -> None:
    """Wait until no more than the ceiling's clients are left of all that registered and were never used."""
    deadline = time.monotonic() + CAUGHT_UP_SECONDS + FLOOD / 500
    while (total := admin("GET", "/admin/v1/clients?status=any&limit=1&count=true").body["total"]) < CEILING or (
        left := admin("GET", "/admin/v1/clients?limit=1&count=true").body["total"]
    ) > CEILING:
        assert time.monotonic() < deadline, f"{left} of {total} are left"
        time.sleep(0.2)
