"""A header is what the framework would read it as."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from litestar import Litestar, Request, post

from door import asked

NAMES = [b"authorization", b"content-length", b"x"]


@given(
    headers=st.lists(st.tuples(st.sampled_from(NAMES), st.binary(max_size=6) | st.sampled_from([b"0", b"12", b"007"])))
)
def test_headers_are_those_of_the_framework(headers: list[tuple[bytes, bytes]]) -> None:
    """An attacker who sends a header twice, or in no encoding, finds one reading of it in all of the house."""
    scope: Any = {"type": "http", "headers": headers}
    request: Request[Any, Any, Any] = Request(scope)
    for name in NAMES:
        assert asked.header(request, name) == request.headers.get(name.decode())
        assert asked.headers(request, name) == request.headers.getall(name.decode(), [])


@given(length=st.text(st.sampled_from("0123456789-+ _²"), max_size=12) | st.integers(0, 10**12).map(str))
def test_a_length_is_a_number_of_bytes_or_not_said(length: str) -> None:
    """Whoever announces what is no number, or a number without end, has announced nothing."""
    scope: Any = {"type": "http", "headers": [(b"content-length", length.encode("latin-1"))]}
    digits = bool(length) and all(each in "0123456789" for each in length)
    expected = int(length) if digits and len(length) <= asked.MAX_LENGTH_DIGITS else None
    assert asked.content_length(Request(scope)) == expected


def test_where_no_length_is_sent_none_is_said() -> None:
    """A body in chunks counts as the largest: the limit does not believe that it is nothing."""
    scope: Any = {"type": "http", "headers": []}
    assert asked.content_length(Request(scope)) is None


async def test_a_body_is_there_for_whoever_asks_again() -> None:
    """Whoever makes a second request of one scope, as middleware does: it is given the body, and waits for nothing."""
    sent: list[Any] = [{"type": "http.request", "body": b"ab"}]

    async def receive() -> Any:
        return sent.pop()

    @post("/", request_max_body_size=10)
    async def handler() -> None:
        """Has a limit."""

    app = Litestar([handler])
    of_app = app.routes[0].route_handlers[0]  # type: ignore[union-attr]
    scope: Any = {"type": "http", "headers": [(b"content-length", b"2")], "litestar_app": app, "route_handler": of_app}
    first, second = asked.Asked(scope, receive), asked.Asked(scope, receive)
    assert [await first.body(), await second.body(), await first.body()] == [b"ab"] * 3
