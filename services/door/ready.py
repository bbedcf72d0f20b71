"""Answers whose bytes are there: for requests that come by the thousand.

The framework makes of each `Response` another object, of whose headers and content it decides anew what is decided
here already. That is a tenth of what a registration costs.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from litestar import Response
from litestar.types import ASGIApp, HTTPResponseBodyEvent, HTTPResponseStartEvent, Receive, Scope, Send

JSON: Final = b"application/json"

T = TypeVar("T")


class ReadyResponse(Response[T]):
    """The JSON of a `T`, as it goes out. It is its own ASGI response."""

    def __init__(self, content: bytes, *, status_code: int, headers: Mapping[str, str]) -> None:
        # Not the base's: nothing of what it prepares is looked at.
        self._status = status_code
        self._body = content
        self._lines = [
            (b"content-type", JSON),
            (b"content-length", str(len(content)).encode()),
            *((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()),
        ]

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIApp:  # type: ignore[override]
        """Itself."""
        return self._answer

    async def _answer(self, _: Scope, __: Receive, send: Send) -> None:
        start: HTTPResponseStartEvent = {
            "type": "http.response.start",
            "status": self._status,
            "headers": self._lines,
        }
        body: HTTPResponseBodyEvent = {"type": "http.response.body", "body": self._body, "more_body": False}
        await send(start)
        await send(body)
