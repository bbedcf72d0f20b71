"""Crash: each process is killed with SIGKILL, in random order, under load; nothing that was acknowledged is lost."""

import asyncio
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import httpx
import pytest
from msgspec import Struct

from deploy.dev import processes
from deploy.dev.processes import Product, Service
from deploy.dev.servers import Server
from grantbook import subjects, wire
from grantbook.events import (
    ActivityRecorded,
    ClientDeleted,
    ClientRegistered,
    GrantIssued,
    GrantRevoked,
)
from grantbook.sdk import connection
from grantbook.sdk.log import LogReader, assert_dense
from tests.system.http import Caller

ROUNDS = 50
WORKERS = 6
CALL_SECONDS = 10.0
READ_SECONDS = 10.0
RECOVER_SECONDS = 30.0
CALLS_A_ROUND = 20
EXPIRES_AT = (datetime.now(UTC) + timedelta(hours=1)).isoformat()

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


class Ledger(Struct):
    """What was acknowledged."""

    clients: set[str] = set()
    grants: set[tuple[str, str]] = set()
    revoked: set[tuple[str, str]] = set()
    deleted: set[str] = set()
    used: dict[tuple[str, str], int] = {}
    calls: int = 0


@pytest.fixture
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with processes.servers(tmp_path_factory.mktemp("crash")) as servers:
        yield servers


class Load:
    """What a day of agents, users and admins does, in a second; only what is acknowledged counts."""

    def __init__(self, url: str, product: Product, ledger: Ledger, dice: random.Random) -> None:
        self._url = url
        self._idp = {"Authorization": f"Bearer {product.tokens['idp']}"}
        self._admin = {"Authorization": f"Bearer {product.tokens['admin']}"}
        self._ledger = ledger
        self._dice = dice
        self._numbers = count()

    async def run(self, http: httpx.AsyncClient) -> None:
        while True:
            try:
                await self._one(http)
            except httpx.HTTPError:
                await asyncio.sleep(0.02)  # the registry is down: a client would try again

    async def _one(self, http: httpx.AsyncClient) -> None:
        body: dict[str, Any]
        ledger, dice = self._ledger, self._dice
        kind = dice.choice(["register", "register", "grant", "grant", "grant", "use", "use", "revoke", "delete"])
        living = sorted(ledger.clients - ledger.deleted)
        standing = sorted(ledger.grants)
        if kind == "register" or not living or (kind in ("use", "revoke") and not standing):
            body = {"redirect_uris": ["http://localhost/cb"], "client_name": f"agent {next(self._numbers)}"}
            answer = await http.post(f"{self._url}/auth/connect/register", json=body)
            if answer.status_code == 201:
                ledger.clients.add(answer.json()["client_id"])
        elif kind == "grant":
            client, grant = dice.choice(living), f"g{next(self._numbers)}"
            body = {"grant_id": grant, "user_id": "ada", "username": "ada", "scopes": [], "expires_at": EXPIRES_AT}
            for _ in range(3):  # as an identity provider does: the same again until it is answered
                answer = await http.post(f"{self._url}/idp/v1/clients/{client}/grants", json=body, headers=self._idp)
                if answer.status_code in (200, 201):
                    ledger.grants.add((client, grant))
                if answer.status_code != 503:
                    break
        elif kind == "use":
            client, grant = dice.choice(standing)
            use = {"client_id": client, "grant_id": grant, "kind": "tool_call", "at": datetime.now(UTC).isoformat()}
            body = {"activity": [use], "report_id": f"r{next(self._numbers)}"}
            answer = await http.post(f"{self._url}/idp/v1/activity", json=body, headers=self._idp)
            if answer.status_code == 202 and answer.json()["recorded"]:
                ledger.used[client, grant] = ledger.used.get((client, grant), 0) + 1
        elif kind == "revoke":
            client, grant = dice.choice(standing)
            answer = await http.post(
                f"{self._url}/admin/v1/clients/{client}/grants/{grant}/revoke", headers=self._admin
            )
            if answer.status_code == 204:
                ledger.revoked.add((client, grant))
        elif dice.random() < 0.2:
            client = dice.choice(living)
            answer = await http.delete(f"{self._url}/admin/v1/clients/{client}", headers=self._admin)
            if answer.status_code == 204:
                ledger.deleted.add(client)
        else:
            return
        assert answer.status_code != 500, answer.text
        if answer.status_code < 300:
            ledger.calls += 1
        elif answer.status_code == 503:
            await asyncio.sleep(0.02)


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(RECOVER_SECONDS):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"not within {RECOVER_SECONDS} s: {what}")


async def recorded(nats_url: str, stream: str) -> list[wire.Recorded]:
    nats = await connection.connect(nats_url, name="crash")
    found: list[wire.Recorded] = []
    try:
        async with LogReader(nats, stream) as log:
            head = (await log.state()).last
            async with log.follow(0) as follower:
                while len(found) < head:
                    messages = await follower.next(READ_SECONDS)
                    assert messages
                    assert_dense(messages, len(found))
                    found += [each.recorded() for each in messages]
    finally:
        await nats.close()
    return found


