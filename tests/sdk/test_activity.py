"""The reporter of activity: what it counts arrives once, whatever happens to the registry; losses are said."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from nats.aio.client import Client

from deploy.dev import processes
from deploy.dev.processes import Product, Service
from deploy.dev.servers import free_port
from grantbook import subjects
from grantbook.events import ActivityRecorded, Window
from grantbook.sdk.activity import ActivityReporter
from grantbook.sdk.connection import connect
from grantbook.sdk.log import LogReader
from grantbook.sdk.reading import stretch

SECONDS = 30.0
NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
TOKEN = "token-of-idp-0123456789abcdef"


class Taking:
    """A server that answers as it is told, and remembers what it was sent."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.bodies: list[bytes] = []
        self.held = asyncio.Event()
        self.held.set()
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        self.bodies.append(await reader.readexactly(length))
        await self.held.wait()
        status, headers = self.answers.pop(0) if self.answers else (202, {})
        sent = len(json.loads(self.bodies[-1])["activity"])
        body = json.dumps({"recorded": sent, "rejected": []}).encode()
        lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if status:
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        writer.close()

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [each for body in self.bodies for each in json.loads(body)["activity"]]


@pytest.fixture
async def taking() -> AsyncIterator[Taking]:
    made = Taking()
    server = await asyncio.start_server(made.answer, "127.0.0.1", 0, limit=2**24)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield made
        made.held.set()


async def settled(reporter: ActivityReporter) -> None:
    async with asyncio.timeout(SECONDS):
        while reporter.pending:
            await asyncio.sleep(0.01)


async def test_uses_of_a_grant_are_one_window_with_first_and_last(taking: Taking) -> None:
    """Auditors: a thousand calls are a line, and say when the first and the last were."""
    async with ActivityReporter(taking.url, TOKEN) as reporter:
        for number in range(1_000):
            reporter.report("c", "g", "tool_call", at=NOON + timedelta(seconds=number))
        reporter.report("c", "g", "refresh", at=NOON)
        await settled(reporter)
    assert [(each["kind"], each["at"], each.get("count", 1)) for each in taking.entries] == [
        ("tool_call", "2026-03-14T12:00:00Z", 1),
        ("tool_call", "2026-03-14T12:16:39Z", 999),
        ("refresh", "2026-03-14T12:00:00Z", 1),
    ]
    counters = reporter.counters
    assert (counters.reported, counters.recorded, counters.lost, counters.reports) == (1_001, 1_001, 0, 1)


async def test_a_refresh_that_moves_an_expiry_goes_as_it_is(taking: Taking) -> None:
    """Users: a grant that was extended is not shown as expired because two refreshes were taken for one."""
    async with ActivityReporter(taking.url, TOKEN, max_pending=1) as reporter:
        reporter.report("c", "other", "tool_call")
        for hour in range(3):
            reporter.report("c", "g", "refresh", at=NOON, expires_at=NOON + timedelta(hours=hour))
        reporter.report("c", "third", "tool_call")  # there is no room for it
        await settled(reporter)
    assert [each["expires_at"] for each in taking.entries if "expires_at" in each] == [
        "2026-03-14T12:00:00Z",
        "2026-03-14T13:00:00Z",
        "2026-03-14T14:00:00Z",
    ]
    assert (reporter.counters.recorded, reporter.counters.lost) == (4, 1)


async def test_a_thousand_grants_do_not_wait_for_the_second(taking: Taking) -> None:
    """Operators: a busy service sends early, an idle one nothing."""
    async with ActivityReporter(taking.url, TOKEN, flush_seconds=3_600) as reporter:
        for number in range(999):
            reporter.report("c", f"g{number}", "tool_call")
        await asyncio.sleep(0)
        assert not taking.bodies
        reporter.report("c", "g999", "tool_call")
        await settled(reporter)
        assert len(taking.bodies) == 1


