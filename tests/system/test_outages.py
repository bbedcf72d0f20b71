"""What each service does while another is away, and when it is told to stop."""

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from deploy.dev import processes
from deploy.dev.processes import Product, Service
from grantbook import subjects
from grantbook.sdk import connection
from grantbook.sdk.log import LogReader
from tests.system.http import Answer, Caller

WAIT_SECONDS = 15.0
POLL_SECONDS = 0.05
EXPIRES_AT = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
AGENT = {"redirect_uris": ["http://localhost/cb"]}
GRANT = {"user_id": "ada", "username": "ada", "scopes": [], "expires_at": EXPIRES_AT, "grant_id": "g1"}
IN_FLIGHT = 60
pytestmark = pytest.mark.faults


@pytest.fixture
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with processes.servers(tmp_path_factory.mktemp("outages")) as servers:
        yield servers


def until(ask: Callable[[], Answer], wanted: Callable[[Answer], bool]) -> Answer:
    deadline = time.monotonic() + WAIT_SECONDS
    while not wanted(answer := ask()):
        assert time.monotonic() < deadline, answer
        time.sleep(POLL_SECONDS)
    return answer


def test_a_revocation_never_waits_for_postgres(product: Product) -> None:
    """Users: with the read models gone, agents still register and an admin still cuts one off."""
    with (
        processes.service(product, "registry", "serve") as writes,
        processes.service(product, "projector", "project", serves=False),
        processes.service(product, "projector", "serve") as reads,
    ):
        anyone = Caller(f"http://127.0.0.1:{writes}")
        idp = Caller(anyone.url, product.tokens["idp"])
        admin = Caller(anyone.url, product.tokens["admin"])
        reading = Caller(f"http://127.0.0.1:{reads}", product.tokens["admin"])
        client = anyone("POST", "/auth/connect/register", AGENT).body["client_id"]
        idp("POST", f"/idp/v1/clients/{client}/grants", GRANT)
        product.postgres.kill()
        unready = until(lambda: reading("GET", "/readyz"), lambda answer: answer.status == 503)
        assert "Postgres" in str(unready.body["reasons"])
        away = reading("GET", "/admin/v1/clients")
        assert (away.status, away.body["code"]) == (503, "unavailable")
        assert away.headers["retry-after"]
        assert anyone("GET", "/readyz").status == 200
        assert anyone("POST", "/auth/connect/register", AGENT).status == 201
        deleted = admin("DELETE", f"/admin/v1/clients/{client}")
        assert deleted.status == 204
        assert idp("GET", f"/idp/v1/clients/{client}/grants/g1").body == {"active": False}
        product.postgres.start()
        until(lambda: reading("GET", "/readyz"), lambda answer: answer.status == 200)
        caught_up = until(
            lambda: reading("GET", f"/admin/v1/clients/{client}?at_least={deleted.position}"),
            lambda answer: answer.status == 200,
        )
        assert caught_up.body["status"] == "deleted"


def test_without_the_log_nothing_is_promised(product: Product) -> None:
    """Agents: 503 and when to come again, never a 201 that nobody kept; reads go on with what they have."""
    with (
        processes.service(product, "registry", "serve") as writes,
        processes.service(product, "projector", "project", serves=False),
        processes.service(product, "projector", "serve") as reads,
    ):
        anyone = Caller(f"http://127.0.0.1:{writes}")
        idp = Caller(anyone.url, product.tokens["idp"])
        reading = Caller(f"http://127.0.0.1:{reads}", product.tokens["admin"])
        registered = anyone("POST", "/auth/connect/register", AGENT)
        client = registered.body["client_id"]
        reading("GET", f"/admin/v1/clients?at_least={registered.position}")
        product.nats[0].kill()
        unready = until(lambda: anyone("GET", "/readyz"), lambda answer: answer.status == 503)
        assert "NATS" in str(unready.body["reasons"])
        refused = anyone("POST", "/auth/connect/register", AGENT)
        assert (refused.status, refused.body["error"]) == (503, "temporarily_unavailable")
        assert refused.headers["retry-after"]
        unknown = idp("GET", f"/idp/v1/clients/{client}")
        assert (unknown.status, unknown.body["code"]) == (503, "unavailable")
        listed = reading("GET", "/admin/v1/clients")
        assert [each["client_id"] for each in listed.body["items"]] == [client]
        product.nats[0].start()
        until(lambda: anyone("GET", "/readyz"), lambda answer: answer.status == 200)
        assert anyone("POST", "/auth/connect/register", AGENT).status == 201


