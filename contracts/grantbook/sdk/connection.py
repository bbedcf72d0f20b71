"""One way to connect to NATS, with the traps of the client closed."""

import asyncio
import contextlib
import math
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from nats.aio.client import Client
from nats.errors import Error as NatsError

from grantbook.sdk.arrivals import Connection

CONNECT_SECONDS: Final = 2.0
FIRST_CONNECT_SECONDS: Final = 10.0
RECONNECT_WAIT_SECONDS: Final = 0.25
PING_SECONDS: Final = 5
CLOSE_SECONDS: Final = 5.0
PENDING_BYTES: Final = 64 * 1024 * 1024
SAME_TROUBLE_SECONDS: Final = 5.0
"""The same is told again only so much later: four times a second, it would bury what else is said."""


class UnreadableUrl(NatsError, ValueError):
    """The URL cannot be read. Says so without any of it: a password may stand anywhere in it."""


async def connect(url: str, *, name: str, on_trouble: Callable[[str], None] | None = None) -> Client:
    """A connection that reconnects for ever, once it was made. Raises `TimeoutError` when it was not within 10 s.

    `url` may name several servers of one cluster, with commas between. Raises `UnreadableUrl`.

    `on_trouble` hears, in words, of lost connections and of errors that NATS reports out of band: a permission that
    is missing shows nowhere else, the request itself just times out.
    """
    refuse_unreadable(url)
    client = Connection()
    last_trouble, told_at = "", -math.inf

    async def heard(what: str) -> None:
        nonlocal last_trouble, told_at
        now = asyncio.get_running_loop().time()
        if on_trouble is not None and (what != last_trouble or now - told_at >= SAME_TROUBLE_SECONDS):
            on_trouble(what)
            told_at = now
        last_trouble = what

    async def on_error(error: Exception) -> None:
        await heard(f"nats: {str(error) or type(error).__name__}")

    async def on_disconnect() -> None:
        if not client.is_closed:
            await heard("nats: disconnected")

    # The client's types say whole seconds. Any will do.
    seconds: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, "reconnect_time_wait": RECONNECT_WAIT_SECONDS}
    connecting = client.connect(
        url.split(","),
        name=name,
        **seconds,
        max_reconnect_attempts=-1,
        ping_interval=PING_SECONDS,
        max_outstanding_pings=2,
        pending_size=PENDING_BYTES,
        error_cb=on_error,
        disconnected_cb=on_disconnect,
    )
    try:
        await asyncio.wait_for(connecting, FIRST_CONNECT_SECONDS)
    except TimeoutError as error:
        message = f"no connection to NATS at {without_password(url)} within {FIRST_CONNECT_SECONDS:g} s: {last_trouble}"
        raise TimeoutError(message) from error
    return client


async def close(client: Client) -> None:
    """Close a connection, lost or not: the client raises when the server went first, with uvloop a `RuntimeError`."""
    with contextlib.suppress(NatsError, OSError, RuntimeError, TimeoutError):
        # It flushes first, which may wait for a server that does not read.
        await asyncio.wait_for(client.close(), CLOSE_SECONDS)


def refuse_unreadable(url: str) -> None:
    """Raises `UnreadableUrl`, which the client would not do, or with a part of the password in its words."""
    for one in url.split(","):
        with contextlib.suppress(ValueError):
            parts = urlsplit(one if "://" in one else f"nats://{one}")
            # A password with one of / ? # ends the host's part of the URL, and what precedes counts as host and port.
            astray = "@" in parts.path + parts.query + parts.fragment
            if parts.hostname and parts.port != 0 and not astray:
                continue
        raise UnreadableUrl(
            "the NATS URL is not nats://user:password@host:port, or has one of / ? # [ , in its password"
        )


def without_password(url: str) -> str:
    """The URL, or URLs with commas between, as it may be shown: user name and password replaced."""

    def shown(one: str) -> str:
        # Not as a parser has it: what somebody forgot to keep out of a password ends its part of the URL early.
        before, at, host = one.rpartition("@")
        if not at:
            return "***" if secret else one
        scheme, divider, _ = before.partition("://")
        return f"{scheme}://***@{host}" if divider else f"***@{host}"

    secret = "@" in url  # then a part without may be the beginning of a password that has a comma
    return ",".join(map(shown, url.split(",")))