async def test_what_failed_is_sent_again_byte_for_byte(taking: Taking) -> None:
    """Auditors: nothing counts twice, because Grantbook knows a report by its id and content."""
    taking.answers = [(503, {"Retry-After": "0"}), (0, {}), (429, {"Retry-After": "1"}), (500, {})]
    started = time.monotonic()
    async with ActivityReporter(taking.url, TOKEN, flush_seconds=0.01) as reporter:
        reporter.report("c", "g", "tool_call")
        await settled(reporter)
    assert len(taking.bodies) == 5
    assert len(set(taking.bodies)) == 1
    assert json.loads(taking.bodies[0])["report_id"]
    assert time.monotonic() - started >= 1.0
    assert (reporter.counters.recorded, reporter.counters.retries, reporter.counters.doubtful) == (1, 4, 0)


async def test_a_late_second_try_is_counted_as_doubtful(taking: Taking, monkeypatch: pytest.MonkeyPatch) -> None:
    """Auditors: past Grantbook's memory for reports, two tries may be two counts, and that is said."""
    monkeypatch.setattr("grantbook.sdk.activity.ONCE_SECONDS", 0.0)
    taking.answers = [(500, {})]
    async with ActivityReporter(taking.url, TOKEN, flush_seconds=0.01) as reporter:
        reporter.report("c", "g", "tool_call")
        await settled(reporter)
    assert (reporter.counters.recorded, reporter.counters.doubtful) == (1, 1)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 302])
async def test_what_will_not_get_better_is_lost_and_said(taking: Taking, status: int) -> None:
    """Operators: a wrong token is heard of, and does not fill the memory."""
    heard: list[tuple[int, str]] = []
    taking.answers = [(status, {"Location": "/elsewhere"})]

    def tell(uses: int, why: str) -> None:
        heard.append((uses, why))

    async with ActivityReporter(taking.url, TOKEN, flush_seconds=0.01, on_loss=tell) as reporter:
        for _ in range(3):
            reporter.report("c", "g", "tool_call")
        await settled(reporter)
    assert heard == [(3, f"Grantbook answered {status}")]
    assert (reporter.counters.lost, reporter.counters.recorded) == (3, 0)
    assert len(taking.bodies) == 1


@pytest.mark.parametrize(
    "bad", [("", "g"), ("c", ""), ("c", "x" * 513), ("c" * 2_049, "g"), ("c", "\0"), ("\ud800", "g")]
)
async def test_an_id_that_is_none_takes_no_others_with_it(taking: Taking, bad: tuple[str, str]) -> None:
    """Auditors: one entry that Grantbook would refuse as malformed does not lose a whole report."""
    async with ActivityReporter(taking.url, TOKEN, flush_seconds=0.01) as reporter:
        reporter.report(*bad, "tool_call")
        reporter.report("c", "g", "tool_call")
        await settled(reporter)
    assert (reporter.counters.recorded, reporter.counters.lost) == (1, 1)
    with pytest.raises(ValueError, match="zone"):
        reporter.report("c", "g", "tool_call", at=NOON.replace(tzinfo=None))


async def test_reporting_never_waits_and_memory_is_bounded(taking: Taking) -> None:
    """Agents: with Grantbook hanging, their calls are as fast as ever."""
    lost: list[int] = []
    taking.held.clear()
    async with ActivityReporter(
        taking.url, TOKEN, max_pending=2_000, on_loss=lambda uses, _: lost.append(uses)
    ) as reporter:
        for number in range(1_500):
            reporter.report("c", f"a{number}", "tool_call")
        async with asyncio.timeout(SECONDS):
            while not taking.bodies:
                await asyncio.sleep(0.01)
        started = time.perf_counter()
        for number in range(10_000):
            reporter.report("c", f"b{number % 5_000}", "tool_call")
        took = time.perf_counter() - started
        print(f"{took / 10_000 * 1e6:.1f} µs a report")  # noqa: T201  a figure for people
        assert len(reporter._windows) == 2_000
        assert sum(lost) == 6_000
        assert reporter.pending == 1_500 + 4_000
        taking.held.set()
        await settled(reporter)
    assert reporter.counters.recorded + reporter.counters.lost == reporter.counters.reported


