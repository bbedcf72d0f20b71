"""The feed over HTTP: the same answers as over NATS, and never fresh without proof."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import httpx
import pytest
from nats.aio.client import Client

from deploy.dev.servers import free_port
from grantbook import subjects
from grantbook.sdk import revocations
from grantbook.sdk.revocations import FeedUnavailable
from grantbook.sdk.revocations_http import HttpRevocationFeed, Sent
from registry import streams
from tests.partition import Partition
from tests.sdk.given import LIFETIME, deleted, now, resumed, revoked, suspended, user_revoked, write, write_raw
from tests.sdk.over_http import SECONDS, TOKENS, Served, serving

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Feeds of tests are young and empty, and nobody has rebuilt them."""
    monkeypatch.setattr(revocations, "SETTLE_SECONDS", 0.0)


@pytest.fixture
async def served(log: Client) -> AsyncIterator[Served]:
    async with serving(log) as it:
        yield it


@pytest.fixture
async def feed(served: Served) -> AsyncIterator[HttpRevocationFeed]:
    async with HttpRevocationFeed(served.url, TOKENS["feed"], LIFETIME) as opened:
        yield opened


async def until(true: Callable[[], bool], seconds: float = SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.001)


def denied(feed: HttpRevocationFeed, client: str = "c", grant: str = "g", user: str = "u") -> bool:
    return feed.is_revoked(client, grant, user, now())


async def test_what_was_revoked_before_the_start_is_denied(served: Served) -> None:
    """Protects a resource whose token service restarts after a revocation."""
    await write(served.log, revoked("c", "g"), deleted("other"))
    async with HttpRevocationFeed(served.url, TOKENS["feed"], LIFETIME) as feed:
        assert feed.state == "fresh"
        assert denied(feed)
        assert denied(feed, client="other", grant="any")
        assert not denied(feed, grant="g2")
        assert feed.entries == 2


async def test_each_kind_of_revocation_is_heard(served: Served, feed: HttpRevocationFeed) -> None:
    """Protects services that do not speak NATS: they deny the same."""
    await write(served.log, suspended("s"), user_revoked("u2"), revoked("c", "g"))
    await until(lambda: denied(feed))
    assert denied(feed, client="s")
    assert denied(feed, client="x", user="u2")
    assert feed.is_revoked("x", "y", "u2", now() + timedelta(seconds=3))
    assert not feed.is_revoked("x", "y", "u2", now() + timedelta(seconds=8))
    await write(served.log, resumed("s"))
    await until(lambda: not denied(feed, client="s"))
    client = "https://agent.example/oauth/client.json"
    await write(served.log, deleted(client))
    await until(lambda: denied(feed, client=client))


async def test_waiting_for_a_position_waits_for_that_revocation(served: Served, feed: HttpRevocationFeed) -> None:
    """Protects a caller who revoked just now, and wants to know that this process has heard of it."""
    [sequence] = await write(served.log, revoked("c", "g"))
    await feed.wait_until(await served.position(sequence), SECONDS)
    assert denied(feed)
    assert str(feed.position) == await served.position(sequence)
    with pytest.raises(FeedUnavailable):
        await feed.wait_until(await served.position(sequence + 1_000), 0.05)


@pytest.mark.parametrize("type_", ["client.frozen", "client.deleted"])
async def test_what_is_not_understood_denies_what_it_is_about(
    served: Served, feed: HttpRevocationFeed, type_: str
) -> None:
    """Protects against a newer registry's verdicts, and against garbage."""
    await write_raw(served.log, subjects.client_gate("c"), type_, b'{"a":\n1}')
    await until(lambda: denied(feed))
    assert not denied(feed, client="d")
    assert feed.unknown_events == 1


async def test_a_server_that_is_away_is_denied_and_leaves_no_gap(log: Client) -> None:
    """Protects revocations that happen around a restart of the read API."""
    port = free_port()
    async with serving(log, port) as served:
        feed = HttpRevocationFeed(served.url, TOKENS["feed"], LIFETIME, max_staleness=timedelta(seconds=2))
        await feed.__aenter__()
        await write(log, revoked("c", "g1"))
        await until(lambda: denied(feed, grant="g1"))
        assert not denied(feed, grant="g2")
    try:
        await until(lambda: denied(feed, grant="g2"))
        assert feed.state == "stale"
        assert feed.trouble is not None
        await write(log, revoked("c", "g3"))
        async with serving(log, port):
            await until(lambda: feed.state == "fresh")
            assert denied(feed, grant="g1")
            assert denied(feed, grant="g3")
            assert not denied(feed, grant="g2")
            assert feed.entries == 2
    finally:
        await feed.__aexit__(None, None, None)


@pytest.mark.parametrize("token", ["wrong", TOKENS["admin"]])
async def test_a_wrong_token_is_said_at_once(served: Served, token: str) -> None:
    """Protects an operator who gave the wrong token: no minute of silence, and no token in the words."""
    started = time.monotonic()
    with pytest.raises(FeedUnavailable, match=r"answers the feed's request with 40[13]") as refused:
        async with HttpRevocationFeed(served.url, token, LIFETIME):
            pass
    assert time.monotonic() - started < 5
    assert token not in str(refused.value)


