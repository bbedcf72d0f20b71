"""Beyond one machine: docs/scaling.md, step by step on loopback, under load, through the loss of each part.

Three nodes of NATS, two registries, an active and a standby projector, Postgres and a streaming replica of it, and a
read API on each. Whoever is killed is missed by nobody for long, and what was acknowledged is there.
"""

import asyncio
import json
import random
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Final

import asyncpg
import httpx
import pytest
from msgspec import Struct
from nats.errors import Error as NatsError

from deploy.dev import processes
from deploy.dev.processes import Product, Service
from deploy.dev.servers import Server, postgres_replica
from grantbook import subjects, wire
from grantbook.events import ClientDeleted, ClientRegistered, GrantIssued, GrantRevoked
from grantbook.sdk import connection
from projector import db
from tests.system.test_crash import recorded

WORKERS: Final = 4
CALLS_A_STEP: Final = 40
PATIENCE_SECONDS: Final = 60.0
"""For each condition: the machine may be busy with others. Nothing here is about how long it takes."""
CALL_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.05
EXPIRES_AT: Final = (datetime.now(UTC) + timedelta(hours=1)).isoformat()

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


class Ledger(Struct):
    """What was acknowledged."""

    clients: list[str] = []
    grants: set[tuple[str, str]] = set()
    deleted: set[str] = set()
    calls: int = 0


@pytest.fixture
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with processes.servers(tmp_path_factory.mktemp("cluster"), nodes=3) as servers:
        yield servers


class Registries:
    """Any of the registries, as a proxy before them has it: one that cannot answer is passed over."""

    def __init__(self, http: httpx.AsyncClient, ports: list[int], product: Product) -> None:
        self._http = http
        self._urls = [f"http://127.0.0.1:{port}" for port in ports]
        self._tokens = product.tokens
        self._turns = count()

    async def __call__(self, method: str, path: str, body: object = None, role: str | None = None) -> httpx.Response:
        """The answer of the first that has one."""
        headers = {} if role is None else {"Authorization": f"Bearer {self._tokens[role]}"}  # type: ignore[index]
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                url = self._urls[next(self._turns) % len(self._urls)]
                with suppress(httpx.TransportError):
                    answer = await self._http.request(method, url + path, json=body, headers=headers)
                    if answer.status_code != 503:
                        assert answer.status_code < 500, answer.text
                        return answer
                await asyncio.sleep(POLL_SECONDS)


async def use(ask: Registries, ledger: Ledger, dice: random.Random) -> None:
    """What agents, users and admins do, without end; only what is acknowledged counts."""
    while True:
        living = [each for each in ledger.clients if each not in ledger.deleted]
        kind = dice.choice(["register", "grant", "grant", "grant", "delete"]) if len(living) > WORKERS else "register"
        if kind == "register":
            answer = await ask("POST", "/auth/connect/register", {"redirect_uris": ["http://localhost/cb"]})
            assert answer.status_code == 201, answer.text
            ledger.clients.append(answer.json()["client_id"])
        elif kind == "grant":
            client, grant = dice.choice(living), f"g{dice.getrandbits(64):x}"
            body = {"grant_id": grant, "user_id": "ada", "username": "ada", "scopes": [], "expires_at": EXPIRES_AT}
            answer = await ask("POST", f"/idp/v1/clients/{client}/grants", body, "idp")
            assert answer.status_code in {200, 201, 410}, answer.text
            if answer.status_code != 410:
                ledger.grants.add((client, grant))
        else:
            client = dice.choice(living)
            answer = await ask("DELETE", f"/admin/v1/clients/{client}", None, "admin")
            assert answer.status_code == 204, answer.text
            ledger.deleted.add(client)
        if answer.is_success:
            ledger.calls += 1


@asynccontextmanager
async def under_load(ask: Registries, ledger: Ledger) -> AsyncIterator[Callable[[], None]]:
    """Calls under way for as long as this is open. What it gives raises what went wrong with one of them."""
    tasks = [asyncio.create_task(use(ask, ledger, random.Random(number))) for number in range(WORKERS)]

    def check() -> None:
        for each in tasks:
            if each.done() and not each.cancelled():
                each.result()

    try:
        yield check
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.wait(tasks)
    check()


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait for a condition."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await condition():
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        pytest.fail(f"not within {PATIENCE_SECONDS} s: {what}")


async def up(service: Service) -> None:
    """Wait until it is ready. One that gave up meanwhile is started again, as a supervisor would."""

    async def ready() -> bool:
        if not service.alive:
            service.start()
        with suppress(httpx.TransportError):
            async with httpx.AsyncClient(timeout=CALL_SECONDS) as http:
                return (await http.get(f"http://127.0.0.1:{service.port}/readyz")).is_success
        return False

    await until(ready, f"ready on {service.port}")


