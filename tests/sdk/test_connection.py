"""What is said of NATS URLs: never a password."""

import traceback
from datetime import timedelta

import pytest

from deploy.dev.servers import free_port
from grantbook.sdk import connection
from grantbook.sdk.connection import UnreadableUrl, connect, refuse_unreadable, without_password
from grantbook.sdk.revocations import RevocationFeed

UNREADABLE = [
    "nats://feed:12#topsecret@127.0.0.1:4",
    "nats://feed:topsecret#x@127.0.0.1:4",
    "nats://feed:topsecret/x@127.0.0.1",
    "nats://feed:1?topsecret@127.0.0.1:4",
    "nats://feed:[topsecret@127.0.0.1:4",
    "nats://feed:topsecret\u2100@127.0.0.1:4",
    "nats://a:4222,nats://feed:topsecret,x@127.0.0.1:4",
    "nats://feed:topsecret@127.0.0.1:port",
    "nats://feed:topsecret@",
    "feed:topsecret#x@127.0.0.1",
    "nats://feed:topsecret://@127.0.0.1",
]


@pytest.mark.parametrize("url", UNREADABLE)
async def test_a_url_that_cannot_be_read_is_refused_without_being_repeated(url: str) -> None:
    """Protects a password that has a character of the URL's own: it is in no message, no cause and no traceback."""
    with pytest.raises(ValueError, match="the NATS URL is not") as refused:
        RevocationFeed(url, timedelta(hours=1))
    assert "topsecret" not in "".join(traceback.format_exception_only(refused.value))
    with pytest.raises(UnreadableUrl) as refused:
        await connect(url, name="test")
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None


@pytest.mark.parametrize("url", UNREADABLE)
def test_a_url_is_shown_without_its_password_however_it_is_written(url: str) -> None:
    """Protects the same from whoever shows a URL before anybody has tried to read it."""
    assert "topsecret" not in without_password(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("127.0.0.1:4222", "127.0.0.1:4222"),
        ("localhost", "localhost"),
        ("tls://[::1]:4222/", "tls://[::1]:4222/"),
        ("nats://feed:secret@nats:4222", "nats://***@nats:4222"),
        ("nats://token@nats", "nats://***@nats"),
        ("nats://feed:se@cret@nats", "nats://***@nats"),
        ("wss://feed:secret@nats:443", "wss://***@nats:443"),
        ("nats://f:secret@a:1,nats://f:secret@b:2", "nats://***@a:1,nats://***@b:2"),
    ],
)
def test_a_url_that_can_be_read_is_shown_with_its_host(url: str, shown: str) -> None:
    """Operators: which server was meant can be seen."""
    refuse_unreadable(url)
    assert without_password(url) == shown


async def test_the_same_trouble_is_not_said_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators: a server that is down is told of, and does not fill the log four times a second."""
    monkeypatch.setattr(connection, "FIRST_CONNECT_SECONDS", 1.5)
    said: list[str] = []
    with pytest.raises(TimeoutError, match="no connection to NATS"):
        await connect(f"nats://127.0.0.1:{free_port()}", name="test", on_trouble=said.append)
    assert len(said) == 1