@pytest.mark.parametrize("token", ["", "two\nlines", "gb_feed_ключ", "a b", "a\x7f"])
def test_a_token_that_none_is_is_refused_without_being_repeated(token: str) -> None:
    """Protects a token that was read wrongly, with a line break at its end, say: it is in no message and no log."""
    with pytest.raises(ValueError, match="characters that no token has") as refused:
        HttpRevocationFeed("http://127.0.0.1:1", token, LIFETIME)
    assert not token or token not in str(refused.value)


class Slow(Partition):
    """Passes everything on, a second later."""

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def read() -> None:
            while chunk := await reader.read(65_536):
                waiting.put_nowait((loop.time() + 1.0, chunk))

        async def write() -> None:
            while True:
                at, chunk = await waiting.get()
                await asyncio.sleep(at - loop.time())
                writer.write(chunk)

        reading, writing = asyncio.create_task(read()), asyncio.create_task(write())
        try:
            await reading
        finally:
            writing.cancel()


@pytest.mark.parametrize("own", [True, False])
async def test_a_slow_path_is_never_taken_for_a_fresh_one(served: Served, *, own: bool) -> None:
    """Protects a resource behind a line or a proxy that is late by always the same: all that comes looks in time."""
    port = int(served.url.rpartition(":")[2])
    async with Slow(port) as path, httpx.AsyncClient(timeout=60) as client:
        feed = HttpRevocationFeed(
            f"http://127.0.0.1:{path.port}",
            TOKENS["feed"],
            LIFETIME,
            max_staleness=timedelta(seconds=1),
            http=None if own else client,
        )
        async with feed:
            await write(served.log, deleted("c"))
            current = asyncio.create_task(feed.wait_until_current(SECONDS))
            while not current.done():
                assert feed.state != "fresh"
                assert feed.age > 1
                await asyncio.sleep(0.01)
            await current
            feed._when_stale = "allow"
            assert denied(feed)


async def test_a_redirect_is_not_followed() -> None:
    """Protects the feed's token from another host."""
    asked = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 307 x\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(FeedUnavailable, match="307"):
            async with HttpRevocationFeed(f"http://127.0.0.1:{port}", "t", LIFETIME):
                pass
    assert not any(b"elsewhere" in each for each in asked)


async def test_a_feed_that_lost_its_log_turns_stale(served: Served) -> None:
    """Protects against a server that goes on sending comments while it hears of nothing any more."""
    seconds = timedelta(seconds=2)
    async with HttpRevocationFeed(served.url, TOKENS["feed"], LIFETIME, max_staleness=seconds) as feed:
        assert not denied(feed)
        await served.log.jetstream().delete_stream(subjects.REVOCATIONS)
        await until(lambda: feed.state == "stale")
        assert denied(feed)


async def test_a_log_made_anew_is_read_anew(served: Served) -> None:
    """Protects against positions that mean another event than they did."""
    heard: list[str] = []
    await write(served.log, revoked("c", "old"))
    async with HttpRevocationFeed(served.url, TOKENS["feed"], LIFETIME, on_trouble=heard.append) as feed:
        assert denied(feed, grant="old")
        await served.log.jetstream().delete_stream(subjects.REVOCATIONS)
        await served.log.jetstream().delete_stream(subjects.LOG)
        await streams.ensure(served.log, log_max_bytes=64 * 1024**2)
        await write(served.log, deleted("other"), revoked("c", "new"))
        await until(lambda: any("replaced" in each for each in heard))
        await until(lambda: feed.state == "fresh" and denied(feed, grant="new"))
        assert denied(feed, client="other")
        assert not denied(feed, grant="other")


async def test_what_is_read_late_proves_nothing_about_now(feed: HttpRevocationFeed) -> None:
    """Protects a service that was paused for a minute, and then reads a minute of comments that all was sent."""
    base = time.monotonic()
    feed._take_proof(f"0.0 0.0 {base:.3f}")
    quickest = feed.age
    feed._take_proof(f"0.0 0.0 {base - 60:.3f}")
    assert feed.age >= quickest + 59
    assert feed.state == "stale"


async def test_nothing_is_applied_twice(feed: HttpRevocationFeed, served: Served) -> None:
    """Protects a client that was resumed from the suspension before it, sent again by a server that repeats itself."""
    [first, second] = await write(served.log, suspended("c"), resumed("c"))
    await feed.wait_until(await served.position(second), SECONDS)
    feed._apply(
        Sent(
            id=await served.position(first),
            type="client.suspended",
            data=[b"{}"],
            about=f"{subjects.client_gate('c')} 2026-01-01T00:00:00Z x",
        )
    )
    assert not denied(feed)


async def test_a_line_without_end_is_given_up() -> None:
    """Protects the memory of a token service from whatever answers in the register's place."""

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 65_536)
                await writer.drain()
        except ConnectionError:
            writer.close()

    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    heard: list[str] = []
    async with server, httpx.AsyncClient() as http:
        with pytest.raises(FeedUnavailable):
            async with HttpRevocationFeed(
                f"http://127.0.0.1:{port}", "t", LIFETIME, http=http, catch_up_seconds=2, on_trouble=heard.append
            ):
                pass
    assert any("a line of more than" in each for each in heard)