async def test_closing_sends_what_is_left_and_says_what_it_could_not(taking: Taking) -> None:
    """Operators: a restart loses nothing; one without Grantbook says what it lost, and ends."""
    async with ActivityReporter(taking.url, TOKEN, flush_seconds=3_600) as reporter:
        reporter.report("c", "g", "tool_call")
    assert reporter.counters.recorded == 1
    heard: list[tuple[int, str]] = []

    def tell(uses: int, why: str) -> None:
        heard.append((uses, why))

    async with ActivityReporter("http://127.0.0.1:9", TOKEN, on_loss=tell) as reporter:
        reporter.report("c", "g", "tool_call")
        reporter.report("c", "g", "tool_call")
    assert heard == [(2, "the reporter was closed before Grantbook had confirmed it")]
    reporter.report("c", "g", "tool_call")
    assert heard[1:] == [(1, "the reporter is closed")]
    assert TOKEN not in repr(reporter) + repr(heard)


async def test_a_busy_service_sends_a_report_a_second_and_not_one_a_call(taking: Taking) -> None:
    """Operators: what comes while a report is under way waits for the next, however fast Grantbook answers."""
    async with ActivityReporter(taking.url, TOKEN, flush_seconds=0.5) as reporter:
        started = time.monotonic()
        while time.monotonic() - started < 1.2:
            reporter.report("c", "g", "tool_call")
            await asyncio.sleep(0.001)
        assert 1 <= len(taking.bodies) <= 3
    assert reporter.counters.recorded == reporter.counters.reported


async def test_an_error_of_anybody_else_stops_no_reports(taking: Taking) -> None:
    """Agents and auditors: a mistake in what hears of losses, or in a client that was brought, costs nothing else."""

    def tell(uses: int, why: str) -> None:
        raise RuntimeError(why)

    class Breaking(httpx.AsyncClient):
        broken = True

        async def post(self, *args: Any, **more: Any) -> httpx.Response:
            if self.broken:
                self.broken = False
                raise RuntimeError("no response for you")
            return await super().post(*args, **more)

    async with (
        Breaking() as http,
        ActivityReporter(taking.url, TOKEN, flush_seconds=0.01, on_loss=tell, http=http) as reporter,
    ):
        reporter.report("", "g", "tool_call")
        reporter.report("c", "g", "sleep")
        reporter.report("c", "g", "tool_call", at=datetime(1969, 12, 31, tzinfo=UTC))
        reporter.report("c", "g", "refresh", expires_at=datetime.max.replace(tzinfo=UTC))
        reporter.report("c\u00a0é", "g", "tool_call")
        await settled(reporter)
    assert (reporter.counters.recorded, reporter.counters.lost) == (1, 4)


@pytest.mark.parametrize(
    ("url", "sent"),
    [("ftp://x", TOKEN), ("x", TOKEN), ("", TOKEN), ("https://x?y", TOKEN), ("https://x", ""), ("https://x", "a\nb")],
)
def test_what_no_request_can_be_sent_with_is_refused(url: str, sent: str) -> None:
    """Operators: a typing error is heard of at the start; and no error says the token."""
    with pytest.raises(ValueError, match=r"base_url|idp_token") as refused:
        ActivityReporter(url, sent)
    assert not sent or sent not in str(refused.value)


async def test_closing_does_not_sit_out_a_long_wait(taking: Taking) -> None:
    """Operators: a service that stops while Grantbook asked for patience tries once more, and loses nothing."""
    taking.answers = [(503, {"Retry-After": "60"})]
    async with ActivityReporter(taking.url, TOKEN, flush_seconds=0.01) as reporter:
        reporter.report("c", "g", "tool_call")
        async with asyncio.timeout(SECONDS):
            while not reporter.counters.retries:
                await asyncio.sleep(0.01)
    assert (reporter.counters.recorded, reporter.counters.lost) == (1, 0)


