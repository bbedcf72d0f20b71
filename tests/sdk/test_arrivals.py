"""Messages as they come off the wire: the same to a reader as those that the client of NATS makes of them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import nats
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError, ProtocolError
from nats.errors import TimeoutError as NatsTimeoutError

from deploy.dev.servers import nats_server
from grantbook import subjects
from grantbook.sdk import arrivals, connection
from grantbook.sdk import log as log_reader
from grantbook.sdk.arrivals import Connection, Headers
from grantbook.sdk.log import LogReader, Raw
from tests.sdk.given import issued, registered, revoked, write

BLOCK = (
    b"NATS/1.0\r\nce-id: 1\r\nce-type:client.deleted\r\nce-id:\t2 \r\nCE-ID: 3\r\nempty:\r\nname: J\xc3\xb8rn\r\n\r\n"
)
STATUS = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 7\r\n\r\n"
SECONDS = 10.0

Arrival = tuple[str, str, dict[str, str] | None, bytes]


def message(sid: int, reply: str, head: bytes, body: bytes) -> bytes:
    words = " ".join(["HMSG", "a.subject", str(sid), *filter(None, [reply]), str(len(head)), str(len(head + body))])
    return words.encode() + b"\r\n" + head + body + b"\r\n"


def receiving(client: Connection, sid: int) -> list[Arrival]:
    arrived: list[Arrival] = []

    def sink(subject: str, reply: str, headers: Mapping[str, str] | None, data: bytes) -> None:
        arrived.append((subject, reply, None if headers is None else dict(headers), data))

    client.sinks[b"%d" % sid] = sink
    return arrived


def test_headers_are_those_of_the_block() -> None:
    """Readers who dispatch on a header: of two the last counts, a name is exact, and what is not there is missing."""
    headers = Headers(BLOCK)
    assert headers["ce-type"] == "client.deleted"
    assert headers.get("ce-id") == "2"
    assert headers.get("e-id") is None
    assert headers.get("Status") is None
    assert headers.get("traceparent", "none") == "none"
    assert "ce-time" not in headers
    assert dict(headers) == {"ce-id": "2", "ce-type": "client.deleted", "CE-ID": "3", "empty": "", "name": "Jørn"}
    with pytest.raises(KeyError):
        headers["ce-time"]


def test_a_status_stands_in_the_first_line() -> None:
    """Followers, who go by it: a heartbeat, and the end of a pull."""
    assert dict(Headers(STATUS)) == {"Status": "100", "Description": "Idle Heartbeat", "Nats-Last-Consumer": "7"}
    assert Headers(STATUS).get("Status") == "100"
    assert dict(Headers(b"NATS/1.0 503\r\n\r\n")) == {"Status": "503"}
    assert Headers(b"NATS/1.0\r\nStatus: 7\r\n\r\n").get("Status") == "7"


async def test_nothing_depends_on_how_the_stream_is_cut() -> None:
    """Every reader: what is read at once from a socket ends anywhere, and other messages stand between."""
    stream = b"".join(
        (
            message(7, "$JS.ACK.1", BLOCK, b'{"at": "\r\nHMSG a 7 1 2"}'),
            b"+OK\r\n",
            message(7, "", STATUS, b""),
            message(8, "", BLOCK, b"of somebody else"),
            b"MSG a.subject 7 5\r\nplain\r\n",
            b"MSG a.subject 7 back 7\r\n\r\nMSG \r\r\n",
            b"MSG a.subject 8 5\r\nother\r\n",
            b"MSG a.subject 7 0\r\n\r\n",
            message(7, "$JS.ACK.2", BLOCK, b""),
            message(7, "$JS.ACK.3", BLOCK, b"x" * 300),
        )
    )
    about, status = dict(Headers(BLOCK)), dict(Headers(STATUS))
    expected: list[Arrival] = [
        ("a.subject", "$JS.ACK.1", about, b'{"at": "\r\nHMSG a 7 1 2"}'),
        ("a.subject", "", status, b""),
        ("a.subject", "", None, b"plain"),
        ("a.subject", "back", None, b"\r\nMSG \r"),
        ("a.subject", "", None, b""),
        ("a.subject", "$JS.ACK.2", about, b""),
        ("a.subject", "$JS.ACK.3", about, b"x" * 300),
    ]
    for first in range(len(stream) + 1):
        client = Connection()
        arrived = receiving(client, 7)
        await client._ps.parse(stream[:first])
        await client._ps.parse(stream[first:])
        assert arrived == expected, first
    client = Connection()
    arrived = receiving(client, 7)
    for each in stream:
        await client._ps.parse(bytes([each]))
    assert arrived == expected


async def test_what_was_half_read_is_forgotten_with_its_connection() -> None:
    """Whoever reads through the loss of a server: the next one begins anew."""
    client = Connection()
    arrived = receiving(client, 7)
    whole = message(7, "$JS.ACK.1", BLOCK, b"x" * 300)
    await client._ps.parse(whole[:200])
    client._ps.reset()
    await client._ps.parse(whole)
    assert [data for *_, data in arrived] == [b"x" * 300]


_NO_PROTOCOL = (
    b"HMSG a.subject 7 ten 12\r\n",
    b"HMSG a.subject 7 -5 3\r\n",
    b"HMSG a.subject 7 5 3\r\nabcde\r\n",
    b"MSG a.subject 7 ten\r\n",
    b"MSG a.subject 7 -3\r\n",
    b"MSG a.subject 7 1_0\r\n",
    b"MSG\r\n",
    b"MSG 7\r\n",
    b"\r\n",
)


async def test_what_is_no_protocol_ends_the_connection() -> None:
    """Readers: the client connects again, where it would else wait for ever."""
    client = Connection()
    receiving(client, 7)
    for line in _NO_PROTOCOL:
        with pytest.raises(ProtocolError):
            await client._ps.parse(line)
        client._ps.reset()


async def test_both_clients_give_a_reader_the_same(log: Client, nats_url: str) -> None:
    """Readers with a connection of their own: it is slower, and nothing else."""
    await write(log, registered("c"), *(issued("c", f"g{number}", "u") for number in range(50)), revoked("c", "g7"))
    other = await nats.connect(nats_url, allow_reconnect=False)
    try:
        assert isinstance(log, Connection)
        assert not isinstance(other, Connection)
        fast, slow = await everything(log), await everything(other)
    finally:
        await other.close()
    assert fast == slow
    assert [each.sequence for each in fast] == [*range(1, 53), 1, 52]


async def everything(client: Client) -> list[Raw]:
    """What a follower hands out, and then what direct gets answer."""
    async with LogReader(client, subjects.LOG) as reader, reader.follow(0, messages=20) as follower:
        found: list[Raw] = []
        async with asyncio.timeout(SECONDS):
            while len(found) < 52:
                found += await follower.next(1.0)
        last = await reader.last([subjects.client_record("c"), subjects.grant_gate("c", "g7")])
        return [
            raw_with_plain_headers(each) for each in [*found, *sorted(last.values(), key=lambda each: each.sequence)]
        ]


def raw_with_plain_headers(raw: Raw) -> Raw:
    return Raw(raw.subject, dict(raw.headers or {}), raw.data, raw.sequence, raw.stored_at)


async def test_what_comes_after_the_end_of_a_subscription_is_nobodys() -> None:
    """Readers that were closed: a message that was under way does not reach them."""
    client = Connection()
    arrived = receiving(client, 7)
    await client._ps.parse(message(7, "", BLOCK, b"before"))
    client.sinks.clear()
    await client._ps.parse(message(7, "", BLOCK, b"after"))
    assert [data for *_, data in arrived] == [b"before"]


async def test_a_reader_that_ends_in_the_middle_of_a_message_holds_up_nobody() -> None:
    """Auditors who read one thing after another over one connection: what comes next is not waited for in vain."""
    client = Connection()
    receiving(client, 7)
    whole = message(7, "", BLOCK, b"x" * 5_000)
    await client._ps.parse(whole[:200])
    client.sinks.clear()
    await client._ps.parse(whole[200:])
    arrived = receiving(client, 8)
    await client._ps.parse(message(8, "", BLOCK, b"next"))
    assert [data for *_, data in arrived] == [b"next"]


async def test_a_subject_that_is_no_text_reaches_its_reader() -> None:
    """Operators: whoever writes rubbish is found by the reader, who says so; the connection goes on."""
    client = Connection()
    arrived = receiving(client, 7)
    await client._ps.parse(message(7, "", BLOCK, b"rubbish").replace(b"a.subject", b"a.\xffubject"))
    assert [(subject, data) for subject, _, _, data in arrived] == [("a.\ufffdubject", b"rubbish")]


async def test_what_was_stored_is_never_taken_for_what_the_server_says(log: Client) -> None:
    """Operators: a message that looks like a status does not send readers round in circles."""
    for status in ("408", "409", "503", "100"):
        await log.jetstream().publish(subjects.client_gate("c"), b"", headers={"Status": status})
    async with LogReader(log, subjects.LOG) as reader, reader.follow(0) as follower, asyncio.timeout(SECONDS):
        found: list[Raw] = []
        while len(found) < 4:
            found += await follower.next(1.0)
    assert [each.sequence for each in found] == [1, 2, 3, 4]
    assert follower.trouble is None


async def test_large_messages_are_pulled_a_few_at_a_time(log: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators: a stretch of the largest registrations takes no more memory than any other."""
    monkeypatch.setattr(log_reader, "PULL_BYTES", 20_000)
    for number in range(30):
        await log.jetstream().publish(subjects.client_gate(f"c{number}"), b"x" * 5_000)
    async with LogReader(log, subjects.LOG) as reader, reader.follow(0) as follower, asyncio.timeout(SECONDS):
        found: list[Raw] = []
        most, consumers = 0, set[str]()
        while len(found) < 30:
            page = await follower.next(1.0)
            found, most = found + page, max(most, len(page))
            consumers.add(follower._consumer)
    assert [each.sequence for each in found] == [*range(1, 31)]
    assert most <= 8, "two pulls may have come"
    assert len(consumers) == 1


