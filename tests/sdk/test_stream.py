"""The revocations as server-sent events, over HTTP, from a real log."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import httpx
import pytest
from msgspec import structs
from nats.aio.client import Client

from door import roles
from grantbook import subjects, wire
from grantbook.events import ClientRegistered, Event, GrantIssued, type_of
from grantbook.sdk.log import LogReader, StreamState
from projector import feed
from projector.api import revocations
from registry import streams
from tests.sdk.given import (
    deleted,
    issued,
    registered,
    resumed,
    revoked,
    suspended,
    user_revoked,
    write,
    write_raw,
)
from tests.sdk.over_http import OTHER_FEED, SECONDS, TOKENS, Served, serving

PATH = "/revocations/v1/stream"
pytestmark = pytest.mark.timeout(60)


class Sent(NamedTuple):
    id: str
    event: str
    data: Any


@pytest.fixture
async def served(log: Client) -> AsyncIterator[Served]:
    async with serving(log) as it:
        yield it


class Receiver:
    """What a browser's `EventSource` does with the lines."""

    def __init__(self, answer: httpx.Response) -> None:
        self.comments = 0
        self.current = False
        """Whether it was ever said that everything was sent."""
        self.last_id = ""
        self._lines = answer.aiter_lines()

    async def next(self) -> Sent:
        """The next event. Raises `StopAsyncIteration` where the stream ended."""
        event, data = "message", list[str]()
        async with asyncio.timeout(SECONDS):
            while True:
                line = await anext(self._lines)
                field, _, value = line.partition(": ")
                match field:
                    case "id":
                        self.last_id = value
                    case "event":
                        event = value
                    case "data":
                        data.append(value)
                    case "" if line.startswith(":"):
                        self.comments += 1
                        self.current |= line.startswith(": current")
                    case "" if data:
                        return Sent(self.last_id, event, json.loads("\n".join(data)))


@contextlib.asynccontextmanager
async def opened(served: Served, **asked: Any) -> AsyncIterator[Receiver]:
    async with served.http.stream("GET", PATH, **asked) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        receiver = Receiver(answer)
        async with asyncio.timeout(SECONDS):
            assert (await anext(receiver._lines)).startswith(": began ")
            assert await anext(receiver._lines) == f"retry: {revocations.RECONNECT_MILLISECONDS}"
            field, _, receiver.last_id = (await anext(receiver._lines)).partition(": ")
        assert field == "id"
        yield receiver


async def test_every_gate_is_sent_as_it_happens_and_nothing_else(served: Served) -> None:
    """Protects token services that speak HTTP: they hear of each kind of revocation, at its position."""
    async with opened(served) as receiver:
        events: tuple[Event, ...] = (
            registered("c"),
            suspended("c"),
            resumed("c"),
            issued("c", "g", "u"),
            revoked("c", "g"),
            deleted("c"),
            user_revoked("u"),
        )
        written = await write(served.log, *events)
        for event, position in zip(events, written, strict=True):
            if isinstance(event, ClientRegistered | GrantIssued):
                continue
            sent = await receiver.next()
            assert sent.id == await served.position(position)
            assert sent.event == sent.data["type"] == type_of(event)
            assert sent.data["at"] == wire.rfc3339(event.at)


async def test_without_a_position_the_past_is_not_sent(served: Served) -> None:
    """Protects a caller that asks for what happens from now on."""
    await write(served.log, revoked("c", "old"))
    async with opened(served) as receiver:
        await write(served.log, revoked("c", "new"))
        assert (await receiver.next()).data["grant_id"] == "new"


@pytest.mark.parametrize("how", ["header", "query", "header before query"])
async def test_a_stream_resumes_without_a_gap(served: Served, how: str) -> None:
    """Protects a caller whose connection broke: what happened meanwhile comes, once and in order."""
    await write(served.log, *(revoked("c", f"g{number}") for number in range(3)))
    async with opened(served, params={"after": await served.position(0)}) as receiver:
        assert [(await receiver.next()).data["grant_id"] for _ in range(2)] == ["g0", "g1"]
    await write(served.log, revoked("c", "g3"))
    asked: dict[str, Any] = {}
    if how.startswith("header"):
        asked["headers"] = {"Last-Event-ID": receiver.last_id}
    if how.endswith("query"):
        asked["params"] = {"after": receiver.last_id if how == "query" else await served.position(0)}
    async with opened(served, **asked) as receiver:
        assert [(await receiver.next()).data["grant_id"] for _ in range(2)] == ["g2", "g3"]


async def test_a_caller_that_heard_nothing_resumes_where_it_began(served: Served) -> None:
    """Protects a caller whose connection broke before its first event."""
    async with opened(served) as receiver:
        start = receiver.last_id
    await write(served.log, revoked("c", "g"))
    async with opened(served, headers={"Last-Event-ID": start}) as receiver:
        assert (await receiver.next()).data["grant_id"] == "g"


