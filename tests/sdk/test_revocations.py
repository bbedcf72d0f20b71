import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from nats.aio.client import Client

from deploy.dev.servers import Server, free_port, nats_server
from grantbook import positions, subjects, wire
from grantbook.events import Event
from grantbook.sdk import clocks, revocations
from grantbook.sdk.denials import Denials
from grantbook.sdk.log import Follower, Gap, LogReader, Raw, StreamState
from grantbook.sdk.revocations import FeedUnavailable, RevocationFeed
from grantbook.sdk.revocations_http import HttpRevocationFeed
from grantbook.sdk.tasks import end
from registry import streams
from tests.partition import Partition
from tests.sdk.given import (
    LIFETIME,
    deleted,
    new_id,
    now,
    opened_log,
    registered,
    resumed,
    revoked,
    sourced,
    suspended,
    user_revoked,
    write,
    write_raw,
)
from tests.sdk.over_http import TOKENS, serving

SECONDS = 20.0


@contextlib.asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[Server, Client]]:
    """A server of the test's own, which it may kill."""
    with nats_server(folder / "nats") as server:
        async with opened_log(server.url) as log:
            yield server, log


async def until(true: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Wait for the condition, looking often."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Feeds of tests are young and empty, and nobody has rebuilt them."""
    monkeypatch.setattr(revocations, "SETTLE_SECONDS", 0.0)


@pytest.fixture
async def feed(log: Client, nats_url: str) -> AsyncIterator[RevocationFeed]:
    async with RevocationFeed(nats_url, LIFETIME) as opened:
        yield opened


async def applied(feed: RevocationFeed, log: Client, position: int) -> None:
    await until(lambda: feed.position is not None and feed.position.sequence >= position)


def token(feed: RevocationFeed, client: str = "c", grant: str = "g", user: str = "u") -> bool:
    return feed.is_revoked(client, grant, user, now())


async def test_what_was_revoked_before_the_start_is_denied(log: Client, nats_url: str) -> None:
    """Protects a resource whose token service restarts after a revocation."""
    await write(log, registered("c"), revoked("c", "g"), deleted("other"))
    await sourced(log, 2)  # an empty feed that was made just now is taken for settled here
    async with RevocationFeed(nats_url, LIFETIME) as feed:
        assert feed.state == "fresh"
        assert token(feed)
        assert token(feed, client="other", grant="any")
        assert not token(feed, grant="g2")
        assert feed.trouble is None
        assert feed.entries == 2


async def test_revoking_one_grant_leaves_the_others(feed: RevocationFeed, log: Client) -> None:
    """Protects users whose other agents go on working."""
    [position] = await write(log, revoked("c", "g"))
    await applied(feed, log, position)
    assert token(feed)
    assert not token(feed, grant="g2")
    assert not token(feed, client="c2")


async def test_a_revocation_is_denied_soon_after_it_was_acknowledged(feed: RevocationFeed, log: Client) -> None:
    """Protects the promise that a revocation counts before the next call: prints how long that takes."""
    took = []
    for number in range(50):
        started = time.perf_counter()
        await write(log, revoked("c", f"g{number}"))
        while not token(feed, grant=f"g{number}"):
            await asyncio.sleep(0)
        took.append((time.perf_counter() - started) * 1000)
    took.sort()
    print(f"append to denied: p50 {took[25]:.2f} ms, max {took[-1]:.2f} ms")  # noqa: T201  a figure for people


async def test_a_suspended_client_is_denied_until_it_is_resumed(feed: RevocationFeed, log: Client) -> None:
    """Protects an admin who cuts an agent off for a while."""
    await write(log, suspended("c"))
    await until(lambda: token(feed))
    await write(log, resumed("c"))
    await until(lambda: not token(feed))


async def test_a_users_cut_off_denies_tokens_from_before_it_only(feed: RevocationFeed, log: Client) -> None:
    """Protects a user who was offboarded, and one who comes back."""
    await write(log, user_revoked("u"))
    await until(lambda: token(feed))
    cutoff = now()
    assert feed.is_revoked("c", "g", "u", (cutoff - timedelta(minutes=1)).timestamp())
    assert feed.is_revoked("c", "g", "u", cutoff + timedelta(seconds=3))
    assert feed.is_revoked("c", "g", "u", None)
    assert feed.is_revoked("c", "g", "u", float("nan"))
    assert not feed.is_revoked("c", "g", "u", cutoff + timedelta(seconds=8))
    assert not feed.is_revoked("c", "g", "v", None)


async def test_a_later_cut_off_never_ends_less_than_the_one_before(feed: RevocationFeed, log: Client) -> None:
    """Protects a user who is cut off twice, the second time by a registry whose clock is hours behind."""
    await write(log, user_revoked("u"))
    await until(lambda: token(feed))
    behind = structs.replace(user_revoked("u"), at=now() - timedelta(minutes=50))
    await write(log, behind)
    await feed.wait_until_current(SECONDS)
    assert token(feed)


async def test_after_something_unexpected_it_starts_anew(
    feed: RevocationFeed, log: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects a service that runs for months: one surprise is denied, told, and gone by itself."""
    await write(log, revoked("c", "g"))
    await until(lambda: token(feed))
    apply = Denials.apply

    def surprised(*_: object, **__: object) -> None:
        monkeypatch.setattr(Denials, "apply", apply)
        raise ArithmeticError

    monkeypatch.setattr(Denials, "apply", surprised)
    await write(log, revoked("c", "g2"))
    await until(lambda: feed.state == "fresh" and token(feed, grant="g2"))
    assert token(feed)
    assert not token(feed, grant="g3")


async def test_ids_that_are_urls_are_denied_by_their_keys(feed: RevocationFeed, log: Client) -> None:
    """Protects against clients whose id is no subject token, which CIMD clients' never are."""
    client = "https://agent.example/oauth/client.json"
    await write(log, deleted(client))
    await until(lambda: token(feed, client=client))
    assert not token(feed, client="https://agent.example/oauth/other.json")


@pytest.mark.parametrize(
    ("subject", "denied", "allowed"),
    [
        (subjects.client_gate("c"), ("c", "g", "u"), ("d", "g", "u")),
        (subjects.grant_gate("c", "g"), ("c", "g", "u"), ("c", "h", "u")),
        (subjects.user_gate("u"), ("c", "g", "u"), ("c", "g", "v")),
    ],
)
@pytest.mark.parametrize("type_", ["client.frozen", "grant.revoked"])
async def test_what_is_not_understood_denies_what_it_is_about(
    feed: RevocationFeed,
    log: Client,
    subject: str,
    denied: tuple[str, str, str],
    allowed: tuple[str, str, str],
    type_: str,
) -> None:
    """Protects against a newer registry whose verdicts an older token service cannot read, and against garbage."""
    await write_raw(log, subject, type_, b"{}")
    await until(lambda: token(feed, *denied))
    assert not token(feed, *allowed)
    assert feed.is_revoked(*denied, now() + timedelta(hours=1))
    assert feed.unknown_events == 1


async def test_a_token_older_than_the_longest_lifetime_is_denied(feed: RevocationFeed) -> None:
    """Protects against a lifetime configured too short: revocations from before it are not in memory."""
    assert not feed.is_revoked("c", "g", "u", now() - LIFETIME)
    assert feed.is_revoked("c", "g", "u", now() - LIFETIME - revocations.MARGIN)


async def test_a_time_without_zone_is_refused(feed: RevocationFeed) -> None:
    """Protects a caller who would compare local time with UTC."""
    with pytest.raises(ValueError, match="time zone"):
        feed.is_revoked("c", "g", "u", now().replace(tzinfo=None))


async def test_a_lifetime_longer_than_the_feed_keeps_is_refused(log: Client, nats_url: str) -> None:
    """Protects tokens that would outlive the memory of their revocation."""
    with pytest.raises(ValueError, match="90 days"):
        async with RevocationFeed(nats_url, timedelta(days=91)):
            pass


async def test_without_a_server_entering_fails_in_time() -> None:
    """Protects a token service's start from hanging, and from starting blind."""
    started = time.monotonic()
    feed = RevocationFeed(f"nats://127.0.0.1:{free_port()}", LIFETIME, catch_up_seconds=1)
    with pytest.raises(FeedUnavailable):
        async with feed:
            pass
    assert time.monotonic() - started < 10
    assert feed.state == "starting"
    assert token(feed)


async def test_without_streams_entering_fails_and_says_why(nats_url: str) -> None:
    """Protects an operator who forgot to make the streams."""
    with pytest.raises(FeedUnavailable, match="stream not found"):
        async with RevocationFeed(nats_url, LIFETIME, catch_up_seconds=1):
            pass


async def test_a_closed_feed_denies(log: Client, nats_url: str) -> None:
    """Protects a service that still asks while it shuts down."""
    async with RevocationFeed(nats_url, LIFETIME) as feed:
        assert not token(feed)
    assert token(feed)


async def test_a_starved_consumer_is_made_anew(feed: RevocationFeed, log: Client) -> None:
    """Protects against a consumer that is gone while the connection is fine."""
    manager = log.jetstream()
    await write(log, revoked("c", "g1"))
    await until(lambda: token(feed, grant="g1"))
    for consumer in await manager.consumers_info(subjects.REVOCATIONS):
        assert await manager.delete_consumer(subjects.REVOCATIONS, consumer.name)
    await write(log, revoked("c", "g2"))
    await until(lambda: feed.state == "fresh" and token(feed, grant="g2"))
    assert not token(feed, grant="g3")


async def test_waiting_until_current_waits_for_what_the_feed_has(feed: RevocationFeed, log: Client) -> None:
    """Protects a caller who revoked just now, and wants to know that this process has heard of it."""
    [position] = await write(log, revoked("c", "g"))
    await sourced(log, 1)
    await feed.wait_until_current(SECONDS)
    assert feed.is_revoked("c", "g", "u", now())
    await applied(feed, log, position)


async def test_a_feed_made_anew_is_read_anew_and_keeps_its_cut_offs(log: Client, nats_url: str) -> None:
    """Protects users who logged in again after a cut-off: making the feed anew must not cut them off once more."""
    decided = now() - timedelta(minutes=30)
    await write(log, user_revoked("u", at=decided), revoked("c", "g"), deleted("old", at=now() - timedelta(hours=3)))
    heard: list[str] = []
    async with RevocationFeed(nats_url, LIFETIME, on_trouble=heard.append) as feed:
        assert token(feed)
        await streams.rebuild_feed(log)
        await until(lambda: any("replaced" in each for each in heard))
        assert token(feed)
        await until(lambda: feed.state == "fresh")
        assert token(feed)
        assert feed.is_revoked("c", "g2", "u", decided)
        assert not feed.is_revoked("c", "g2", "u", decided + timedelta(minutes=20))
        # Too old to matter, whenever the feed stored it.
        assert feed.entries == 2
        await write(log, revoked("c", "g3"))
        await until(lambda: token(feed, grant="g3"))


async def test_a_feed_made_anew_never_allows_what_was_denied(log: Client, nats_url: str) -> None:
    """Protects a service that chose to allow when stale: what it knew stays in force while the feed is read anew."""
    await write(log, revoked("c", "g"))
    heard: list[str] = []
    async with RevocationFeed(nats_url, LIFETIME, when_stale="allow", on_trouble=heard.append) as feed:
        await streams.rebuild_feed(log)
        while not (any("replaced" in each for each in heard) and feed.state == "fresh"):
            assert token(feed)
            assert not token(feed, grant="g2")
            await asyncio.sleep(0.001)
        assert token(feed)


async def test_a_feed_without_its_source_is_not_fresh(log: Client, nats_url: str) -> None:
    """Protects against a feed that is complete in itself but hears nothing of the log any more."""
    stream = log.jetstream()
    await stream.delete_stream(subjects.REVOCATIONS)
    await stream.add_stream(name=subjects.REVOCATIONS, subjects=["elsewhere"])
    with pytest.raises(FeedUnavailable, match="no source"):
        async with RevocationFeed(nats_url, LIFETIME, catch_up_seconds=2):
            pass


async def test_a_feed_that_lost_its_log_turns_stale(log: Client, nats_url: str) -> None:
    """Protects against a feed that freezes: it answers, it looks complete, and hears of nothing any more."""
    async with RevocationFeed(nats_url, LIFETIME, max_staleness=timedelta(seconds=1)) as feed:
        assert not token(feed)
        await log.jetstream().delete_stream(subjects.LOG)
        await until(lambda: feed.state == "stale")
        assert token(feed)
        await until(lambda: feed.trouble is not None and "log" in feed.trouble)


def message(event: Event) -> Raw:
    """The event as the feed has it."""
    outgoing = wire.encode(event, event_id=new_id())
    return Raw(outgoing.subject, outgoing.headers, outgoing.body, 1, event.at)


def test_revocations_leave_memory_with_their_tokens() -> None:
    """Protects the memory of a service that runs for months."""
    denials = Denials(100.0)
    for event in (revoked("c", "g"), suspended("s"), deleted("d"), user_revoked("u")):
        denials.apply(message(event), 10.0)
    assert len(denials) == 4
    denials.forget(109.0)
    assert len(denials) == 4
    denials.apply(message(revoked("c", "g")), 109.0)
    denials.forget(111.0)
    assert denials.denies("c", "g", "", None, 0)  # revoked again since, by a second message
    assert len(denials) == 1
    denials.forget(210.0)
    assert len(denials) == 0


@pytest.mark.parametrize("off", [timedelta(days=-2), timedelta(days=2)])
def test_clocks_of_others_make_nothing_be_forgotten(off: timedelta) -> None:
    """Protects against a registry, or a server, whose clock is days off: what was heard of now is kept from now on."""
    denials = Denials(100.0)
    denials.apply(message(revoked("c", "g", at=now() + off)), 10.0)
    denials.forget(109.0)
    assert denials.denies("c", "g", "", None, 0)
    denials.forget(111.0)
    assert len(denials) == 0


def test_what_was_not_understood_is_denied_for_good() -> None:
    """Protects against a newer registry's verdict: how long it holds is not known here."""
    denials = Denials(100.0)
    raw = message(suspended("c"))
    unknown = structs.replace(raw, headers={**(raw.headers or {}), "ce-type": "client.frozen"})
    denials.apply(unknown, 10.0)
    denials.apply(message(suspended("c")), 20.0)
    denials.forget(10_000.0)
    assert denials.denies("c", "g", "", None, 0)
    denials.apply(message(resumed("c")), 10_001.0)
    assert denials.denies("c", "g", "", None, 0)


async def test_a_follower_that_had_nothing_yet_notices_another_past(tmp_path: Path) -> None:
    """Protects a quiet service whose log is restored from a backup, and then grows past where the service stood."""
    async with served(tmp_path) as (server, log), LogReader(log, subjects.LOG) as reader:
        await write(log, revoked("c", "g1"))
        await asyncio.to_thread(server.stop)
        shutil.copytree(tmp_path / "nats" / "jetstream", tmp_path / "backup")
        await asyncio.to_thread(server.start)
        [last] = await write(log, revoked("c", "g2"))
        async with reader.follow(last) as follower:
            assert await follower.next(0.5) == []
            await asyncio.to_thread(server.stop)
            shutil.rmtree(tmp_path / "nats" / "jetstream")
            shutil.copytree(tmp_path / "backup", tmp_path / "nats" / "jetstream")
            await asyncio.to_thread(server.start)
            await write(log, revoked("c", "other"), revoked("c", "and one more"))

            async def all_that_comes() -> None:
                while True:
                    assert await follower.next(0.5) == []

            with pytest.raises(Gap, match="another past"):
                await asyncio.wait_for(all_that_comes(), SECONDS)


async def test_a_reader_with_several_filters_is_refused(log: Client) -> None:
    """Protects whoever writes: making such a consumer holds up all appends, at ten million events for seconds."""
    with pytest.raises(ValueError, match="several filters"):
        LogReader(log, subjects.LOG).follow(0, subjects.GATES)


@pytest.mark.parametrize("heard_something", [True, False])
async def test_a_follower_notices_a_past_that_ends_before_its_own(tmp_path: Path, *, heard_something: bool) -> None:
    """Protects the same service where it is back before the restored log has grown: by then it looks like its own."""
    async with served(tmp_path) as (server, log), LogReader(log, subjects.LOG) as reader:
        await write(log, revoked("c", "g1"))
        await asyncio.to_thread(server.stop)
        shutil.copytree(tmp_path / "nats" / "jetstream", tmp_path / "backup")
        await asyncio.to_thread(server.start)
        [last] = await write(log, revoked("c", "g2"))
        async with reader.follow(last - heard_something) as follower:
            assert len(await follower.next(0.5)) == heard_something
            await asyncio.to_thread(server.stop)
            shutil.rmtree(tmp_path / "nats" / "jetstream")
            shutil.copytree(tmp_path / "backup", tmp_path / "nats" / "jetstream")
            await asyncio.to_thread(server.start)

            async def all_that_comes() -> None:
                while True:
                    assert await follower.next(0.5) == []

            with pytest.raises(Gap, match="ends at 1, before 2"):
                await asyncio.wait_for(all_that_comes(), SECONDS)


async def test_a_follower_that_is_cancelled_while_it_begins_leaves_nothing(
    log: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects the server from callers that come and go: each would leave a consumer behind for half a minute."""
    answered = asyncio.Event()
    request = log.request

    async def answered_to_nobody(subject: str, *given: Any, **options: Any) -> Any:
        answer = await request(subject, *given, **options)
        if "CONSUMER.CREATE" in subject:
            answered.set()
            await asyncio.Event().wait()
        return answer

    async with LogReader(log, subjects.LOG) as reader, reader.follow(0) as follower:
        with monkeypatch.context() as connection:
            connection.setattr(log, "request", answered_to_nobody)
            beginning = asyncio.create_task(follower.next(SECONDS))
            async with asyncio.timeout(SECONDS):
                await answered.wait()
            await end(beginning)
    manager = log.jetstream()
    async with asyncio.timeout(SECONDS):
        while await manager.consumers_info(subjects.LOG):
            await asyncio.sleep(0.01)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", ["replaced", "closed"])
async def test_a_cancellation_that_is_lost_holds_nothing_up(
    log: Client, nats_url: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Protects a service's end, and its way back to fresh, from Python 3.11, whose `wait_for` may lose one."""
    lost: list[object] = []
    follow = Follower.next

    async def lose_one(follower: Follower, wait_seconds: float) -> list[Raw]:
        try:
            return await follow(follower, wait_seconds)
        except asyncio.CancelledError:
            if lost:
                raise
            lost.append(follower)
            return []

    async def replaced(_last: int) -> bool:
        raise revocations.Replaced

    monkeypatch.setattr(Follower, "next", lose_one)
    async with RevocationFeed(nats_url, LIFETIME) as feed:
        if how == "replaced":
            with monkeypatch.context() as proof:
                proof.setattr(feed, "_has_applied", replaced)
                await until(lambda: bool(lost))
            await until(lambda: feed.state == "fresh")
    assert lost


async def test_a_machine_that_slept_knows_that_time_went_by(
    log: Client, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects a resource on a laptop that was closed: what was proven before it slept proves nothing after."""
    async with RevocationFeed(nats_url, LIFETIME) as feed:
        assert feed.state == "fresh"
        awake = clocks.now
        monkeypatch.setattr(clocks, "now", lambda: awake() + 3_600)
        assert feed.is_revoked("c", "g", "u", now())
        assert feed.age > 3_000


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="Linux has it")
def test_the_clock_counts_the_time_asleep() -> None:
    """Protects the same, where Linux's monotonic clock would stand still."""
    asleep = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    assert clocks.now() - time.monotonic() == pytest.approx(asleep, abs=0.1)


async def test_a_start_long_after_reads_only_what_still_matters(
    log: Client, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects the start of a service from reading years of revocations."""
    monkeypatch.setattr(revocations, "MARGIN", timedelta(0))
    await write(log, *(revoked("c", f"g{number}") for number in range(20)))
    await sourced(log, 20)
    lifetime = timedelta(milliseconds=200)
    async with LogReader(log, subjects.REVOCATIONS) as reader:
        last = await reader.at_on_leader(20)
        assert last is not None
        async with asyncio.timeout(SECONDS):
            while (await reader.state()).now < last.stored_at + lifetime:
                await asyncio.sleep(0.01)
    async with RevocationFeed(nats_url, lifetime) as feed:
        assert feed.entries == 0
        assert feed.position is None
        await write(log, revoked("c", "new"))
        await feed.wait_until_current(SECONDS)


async def test_a_clock_that_is_ahead_skips_nothing(log: Client, nats_url: str) -> None:
    """Protects a token service whose clock jumped by days just before it started."""
    await write(log, revoked("c", "g"))
    await sourced(log, 1)
    async with RevocationFeed(nats_url, LIFETIME, clock=lambda: now() + timedelta(days=2)) as feed:
        assert feed.entries == 1


async def test_a_feed_that_was_made_just_now_is_not_taken_for_complete(
    log: Client, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects what was revoked before a rebuild of the feed: an empty feed may be one that has not begun."""
    monkeypatch.setattr(revocations, "SETTLE_SECONDS", 3_600.0)
    with pytest.raises(FeedUnavailable, match="just now"):
        async with RevocationFeed(nats_url, LIFETIME, catch_up_seconds=1):
            pass
    await write(log, revoked("c", "g"))
    await sourced(log, 1)
    async with RevocationFeed(nats_url, LIFETIME) as feed:
        assert token(feed)


@pytest.mark.faults
async def test_a_killed_server_leaves_no_gap_and_is_denied_meanwhile(tmp_path: Path) -> None:
    """Protects revocations that happen around a crash of NATS, and says what `deny` means while it is away."""
    async with (
        served(tmp_path) as (server, log),
        RevocationFeed(server.url, LIFETIME, max_staleness=timedelta(seconds=2)) as feed,
    ):
        await write(log, revoked("c", "g1"))
        await until(lambda: token(feed, grant="g1"))
        assert not token(feed, grant="g2")
        server.kill()
        await until(lambda: token(feed, grant="g2"))
        assert feed.state == "stale"
        assert feed.trouble is not None
        server.start()
        await until(lambda: log.is_connected)
        await write(log, revoked("c", "g2"))
        await until(lambda: feed.state == "fresh")
        assert token(feed, grant="g1")
        await until(lambda: token(feed, grant="g2"))
        assert not token(feed, grant="g3")
        await until(lambda: feed.trouble is None)


async def test_allowing_when_stale_still_denies_what_is_known(tmp_path: Path) -> None:
    """Protects availability for those who choose it, without giving back what was revoked."""
    staleness = timedelta(milliseconds=1500)
    async with (
        served(tmp_path) as (server, log),
        RevocationFeed(server.url, LIFETIME, when_stale="allow", max_staleness=staleness) as feed,
    ):
        await write(log, revoked("c", "g1"))
        await until(lambda: token(feed, grant="g1"))
        server.kill()
        await until(lambda: feed.state == "stale")
        assert feed.age > 1.5
        assert token(feed, grant="g1")
        assert not token(feed, grant="g2")


async def test_is_revoked_takes_microseconds(feed: RevocationFeed, log: Client) -> None:
    """Protects the latency of every call to a tool: the answer does not depend on how much was revoked."""
    await write(log, *(revoked("c", f"g{number}") for number in range(200)))
    await until(lambda: token(feed, grant="g199"))
    issued_at = now().timestamp()
    started = time.perf_counter()
    for _ in range(10_000):
        feed.is_revoked("c", "other", "u", issued_at)
    took = (time.perf_counter() - started) / 10_000
    print(f"is_revoked: {took * 1e6:.1f} us")  # noqa: T201  a figure for people
    assert took < 1e-3
    assert feed.entries == 200


async def test_a_paused_server_is_denied_and_leaves_no_gap(tmp_path: Path) -> None:
    """Protects against a server that is there and answers nothing: a full disk, a debugger, a hypervisor."""
    async with (
        served(tmp_path) as (server, log),
        RevocationFeed(server.url, LIFETIME, max_staleness=timedelta(seconds=2)) as feed,
    ):
        assert not token(feed)
        server.pause()
        try:
            await until(lambda: feed.state == "stale")
            assert token(feed)
        finally:
            server.resume()
        await write(log, revoked("c", "g"))
        await until(lambda: feed.state == "fresh" and token(feed))
        assert not token(feed, grant="g2")


@pytest.mark.parametrize("how", ["hold", "cut"])
@pytest.mark.faults
async def test_a_partition_is_denied_and_leaves_no_gap(log: Client, nats_url: str, how: str) -> None:
    """Protects a token service that is cut off while the rest goes on: it knows that it does not know."""
    parts = urlsplit(nats_url)
    assert parts.port is not None
    async with Partition(parts.port) as network:
        url = urlunsplit(parts._replace(netloc=parts.netloc.replace(str(parts.port), str(network.port))))
        async with RevocationFeed(url, LIFETIME, max_staleness=timedelta(seconds=2)) as feed:
            await write(log, revoked("c", "g1"))
            await until(lambda: token(feed, grant="g1"))
            assert not token(feed, grant="g2")
            await getattr(network, how)()
            await write(log, revoked("c", "g2"))
            await until(lambda: feed.state == "stale")
            assert token(feed, grant="g3")
            await network.heal()
            await until(lambda: feed.state == "fresh")
            assert token(feed, grant="g1")
            assert token(feed, grant="g2")
            assert not token(feed, grant="g3")
            assert feed.entries == 2


async def test_waiting_for_a_position_ends_with_that_revocation(feed: RevocationFeed, log: Client) -> None:
    """Protects a caller who revoked just now: at once for what revokes, and soon for any other position."""
    [gate, other] = await write(log, revoked("c", "g"), registered("d"))
    async with LogReader(log, subjects.LOG) as reader:
        identity = (await reader.state()).identity
    await feed.wait_until(positions.Position("log", identity, gate), SECONDS)
    assert token(feed)
    await feed.wait_until(f"log-{identity}-{other}", SECONDS)
    with pytest.raises(FeedUnavailable):
        await feed.wait_until(f"log-{identity}-99", 0.05)
    with pytest.raises(FeedUnavailable, match="another log"):
        await feed.wait_until("log-00000000-1", 0.05)
    for wrong in ("99", f"activity-{identity}-1"):
        with pytest.raises(positions.InvalidPosition):
            await feed.wait_until(wrong, 0.05)


def test_the_grants_of_a_deleted_client_cost_nothing() -> None:
    """Protects the memory of a service from the deletion of a client with a million grants."""
    denials = Denials(100.0)
    denials.apply(message(deleted("c")), 10.0)
    for number in range(1_000):
        denials.apply(message(revoked("c", f"g{number}", reason="client_deleted")), 11.0)
    assert len(denials) == 1
    assert denials.why("c", "g7", "u", None, 0) == "deleted"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 2), st.floats(0, 30)), max_size=60))
def test_nothing_is_forgotten_too_early_nor_kept_too_long(steps: list[tuple[int, int, int, float]]) -> None:
    """Protects both ends: a denial that vanished while a token lives, and memory that only grows."""
    kept = 100.0
    denials = Denials(kept)
    heard: dict[tuple[str, ...], float] = {}
    now_ = 0.0
    for kind, first, second, later in steps:
        now_ += later
        client, grant, user = f"c{first}", f"g{second}", f"u{first}"
        denials.forget(now_)
        match kind:
            case 0:
                denials.apply(message(revoked(client, grant)), now_)
                heard.setdefault(("deleted", client), -1e9)
                if now_ - heard["deleted", client] > kept * 65 / 64:
                    heard["grant", client, grant] = now_
            case 1:
                denials.apply(message(deleted(client)), now_)
                heard["deleted", client] = now_
            case 2:
                denials.apply(message(suspended(client)), now_)
                heard["suspended", client] = now_
            case 3:
                denials.apply(message(resumed(client)), now_)
                heard.pop(("suspended", client), None)
            case _:
                denials.apply(message(user_revoked(user)), now_)
                heard["user", user] = now_
        for what, since in heard.items():
            if now_ - since <= kept:
                asked = {
                    "grant": (what[1], what[-1], "x"),
                    "deleted": (what[1], "x", "x"),
                    "suspended": (what[1], "x", "x"),
                    "user": ("x", "x", what[1]),
                }[what[0]]
                assert denials.denies(*asked, None, 0), what
    denials.forget(now_ + kept * 65 / 64 + 1)
    assert len(denials) == 0
    assert not denials._cutoffs


@pytest.mark.parametrize("written_since", [1, 2, 5])
@pytest.mark.faults
async def test_a_restored_feed_is_read_anew(tmp_path: Path, written_since: int) -> None:
    """Protects revocations after a restore of the whole server, on places where others stood before."""
    async with served(tmp_path) as (server, log), RevocationFeed(server.url, LIFETIME) as feed:
        await write(log, revoked("c", "g1"))
        await until(lambda: token(feed, grant="g1"))
        await asyncio.to_thread(server.stop)
        shutil.copytree(tmp_path / "nats" / "jetstream", tmp_path / "backup")
        await asyncio.to_thread(server.start)
        await until(lambda: log.is_connected)
        await write(log, revoked("c", "g2"), revoked("c", "g3"))
        await until(lambda: feed.state == "fresh" and token(feed, grant="g3"))
        await asyncio.to_thread(server.stop)
        shutil.rmtree(tmp_path / "nats" / "jetstream")
        shutil.copytree(tmp_path / "backup", tmp_path / "nats" / "jetstream")
        await asyncio.to_thread(server.start)
        await until(lambda: log.is_connected)
        await write(log, *(revoked("c", f"x{number}") for number in range(written_since)))
        await until(lambda: feed.state == "fresh" and token(feed, grant=f"x{written_since - 1}"))
        assert all(token(feed, grant=f"x{number}") for number in range(written_since))
        assert not token(feed, grant="never")


@pytest.mark.faults
async def test_a_restored_log_is_never_resumed_over_http(tmp_path: Path) -> None:
    """Protects services without NATS from the same."""
    port = free_port()
    async with served(tmp_path) as (server, log), serving(log, port) as it:
        feed = HttpRevocationFeed(it.url, TOKENS["feed"], LIFETIME)
        await feed.__aenter__()
        await write(log, revoked("c", "g1"))
        await until(lambda: feed.is_revoked("c", "g1", "u", now()))
        await asyncio.to_thread(server.stop)
        shutil.copytree(tmp_path / "nats" / "jetstream", tmp_path / "backup")
        await asyncio.to_thread(server.start)
        await until(lambda: log.is_connected)
        await write(log, revoked("c", "g2"), revoked("c", "g3"))
        await until(lambda: feed.state == "fresh" and feed.is_revoked("c", "g3", "u", now()))
        await asyncio.to_thread(server.stop)
        shutil.rmtree(tmp_path / "nats" / "jetstream")
        shutil.copytree(tmp_path / "backup", tmp_path / "nats" / "jetstream")
        await asyncio.to_thread(server.start)
        await until(lambda: log.is_connected)
        await write(log, revoked("c", "x0"), revoked("c", "x1"), revoked("c", "x2"))
        await until(lambda: feed.state == "fresh" and feed.is_revoked("c", "x2", "u", now()))
        assert feed.is_revoked("c", "x0", "u", now())
        assert feed.is_revoked("c", "x1", "u", now())
        assert not feed.is_revoked("c", "never", "u", now())
        await feed.__aexit__(None, None, None)


async def test_a_feed_that_has_everything_at_some_moments_stays_fresh(
    log: Client, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects everyone else while a client with many grants is deleted: the feed is behind the log at most moments."""
    asked: list[StreamState] = []
    doubt_of = revocations.doubt_of

    def mostly_behind(state: StreamState) -> str | None:
        asked.append(state)
        return doubt_of(state) if len(asked) % 5 == 1 else "some messages behind"

    monkeypatch.setattr(revocations, "doubt_of", mostly_behind)
    async with RevocationFeed(nats_url, LIFETIME, max_staleness=timedelta(seconds=2.5)) as feed:
        while len(asked) < 16:
            assert feed.state == "fresh", feed.age
            await asyncio.sleep(0.1)