async def test_what_nobody_takes_is_not_pulled_any_further(log: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators whose Postgres is slow: a stretch of the largest registrations waits on the server, not in memory."""
    monkeypatch.setattr(log_reader, "PULL_BYTES", 20_000)
    for number in range(30):
        await log.jetstream().publish(subjects.client_gate(f"c{number}"), b"x" * 5_000)
    async with LogReader(log, subjects.LOG) as reader, reader.follow(0) as follower, asyncio.timeout(SECONDS):
        found = await follower.next(1.0)
        while follower._pulls:
            await asyncio.sleep(0.01)
        assert len(follower._queue) <= 12, "three pulls may have come"
        while len(found) < 30:
            found += await follower.next(1.0)
    assert [each.sequence for each in found] == [*range(1, 31)]


@pytest.mark.parametrize("reply", ["", "nonsense", "$JS.ACK.GRANTBOOK.c.1.2.2.x.0", "$JS.ACK.GRANTBOOK.c.1.9.9.1.0"])
async def test_what_does_not_follow_begins_anew_behind_what_did(log: Client, reply: str) -> None:
    """Auditors: whatever comes between, each event is handed out once, in order."""
    for number in range(3):
        await log.jetstream().publish(subjects.client_gate(f"c{number}"), b"")
    async with LogReader(log, subjects.LOG) as reader, reader.follow(0) as follower, asyncio.timeout(SECONDS):
        found: list[Raw] = []
        while len(found) < 3:
            found += await follower.next(1.0)
        consumer = follower._consumer
        follower._received(follower._inbox, "grantbook.client.c9.gate", reply, None, b"")
        await log.jetstream().publish(subjects.client_gate("c3"), b"")
        while len(found) < 4:
            found += await follower.next(1.0)
    assert [each.sequence for each in found] == [1, 2, 3, 4]
    assert follower._consumer != consumer


async def test_a_pull_that_is_full_leaves_the_consumer_as_it_is(log: Client) -> None:
    """Whoever reads ten million events: making a consumer for every thousand would take longer than reading them."""
    for number in range(30):
        await log.jetstream().publish(subjects.client_gate(f"c{number}"), b"x")
    async with LogReader(log, subjects.LOG) as reader, reader.follow(0, messages=3) as follower:
        found: list[Raw] = []
        consumers = set[str]()
        async with asyncio.timeout(SECONDS):
            while len(found) < 30:
                found += await follower.next(1.0)
                consumers.add(follower._consumer)
        await follower.next(0.2)  # what the server says after the last message, too
        assert consumers == {follower._consumer}
    assert [each.sequence for each in found] == [*range(1, 31)]


@pytest.fixture
async def plain(nats_url: str) -> AsyncIterator[Client]:
    """The client of NATS as it is."""
    client = await nats.connect(nats_url, allow_reconnect=False)
    yield client
    await client.close()


async def answer_with(client: Client, answering: Callable[[Msg], Awaitable[None]]) -> None:
    """Answer what is asked on `asked`, once the server knows that somebody does."""

    async def came(message: Msg) -> None:
        await (message.respond(b"") if message.data == b"are you there?" else answering(message))

    await client.subscribe("asked", cb=came)
    async with asyncio.timeout(SECONDS):
        while True:
            with contextlib.suppress(NoRespondersError):
                await client.request("asked", b"are you there?", timeout=SECONDS)
                return


async def test_an_answer_is_what_the_client_of_nats_gives(log: Client, plain: Client) -> None:
    """Whoever asks: subject and headers of the answer, and what is raised where nobody answers or nobody is there."""

    async def answering(message: Msg) -> None:
        if message.data != b"silence":
            head = {"of": "it"} if message.data == b"headers" else None
            await message._client.publish(message.reply, b"got " + message.data, headers=head)

    await answer_with(plain, answering)
    for client in (log, plain):
        for sent, headers in ((b"", None), (b"headers", {"of": "it"})):
            answer = await client.request("asked", sent, timeout=SECONDS, headers={"as": "sent"})
            assert (answer.data, answer.headers) == (b"got " + sent, headers)
        with pytest.raises(NatsTimeoutError):
            await client.request("asked", b"silence", timeout=0.05)
        with pytest.raises(TimeoutError):
            await client.request("asked", b"silence", timeout=0.0)
        with pytest.raises(NoRespondersError):
            await client.request("nobody.there", b"", timeout=SECONDS)
        with pytest.raises(NatsError):
            await client.request("no subject", b"", timeout=SECONDS)
        assert (await client.request("asked", b"old", timeout=SECONDS, old_style=True)).data == b"got old"


async def test_each_is_given_its_own_answer(log: Client, plain: Client) -> None:
    """Those who ask at once, from the first request on: none hears what was meant for another, or too late for it."""
    assert isinstance(log, Connection)
    held: list[Msg] = []

    async def answering(message: Msg) -> None:
        held.append(message)
        if len(held) == 51:
            asking[7].cancel()
            for each in reversed(held):
                await plain.publish(each.reply, b"got " + each.data)
                await plain.publish(each.reply, b"again")

    await answer_with(plain, answering)
    with pytest.raises(TimeoutError):
        await log.request("asked", b"too early", timeout=0.05)
    asking = [asyncio.create_task(log.request("asked", b"%d" % number, timeout=SECONDS)) for number in range(50)]
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert [each.data if isinstance(each, Msg) else None for each in answers] == [
        b"got %d" % number if number != 7 else None for number in range(50)
    ]
    assert not log._asked
    assert (await log.request("$JS.API.INFO", b"", timeout=SECONDS)).data


async def test_requests_go_on_after_the_server_was_away(tmp_path: Path) -> None:
    """Registries whose NATS is started anew: what they ask then is answered."""
    with nats_server(tmp_path) as server:
        client = await connection.connect(server.url, name="test")
        try:
            assert (await client.request("$JS.API.INFO", b"", timeout=SECONDS)).data
            await asyncio.to_thread(server.stop)
            with pytest.raises(TimeoutError):
                await client.request("$JS.API.INFO", b"", timeout=0.2)
            await asyncio.to_thread(server.start)
            async with asyncio.timeout(SECONDS):
                while True:
                    with contextlib.suppress(NatsError, OSError):
                        if (await client.request("$JS.API.INFO", b"", timeout=1.0)).data:
                            break
        finally:
            await connection.close(client)


@pytest.mark.parametrize("block", [b"NATS/1.0\r\nn\xff: 1\r\n\r\n", b"NATS/1.0\t7\r\n\r\n"])
async def test_an_answer_with_strange_headers_is_an_answer(log: Client, plain: Client, block: bytes) -> None:
    """Registries: whoever answers with rubbish does not end what they read for good."""

    async def answering(message: Msg) -> None:
        line = f"HPUB {message.reply} {len(block)} {len(block)}\r\n".encode()
        await message._client._send_command(line + block + b"\r\n")
        await message._client._flush_pending()

    await answer_with(plain, answering)
    assert (await log.request("asked", b"", timeout=SECONDS)).data == b""
    assert (await log.request("$JS.API.INFO", b"", timeout=SECONDS)).data


@given(block=st.binary(max_size=60) | st.binary(max_size=60).map(lambda each: b"NATS/1.0" + each))
def test_what_is_listed_of_headers_can_be_looked_up(block: bytes) -> None:
    """Whoever goes through the headers of hostile messages: nothing is raised for what they are."""
    headers = Headers(block)
    assert list(dict(headers)) == list(headers)
    assert [headers[name] for name in headers] == list(headers.values())


def test_the_module_is_what_connect_uses() -> None:
    """Whoever updates the client of NATS: its reading is ours as long as it keeps its parser where it is."""
    assert type(Connection()._ps) is arrivals._Parser