async def test_a_place_before_what_the_feed_keeps_is_resumed_from_the_log(served: Served) -> None:
    """Protects a caller that was away for longer than the feed keeps anything: it misses nothing either."""
    await write(served.log, registered("c"), revoked("c", "g0"))
    answer = await served.log.request(f"$JS.API.STREAM.INFO.{subjects.REVOCATIONS}", b"")
    config = json.loads(answer.data)["config"] | {"max_msgs": 1}
    await served.log.request(f"$JS.API.STREAM.UPDATE.{subjects.REVOCATIONS}", json.dumps(config).encode())
    await write(served.log, revoked("c", "g1"), issued("c", "g2", "u"))
    async with LogReader(served.log, subjects.REVOCATIONS) as feed, asyncio.timeout(SECONDS):
        while (await feed.state()).first < 2:
            await asyncio.sleep(0.01)
    async with opened(served, params={"after": await served.position(1)}) as receiver:
        assert [(await receiver.next()).data["grant_id"] for _ in range(2)] == ["g0", "g1"]
        assert not receiver.current, "all was said to be there before it was"
        (written,) = await write(served.log, revoked("c", "g2"))
        sent = await receiver.next()
        assert (sent.id, sent.data["grant_id"]) == (await served.position(written), "g2")


async def test_a_feed_that_is_made_anew_repeats_nothing_and_hides_nothing(served: Served) -> None:
    """Protects callers while an operator rebuilds the feed: each revocation comes once, and with the log's time."""
    await write(served.log, revoked("c", "g0"))
    received: list[str] = []
    async with opened(served, params={"after": await served.position(0)}) as receiver:
        received.append((await receiver.next()).data["grant_id"])
    await streams.rebuild_feed(served.log)
    await write(served.log, revoked("c", "g1"))
    while len(received) < 2:
        # It may end while the feed is being filled: a caller comes back with what it has.
        async with opened(served, headers={"Last-Event-ID": receiver.last_id}) as receiver:
            with contextlib.suppress(StopAsyncIteration):
                received.append((await receiver.next()).data["grant_id"])
    assert received == ["g0", "g1"]