async def stream_info(nats_url: str) -> dict[str, Any]:
    """What JetStream says of the log; nothing while it has no leader."""
    client = await connection.connect(nats_url, name="cluster test")
    try:
        answer = await client.request(f"$JS.API.STREAM.INFO.{subjects.LOG}", b"", timeout=CALL_SECONDS)
        info: dict[str, Any] = json.loads(answer.data)
    except NatsError:
        return {}
    finally:
        await client.close()
    return info


async def whole(nats_url: str) -> bool:
    """Whether all three nodes have all of the log."""
    cluster = (await stream_info(nats_url)).get("cluster", {})
    replicas = cluster.get("replicas", [])
    return bool(cluster.get("leader")) and len(replicas) == 2 and all(each.get("current") for each in replicas)


def both(product: Product, replica: Server, which: str) -> str:
    """The address of both Postgres servers, of which one that is `which` is taken."""
    hosts = f"@127.0.0.1:{product.postgres.port},127.0.0.1:{replica.port}/"
    return (
        product.database_url.replace(f"@127.0.0.1:{product.postgres.port}/", hosts) + f"?target_session_attrs={which}"
    )


async def lock_holder(url: str) -> int | None:
    """The port that the active projector's connection comes from."""
    found = await asyncpg.connect(url)
    try:
        port: int | None = await found.fetchval(
            """
            SELECT client_port FROM pg_locks JOIN pg_stat_activity USING (pid)
            WHERE locktype = 'advisory' AND granted AND (classid::bigint << 32 | objid::bigint) = $1
            """,
            db.lock_key("projector", db.SCHEMA),
        )
        return port
    finally:
        await found.close()


async def test_a_cluster_loses_its_parts_one_by_one_and_nothing_else(product: Product) -> None:
    """Everyone: the procedure of docs/scaling.md works, and each loss that it speaks of is one that is overcome."""
    ledger = Ledger()
    nats_url = product.environment["GRANTBOOK_NATS_URL"]
    async with AsyncExitStack() as stack:
        primary = await asyncpg.connect(product.database_url)
        await primary.execute("ALTER SYSTEM SET wal_writer_delay = '10ms'")
        await primary.execute("SELECT pg_reload_conf()")
        await primary.close()
        replica = stack.enter_context(postgres_replica(product.folder / "replica", of=product.postgres))
        product.environment["GRANTBOOK_DATABASE_URL"] = both(product, replica, "primary")

        def started(room: str, command: str, *, serves: bool = True, **variables: str) -> Service:
            service = Service(product, room, command, serves=serves)
            service.environment |= variables
            service.start()
            stack.callback(service.stop)
            return service

        async def projecting() -> bool:
            return await lock_holder(product.database_url) is not None

        active = started("projector", "project", serves=False)
        await until(projecting, "a projector is active")
        standby = started("projector", "project", serves=False)
        registries = [started("registry", "serve") for _ in range(2)]
        of_replica = started("projector", "serve", GRANTBOOK_READ_DATABASE_URL=replica.url)
        of_either = started("projector", "serve", GRANTBOOK_READ_DATABASE_URL=both(product, replica, "prefer-standby"))
        for each in (*registries, of_replica, of_either):
            await up(each)
        admin = {"Authorization": f"Bearer {product.tokens['admin']}"}
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=CALL_SECONDS))
        ask = Registries(http, [each.port for each in registries], product)

        async def read(service: Service, path: str, at_least: str) -> Any:
            """An answer of a read API that has come so far."""
            found: list[Any] = []

            async def answered() -> bool:
                with suppress(httpx.TransportError):
                    url = f"http://127.0.0.1:{service.port}{path}"
                    answer = await http.get(url, params={"at_least": at_least}, headers=admin)
                    assert answer.status_code in {200, 503}, answer.text
                    found.extend([answer.json()] if answer.status_code == 200 else [])
                return bool(found)

            await until(answered, f"{path} at {at_least}")
            return found[0]

        async with under_load(ask, ledger) as check:

            async def goes_on(what: str, *read_by: Service) -> None:
                """Calls are acknowledged, and what was is in the lists."""
                done = ledger.calls

                async def more() -> bool:
                    check()
                    return ledger.calls >= done + CALLS_A_STEP

                await until(more, f"calls are acknowledged {what}")
                for each in read_by:
                    client = await register(ask)
                    assert (await read(each, f"/admin/v1/clients/{client[0]}", client[1]))["status"] == "active"

            await goes_on("with all of it there", of_replica, of_either)

            # A node of NATS, the one that leads the log.
            leader = (await stream_info(nats_url))["cluster"]["leader"]
            node = product.nats[int(leader.removeprefix("n"))]
            node.kill()
            await goes_on("without a node", of_replica)
            node.start(PATIENCE_SECONDS)
            await until(lambda: whole(nats_url), "the node has all of the log again")

            # Another, with its disk: an empty one of the same name takes its place.
            node = next(each for each in product.nats if each is not node)
            node.kill()
            await goes_on("without another node", of_replica)
            shutil.rmtree(node.data / "jetstream")
            node.start(PATIENCE_SECONDS)
            await until(lambda: whole(nats_url), "the new node has all of the log")

            # A registry.
            registries[0].kill()
            await goes_on("without a registry", of_replica)
            registries[0].start()
            await up(registries[0])

            # The active projector. Nobody starts it again before the standby has done its work.
            holder = await lock_holder(product.database_url)
            active.kill()
            await goes_on("without the active projector", of_replica, of_either)
            assert await lock_holder(product.database_url) not in {None, holder}
            assert standby.alive
            active.start()

            # The replica. Whoever may read from either does; whoever may not says so, and goes on when it is back.
            replica.kill()
            await goes_on("without the replica", of_either)
            lists = f"http://127.0.0.1:{of_replica.port}/admin/v1/clients"
            assert (await http.get(lists, headers=admin)).status_code == 503
            replica.start(PATIENCE_SECONDS)
            await goes_on("with the replica again", of_replica)

            # The primary, for ever. The replica takes its place, and the projector goes on from where that was.
            product.postgres.kill()
            await goes_on("without the primary")
            assert (await http.get(lists, headers=admin)).status_code == 200
            promoted = await asyncpg.connect(replica.url)
            assert await promoted.fetchval(f"SELECT pg_promote(true, {PATIENCE_SECONDS:.0f})")
            await promoted.close()
            await goes_on("with the replica as the primary", of_replica, of_either)

        _, last = await register(ask)
        await check_all(product, ledger, ask, lambda path: read(of_replica, path, last))
        product.environment["GRANTBOOK_DATABASE_URL"] = replica.url
        verified = await asyncio.to_thread(
            lambda: processes.run("projector", "verify", environment=product.environment)
        )
        assert "no differences" in verified
        print(f"{ledger.calls} acknowledged, {len(ledger.deleted)} clients deleted")  # noqa: T201  a figure for people


