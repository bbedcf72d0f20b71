"""Requests as handlers are given them, with a header and a body in as few steps as may be.

The framework makes a case-insensitive dictionary of all headers to look one up, and gathers a body through a generator
inside of a list, though nearly all arrive in one piece. The two take a tenth of what a registration costs.
"""

from typing import Any, Final, cast

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.types import HTTPReceiveMessage, Receive
from litestar.types.empty import Empty

MAX_LENGTH_DIGITS: Final = 10

AnyConnection = ASGIConnection[Any, Any, Any, Any]


def header(connection: AnyConnection, name: bytes) -> str | None:
    """The header of that name, which is in lower case; of several the first. None where there is none."""
    for each, value in connection.scope["headers"]:
        if each == name:
            return value.decode("latin-1")
    return None


def headers(connection: AnyConnection, name: bytes) -> list[str]:
    """All headers of that name, which is in lower case, as they came."""
    return [value.decode("latin-1") for each, value in connection.scope["headers"] if each == name]


def content_length(connection: AnyConnection) -> int | None:
    """How long the body is, as the request says (RFC 9110 section 8.6). None where it says nothing, or no number."""
    length = header(connection, b"content-length") or ""
    return int(length) if length.isascii() and length.isdigit() and len(length) <= MAX_LENGTH_DIGITS else None


class Asked(Request[Any, Any, Any]):
    """A request whose body, where it arrives in one piece, is that piece."""

    __slots__ = ()

    async def body(self) -> bytes:
        """The body. Raises what the framework raises where it is too large, or breaks off."""
        most = self.route_handler.resolve_request_max_body_size()
        if self._connection_state.body is not Empty or not self.is_connected or most is None:
            return await super().body()
        announced = content_length(self)
        if announced is None or announced > most:  # refused before any of it is taken
            return await super().body()
        message = cast("HTTPReceiveMessage", await self.receive())
        if message["type"] != "http.request" or message.get("more_body") or len(message["body"]) > most:
            self.receive = _again(message, self.receive)
            return await super().body()
        self.is_connected = False  # as the framework says that all of it was taken
        self._body = self._connection_state.body = message["body"]
        return self._body


def _again(message: HTTPReceiveMessage, receive: Receive) -> Receive:
    """Gives the message once more, and then what follows it."""
    messages = [message]

    async def next_message() -> HTTPReceiveMessage:
        return messages.pop() if messages else cast("HTTPReceiveMessage", await receive())

    return cast("Receive", next_message)