async def test_nothing_acknowledged_is_lost_and_nothing_is_applied_twice(product: Product) -> None:
    """Everyone: whatever dies, whenever, the log has what was said, once, and the read models agree with it."""
    dice = random.Random(5)
    ledger = Ledger()
    registry = Service(product, "registry", "serve")
    project = Service(product, "projector", "project", serves=False)
    reads = Service(product, "projector", "serve")
    services = [registry, project, reads]
    victims: list[Service | Server] = [registry, project, product.nats[0], product.postgres]
    for each in services:
        each.start()
    try:
        for each in services:
            each.wait_ready()
        load = Load(f"http://127.0.0.1:{registry.port}", product, ledger, dice)
        async with httpx.AsyncClient(timeout=CALL_SECONDS) as http:
            working = [asyncio.create_task(load.run(http)) for _ in range(WORKERS)]
            killed: dict[str, int] = {}
            for round_ in range(ROUNDS):
                # Each at least once, then at random; under load, and only once the round before has been overcome.
                victim = victims[round_] if round_ < len(victims) else dice.choice(victims)
                await asyncio.sleep(dice.random() * 0.1)
                victim.kill()
                killed[type(victim).__name__] = killed.get(type(victim).__name__, 0) + 1
                await asyncio.sleep(dice.random() * 0.1)
                victim.start()
                for each in services:
                    # A service that gives up when its servers are gone is started again, as a supervisor would.
                    if not each.alive:
                        each.start()
                    await asyncio.to_thread(each.wait_ready)
                done = ledger.calls
                await until(lambda done=done: ledger.calls >= done + CALLS_A_ROUND, f"load goes on, round {round_}")  # type: ignore[misc]
                for task in working:
                    assert not task.done(), task
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
        await check(product, ledger, Caller(f"http://127.0.0.1:{reads.port}", product.tokens["admin"]))
        assert killed["Server"] >= ROUNDS / 5
        assert ledger.calls >= ROUNDS * CALLS_A_ROUND
        assert min(len(ledger.clients), len(ledger.grants), len(ledger.used)) > ROUNDS
        assert min(len(ledger.revoked), len(ledger.deleted)) > ROUNDS / 10
    finally:
        for each in services:
            each.stop()


async def check(product: Product, ledger: Ledger, admin: Caller) -> None:
    # The fan-out finishes what deletions began.
    async def standing() -> tuple[list[wire.Recorded], set[tuple[str, str]]]:
        log = await recorded(product.nats_url, subjects.LOG)
        gone = {each.event.client_id for each in log if isinstance(each.event, ClientDeleted)}
        issued = [(each.event.client_id, each.event.grant_id) for each in log if isinstance(each.event, GrantIssued)]
        ended = [(each.event.client_id, each.event.grant_id) for each in log if isinstance(each.event, GrantRevoked)]
        assert len(set(issued)) == len(issued), "a grant was issued twice"
        assert len(set(ended)) == len(ended), "a grant was revoked twice"
        return log, {grant for grant in issued if grant[0] in gone} - set(ended)

    async with asyncio.timeout(RECOVER_SECONDS):
        while True:
            log, left = await standing()
            if not left:
                break
            await asyncio.sleep(0.1)
    registered = [each.event.client_id for each in log if isinstance(each.event, ClientRegistered)]
    assert len(set(registered)) == len(registered), "a client was registered twice"
    assert ledger.clients <= set(registered)
    assert ledger.grants <= {
        (each.event.client_id, each.event.grant_id) for each in log if isinstance(each.event, GrantIssued)
    }
    assert ledger.revoked <= {
        (each.event.client_id, each.event.grant_id) for each in log if isinstance(each.event, GrantRevoked)
    }
    assert ledger.deleted <= {each.event.client_id for each in log if isinstance(each.event, ClientDeleted)}
    assert len({each.id for each in log}) == len(log)
    uses: dict[tuple[str, str], int] = {}
    for each in await recorded(product.nats_url, subjects.ACTIVITY):
        assert isinstance(each.event, ActivityRecorded)
        for window in each.event.windows:
            uses[window.client_id, window.grant_id] = uses.get((window.client_id, window.grant_id), 0) + window.count
    for grant, times in ledger.used.items():
        assert uses[grant] >= times
    await until(lambda: caught_up(admin), "the read models are at the head of both logs")
    verified = await asyncio.to_thread(lambda: processes.run("projector", "verify", environment=product.environment))
    assert "no differences" in verified


def caught_up(admin: Caller) -> bool:
    """Whether each read model is at the head of its log."""
    answer = admin("GET", "/admin/v1/status")
    return answer.status == 200 and all(each["lag_events"] == 0 for each in answer.body["read_models"].values())