async def register(ask: Registries) -> tuple[str, str]:
    """A client, and the position at which it is."""
    answer = await ask("POST", "/auth/connect/register", {"redirect_uris": ["http://localhost/cb"]})
    assert answer.status_code == 201, answer.text
    return answer.json()["client_id"], answer.headers["grantbook-position"]


class Said(Struct):
    """What the log says, each once: a registration, a grant or the end of one that stands there twice is refused."""

    registered: set[str] = set()
    deleted_at: dict[str, int] = {}
    issued_at: dict[tuple[str, str], int] = {}
    ended: set[tuple[str, str]] = set()

    def take(self, each: wire.Recorded) -> None:
        """One event more."""
        match each.event:
            case ClientRegistered(client_id=client):
                assert client not in self.registered, "registered twice"
                self.registered.add(client)
            case ClientDeleted(client_id=client):
                # Twice, perhaps: a deletion that finds another under way waits for nobody.
                self.deleted_at.setdefault(client, each.position)
            case GrantIssued(client_id=client, grant_id=grant):
                assert (client, grant) not in self.issued_at, "issued twice"
                self.issued_at[client, grant] = each.position
            case GrantRevoked(client_id=client, grant_id=grant):
                assert (client, grant) not in self.ended, "revoked twice"
                self.ended.add((client, grant))
            case _:
                raise AssertionError(each)

    @property
    def standing(self) -> set[tuple[str, str]]:
        """Grants of deleted clients that have no end yet."""
        return {grant for grant in self.issued_at if grant[0] in self.deleted_at} - self.ended


async def check_all(product: Product, ledger: Ledger, ask: Registries, read: Callable[[str], Awaitable[Any]]) -> None:
    """The log has all that was acknowledged, once and in order; and no grant stands of a client that was deleted."""
    said = Said()

    async def fanned_out() -> bool:
        nonlocal said
        said = Said()
        for each in await recorded(product.environment["GRANTBOOK_NATS_URL"], subjects.LOG):
            said.take(each)
        return not said.standing

    await until(fanned_out, "every grant of a deleted client has its end in the log")
    assert set(ledger.clients) <= said.registered
    assert ledger.grants <= set(said.issued_at)
    assert ledger.deleted <= set(said.deleted_at)
    assert not [grant for grant, at in said.issued_at.items() if at > said.deleted_at.get(grant[0], at)]
    assert ledger.deleted, "a run in which nothing was deleted shows nothing"
    for client in ledger.deleted:
        assert (await read(f"/admin/v1/clients/{client}"))["status"] == "deleted"
        assert (await read(f"/admin/v1/clients/{client}/grants"))["items"] == []
    cut_off = {grant for grant in ledger.grants if grant[0] in ledger.deleted}
    assert cut_off, "a run in which no deleted client had a grant shows nothing"
    for client, grant in sorted(cut_off):
        answer = await ask("GET", f"/idp/v1/clients/{client}/grants/{grant}", None, "idp")
        assert answer.json() == {"active": False}