async def test_a_report_that_never_went_is_not_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Auditors: doubt is said where there is one, and not of a server that nobody could reach."""
    monkeypatch.setattr("grantbook.sdk.activity.ONCE_SECONDS", 0.0)
    made = Taking()
    port = free_port()
    async with ActivityReporter(f"http://127.0.0.1:{port}", TOKEN, flush_seconds=0.01) as reporter:
        reporter.report("c", "g", "tool_call")
        async with asyncio.timeout(SECONDS):
            while not reporter.counters.retries:
                await asyncio.sleep(0.01)
        async with await asyncio.start_server(made.answer, "127.0.0.1", port):
            await settled(reporter)
    assert (reporter.counters.recorded, reporter.counters.doubtful) == (1, 0)


@pytest.fixture
def product(tmp_path: Path) -> Iterator[Product]:
    with processes.servers(tmp_path) as servers:
        yield servers


@pytest.fixture
def registry(product: Product) -> Iterator[Service]:
    made = Service(product, "registry", "serve")
    made.start()
    made.wait_ready()
    yield made
    made.kill()  # one that was stopped hears nothing else


def signalled(service: Service, number: signal.Signals) -> None:
    assert service._process is not None
    service._process.send_signal(number)


async def windows(log: Client) -> list[Window]:
    async with LogReader(log, subjects.ACTIVITY) as reader:
        found: list[Window] = []
        async for messages in stretch(reader, 0, (await reader.state()).last):
            for each in messages:
                event = each.recorded().event
                assert isinstance(event, ActivityRecorded)
                found += event.windows
        return found


@pytest.mark.timeout(90)
@pytest.mark.faults
async def test_a_registry_that_is_killed_or_hangs_loses_and_doubles_nothing(
    product: Product, registry: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Auditors: every use that was reported around a crash of the registry is in the log, once.

    One that hangs records, when it goes on, also what was given up and sent again meanwhile.
    """
    monkeypatch.setattr("grantbook.sdk.activity.REPORT_SECONDS", 0.3)
    url = f"http://127.0.0.1:{registry.port}"
    log = await connect(product.nats_url, name="test")
    idp = {"Authorization": f"Bearer {product.tokens['idp']}"}
    async with httpx.AsyncClient(base_url=url, timeout=SECONDS) as http:
        made = await http.post("/auth/connect/register", json={"redirect_uris": ["http://localhost/cb"]})
        client = made.json()["client_id"]
        for number in range(20):
            grant = {
                "grant_id": f"g{number}",
                "user_id": "ada",
                "username": "ada",
                "scopes": [],
                "expires_at": "2099-01-01T00:00:00Z",
            }
            answer = await http.post(f"/idp/v1/clients/{client}/grants", json=grant, headers=idp)
            assert answer.status_code == 201
    async with ActivityReporter(url, product.tokens["idp"], flush_seconds=0.02) as reporter:
        for round_ in range(160):
            for number in range(20):
                reporter.report(client, f"g{number}", "tool_call")
            if round_ in {40, 80}:
                registry.kill()
                await asyncio.to_thread(registry.start)
            if round_ == 119:
                await asyncio.to_thread(registry.wait_ready)
                await settled(reporter)
                frozen = reporter.counters.retries
                signalled(registry, signal.SIGSTOP)
            await asyncio.sleep(0.01)  # the pace of calls
        async with asyncio.timeout(SECONDS):
            while reporter.counters.retries < frozen + 2:
                await asyncio.sleep(0.01)
        signalled(registry, signal.SIGCONT)
        reporter.report(client, "nobody", "tool_call")
        await settled(reporter)
        counters = reporter.counters
    assert (counters.reported, counters.recorded, counters.rejected, counters.lost) == (3_201, 3_200, 1, 0)
    assert counters.retries > 0
    found = await windows(log)
    assert sum(each.count for each in found) == 3_200
    assert all(each.first_at <= each.last_at for each in found)
    # What waited for the registry is one line with the time of its first use and of its last.
    assert any(each.count > 1 and each.first_at < each.last_at for each in found)
    await log.close()
