"""Headers of what is sent: the same as the client of NATS makes of them, and nobody adds one of his own."""

import nats
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg

from grantbook.sdk import departures
from grantbook.sdk.arrivals import Connection, Headers
from grantbook.sdk.connection import connect

SECONDS = 10.0
NAMES = st.sampled_from(["ce-id", "Nats-Msg-Id", "traceparent", "X-Own"])
VALUES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40).map(str.strip)


@given(st.dictionaries(NAMES, VALUES, min_size=1))
def test_what_is_put_in_is_what_comes_out(headers: dict[str, str]) -> None:
    """Readers: each header arrives as it was meant, whatever characters it has."""
    block = departures.block(headers)
    assert block is not None
    assert dict(Headers(block)) == headers


@pytest.mark.parametrize(
    "headers",
    [
        {"a": "b\r\nNats-Expected-Last-Sequence: 1"},
        {"a": "b\nc: d"},
        {"a": "b\rc"},
        {"a": "b\r\n", "c": "d"},
        {"a: b\r\nc": "d"},
        {"a b": "c"},
        {"": "a"},
        {"ä": "b"},
    ],
    ids=repr,
)
def test_what_would_be_another_header_is_left_to_the_client(headers: dict[str, str]) -> None:
    """Users: nothing that a stranger says becomes a header by a line break in it."""
    assert departures.block(headers) is None


async def test_both_clients_send_the_same(nats_url: str) -> None:
    """Whoever updates the client of NATS: our way is taken as long as it is asked, and says what the client's says."""
    ours, client_of_nats = await connect(nats_url, name="test"), await nats.connect(nats_url)
    assert type(client_of_nats) is Client
    assert isinstance(ours, Connection)
    came: list[Msg] = []
    subscription = await client_of_nats.subscribe("sent.*")
    try:
        headers = {"ce-id": "1", "Nats-Msg-Id": "issue ä 1", "empty": ""}
        await client_of_nats.flush()
        for client, subject in ((client_of_nats, "sent.theirs"), (ours, "sent.ours")):
            await client.publish(subject, b"body", reply="somewhere", headers=headers)
            await client.flush()
            came.append(await subscription.next_msg(timeout=SECONDS))
        theirs, mine = came
        assert mine.headers == theirs.headers == headers
        assert (mine.data, mine.reply) == (theirs.data, theirs.reply)
    finally:
        await ours.close()
        await client_of_nats.close()


async def test_our_way_is_taken(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same: should the client no longer ask us, this says so, and all goes on, slower."""
    asked: list[dict[str, str]] = []
    monkeypatch.setattr(departures, "block", asked.append)  # gives None
    ours = await connect(nats_url, name="test")
    try:
        await ours.publish("sent.ours", b"", headers={"a": "b"})
        assert asked == [{"a": "b"}]
    finally:
        await ours.close()