async def test_when_something_was_revoked_is_told_by_the_log_and_not_by_a_late_feed(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects users who logged in again after a cut-off: a feed that was made anew does not cut them off once more."""
    decided = datetime.now(UTC) - timedelta(days=1)
    (written,) = await write(served.log, user_revoked("u", at=decided))
    original = await served.reader.at_on_leader(written)
    assert original is not None
    async with LogReader(served.log, subjects.REVOCATIONS) as feed, asyncio.timeout(SECONDS):
        while (sourced := await feed.at_on_leader(1)) is None:
            await asyncio.sleep(0.01)
    late = structs.replace(sourced, stored_at=original.stored_at + timedelta(days=1))
    ((place, dated),) = await revocations._dated(served.reader, [(written, late)])
    assert (place, dated.stored_at) == (written, original.stored_at)


@pytest.mark.parametrize("where", ["after", "Last-Event-ID"])
@pytest.mark.parametrize("position", ["42", "log-00000000-0", "log-{identity}-99", "activity-{identity}-0", "x" * 9999])
async def test_a_position_that_means_nothing_here_is_refused(served: Served, where: str, position: str) -> None:
    """Protects a caller whose position is of a log that was replaced: silence would look like peace."""
    text = position.format(identity=(await served.reader.state()).identity)
    asked = {"params": {"after": text}} if where == "after" else {"headers": {"Last-Event-ID": text}}
    answer = await served.http.get(PATH, **asked)  # type: ignore[arg-type]  # one of two members
    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid_parameter"
    assert where in answer.json()["detail"]


async def test_what_is_not_understood_is_sent_all_the_same(served: Served) -> None:
    """Protects receivers that must deny what they cannot read, and their parsers from what attackers write."""
    async with opened(served) as receiver:
        await write_raw(served.log, subjects.client_gate("c"), "client.frozen", b'{"a":\r\n 1,\n\n"b": 2}')
        sent = await receiver.next()
        assert (sent.event, sent.data) == ("client.frozen", {"a": 1, "b": 2})
        await write_raw(served.log, subjects.client_gate("c"), "client.deleted", b"\n\nevent: client.resumed\n\n")
        sent = await receiver.next()
        assert (sent.event, sent.data) == ("malformed", {"subject": subjects.client_gate("c")})
        # No reader would see it without a type, and each deny it as it stands: as readers over NATS do.
        for type_ in (" ", "\u2003client.resumed", "client.resumed\x1f", "client.resumed\r", "client.\x85resumed"):
            await write_raw(served.log, subjects.client_gate("c"), type_, b'{"client_id": "c"}')
            sent = await receiver.next()
            assert (sent.event, sent.data) == ("malformed", {"subject": subjects.client_gate("c")}), type_


async def test_a_quiet_stream_sends_comments(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects connections from proxies that close what is silent, and tells callers that all is well."""
    monkeypatch.setattr(revocations, "COMMENT_SECONDS", 0.5)
    async with opened(served) as receiver, asyncio.timeout(SECONDS):
        async for line in receiver._lines:
            if line.startswith(": current "):
                break


async def test_a_stream_says_soon_again_whether_that_is_all_but_not_for_ever(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects callers while much is revoked at once, and the server from a feed that stands still."""
    doubts = itertools.count(1)
    monkeypatch.setattr(revocations, "COMMENT_SECONDS", SECONDS)
    monkeypatch.setattr(feed, "PROOF_SECONDS", 0.0)
    monkeypatch.setattr(feed, "DOUBT_SECONDS", 0.0)
    monkeypatch.setattr(revocations, "DOUBT_SECONDS", 0.05)
    monkeypatch.setattr(feed, "doubt_of", lambda _: "behind" if next(doubts) <= revocations.MAX_DOUBTS else None)
    async with opened(served) as receiver, asyncio.timeout(SECONDS / 2):
        while not receiver.current:
            line = await anext(receiver._lines)
            receiver.comments += line.startswith(": waiting: behind")
            receiver.current = line.startswith(": current ")
    assert receiver.comments == revocations.MAX_DOUBTS
    monkeypatch.setattr(feed, "doubt_of", lambda _: "behind")
    async with opened(served) as receiver:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(4 * revocations.MAX_DOUBTS * revocations.DOUBT_SECONDS):
                async for line in receiver._lines:
                    receiver.comments += line.startswith(": waiting: behind")
    assert receiver.comments == revocations.MAX_DOUBTS + 1


async def test_those_who_wait_for_a_doubt_share_it(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects callers of a server whose NATS is far away: else each asks anew, one after the other."""
    asked: list[None] = []
    state = served.reader.state

    async def late() -> StreamState:
        asked.append(None)
        await asyncio.sleep(2 * feed.DOUBT_SECONDS)
        return await state()

    monkeypatch.setattr(served.reader, "state", late)
    monkeypatch.setattr(feed, "doubt_of", lambda _: "behind")
    head = feed.FeedHead(served.reader)
    told = await asyncio.gather(*(head.proof() for _ in range(20)))
    assert {each.doubt for each in told} == {"behind"}
    assert len(asked) == 1


@pytest.mark.parametrize("role", ["admin", "idp", "auditor", "ops", None])
async def test_only_the_role_feed_may_follow(served: Served, role: roles.Role | None) -> None:
    """Protects what happens in the register from those who may not watch it."""
    headers = {"Authorization": f"Bearer {TOKENS[role]}"} if role else {"Authorization": ""}
    assert (await served.http.get(PATH, headers=headers)).status_code == (403 if role else 401)


async def test_streams_are_bounded_and_given_back(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the server's memory, and callers from a bound that never lets go."""
    monkeypatch.setattr(revocations, "MAX_STREAMS", 2)
    async with opened(served), opened(served):
        answer = await served.http.get(PATH)
        assert (answer.status_code, answer.json()["code"]) == (503, "too_many_streams")
        assert int(answer.headers["retry-after"]) > 0
    async with asyncio.timeout(SECONDS):
        while served.app.state.streams.count:
            await asyncio.sleep(0.01)
        manager = served.log.jetstream()
        while await manager.consumers_info(subjects.LOG):
            await asyncio.sleep(0.01)
    async with opened(served):
        pass


async def test_a_caller_leaves_streams_for_others(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects token services from one that opens streams without end."""
    monkeypatch.setattr(revocations, "MAX_STREAMS_OF_A_CALLER", 1)
    async with opened(served):
        answer = await served.http.get(PATH)
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_streams")
        async with opened(served, headers={"Authorization": f"Bearer {OTHER_FEED}"}):
            pass


@pytest.mark.parametrize("stopped", [False, True])
async def test_who_takes_nothing_is_let_go(served: Served, monkeypatch: pytest.MonkeyPatch, *, stopped: bool) -> None:
    """Protects the places of those who read; and a server that is stopped does not wait for those who do not."""
    if not stopped:
        monkeypatch.setattr(revocations, "SEND_SECONDS", 0.2)
    for _ in range(100):
        await write_raw(served.log, subjects.client_gate("c"), "client.frozen", b'"' + b"x" * 100_000 + b'"')
    _, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rpartition(":")[2]), limit=1)
    writer.write(
        f"GET {PATH}?lookback=1h HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKENS['feed']}\r\n\r\n".encode()
    )
    streams = served.app.state.streams
    async with asyncio.timeout(SECONDS):
        while not streams.count:
            await asyncio.sleep(0.01)
        if stopped:
            await asyncio.sleep(0.5)  # so that it has sent as much as the system takes for a caller that reads nothing
            streams.close()
            async with asyncio.timeout(3.0):
                while streams.count:
                    await asyncio.sleep(0.01)
        while streams.count or served.server.server_state.connections:
            await asyncio.sleep(0.01)
    writer.close()


async def test_streams_end_when_the_server_is_stopped(served: Served) -> None:
    """Protects a restart from waiting for callers who never leave: they are let go cleanly and resume elsewhere."""
    async with opened(served) as receiver:
        served.app.state.streams.close()
        served.server.should_exit = True
        with pytest.raises(StopAsyncIteration):
            await receiver.next()