async def test_a_registry_that_is_told_to_stop_finishes_what_it_took(product: Product) -> None:
    """Agents: a rolling update loses no acknowledged registration and answers those under way."""
    registry = Service(product, "registry", "serve")
    registry.start()
    registry.wait_ready()
    async with httpx.AsyncClient(timeout=WAIT_SECONDS) as http:
        url = f"http://127.0.0.1:{registry.port}/auth/connect/register"
        # Every connection is open before the signal; what is on its way then is what this is about.
        await asyncio.gather(*(http.get(f"http://127.0.0.1:{registry.port}/healthz") for _ in range(IN_FLIGHT)))
        calls = [asyncio.create_task(http.post(url, json=AGENT)) for _ in range(IN_FLIGHT)]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) < IN_FLIGHT, "all were answered before the signal"
        await asyncio.to_thread(registry.stop)
        answers = await asyncio.gather(*calls, return_exceptions=True)
    acknowledged = [
        each.json()["client_id"] for each in answers if isinstance(each, httpx.Response) and each.status_code == 201
    ]
    assert acknowledged
    nats = await connection.connect(product.nats_url, name="stop")
    async with LogReader(nats, subjects.LOG) as log:
        found: set[str] = set()
        for start in range(0, len(acknowledged), 50):
            asked = [subjects.client_record(each) for each in acknowledged[start : start + 50]]
            found |= set(await log.last(asked))
        state = await log.state()
    await nats.close()
    assert len(found) == len(acknowledged)
    # And nothing was stored for those who were not told so.
    assert state.last == len(acknowledged)


def test_a_registry_does_not_start_on_a_server_that_is_not_safe(product: Product) -> None:
    """Operators: the reason is said in words, and the exit status tells the supervisor."""
    registry = Service(product, "registry", "serve")
    registry.environment["GRANTBOOK_NATS_MONITOR_URL"] = "http://127.0.0.1:1"
    registry.start()
    with pytest.raises(RuntimeError, match="cannot read the NATS server's settings"):
        registry.wait_ready()


def test_development_tokens_are_refused_outside_the_all_in_one(product: Product) -> None:
    """Operators: tokens that stand in somebody's dev.env open nothing in production."""
    file = product.folder / "tokens.json"
    file.write_text(file.read_text().replace('"tokens"', '"development":true,"tokens"', 1))
    registry = Service(product, "registry", "serve")
    registry.start()
    with pytest.raises(RuntimeError, match="development"):
        registry.wait_ready()


def test_a_log_that_was_replaced_under_a_registry_takes_nothing(product: Product) -> None:
    """Users: a revocation that would never reach the feed is not answered 204."""
    with processes.service(product, "registry", "serve") as writes:
        anyone = Caller(f"http://127.0.0.1:{writes}")
        admin = Caller(anyone.url, product.tokens["admin"])
        for _ in range(3):
            assert anyone("POST", "/auth/connect/register", AGENT).status == 201

        async def replace() -> None:
            nats = await connection.connect(product.nats_url, name="replace")
            await nats.request(f"$JS.API.STREAM.DELETE.{subjects.LOG}", b"", timeout=WAIT_SECONDS)
            await connection.close(nats)

        asyncio.run(replace())
        processes.run("registry", "ensure-streams", environment=product.environment)
        unready = until(lambda: anyone("GET", "/readyz"), lambda answer: "replaced" in str(answer.body))
        assert unready.status == 503
        refused = admin("POST", "/admin/v1/users/ada/revoke")
        assert (refused.status, refused.body["code"]) == (503, "unavailable")


def test_a_log_that_was_restored_and_has_grown_since_takes_nothing(product: Product) -> None:
    """Users: by its numbers it looks like the log that this registry wrote; what was acknowledged is not in it."""
    with processes.service(product, "registry", "serve") as writes:
        anyone = Caller(f"http://127.0.0.1:{writes}")
        admin = Caller(anyone.url, product.tokens["admin"])
        assert anyone("POST", "/auth/connect/register", AGENT).status == 201
        data, kept = product.folder / "nats", product.folder / "backup"
        product.nats[0].stop()
        shutil.copytree(data, kept)
        product.nats[0].start()
        until(lambda: anyone("GET", "/readyz"), lambda answer: answer.status == 200)
        for _ in range(3):
            assert anyone("POST", "/auth/connect/register", AGENT).status == 201
        product.nats[0].stop()
        shutil.rmtree(data)
        shutil.copytree(kept, data)
        product.nats[0].start()
        with processes.service(product, "registry", "serve") as another:
            for _ in range(10):
                assert Caller(f"http://127.0.0.1:{another}")("POST", "/auth/connect/register", AGENT).status == 201
        unready = until(lambda: anyone("GET", "/readyz"), lambda answer: "restored" in str(answer.body))
        assert unready.status == 503
        assert admin("POST", "/admin/v1/users/ada/revoke").status == 503
