"""The one table from what the transmitter refuses or cannot do to the problem that it answers with."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec
from litestar import Response

from door.problems import Problem, invalid_parameter, unavailable
from grantbook.sdk.log import Unavailable
from transmitter.bucket import Contended
from transmitter.identifiers import MAX_RULES, TooManyRules
from transmitter.streams import Refused, TooSoon
from transmitter.transmission import (
    MAX_STREAMS_OF_RECEIVER,
    NoSuchStream,
    NotAtWork,
    NotPolled,
    TooManyPolls,
    TooManyStreams,
)

MAX_BODY_BYTES: Final = 65_536
NO_STORE: Final = {"Cache-Control": "no-store"}
RETRY_AFTER_SECONDS: Final = 5

T = TypeVar("T")


def decoded(body: bytes, type_: type[T]) -> T:
    """A JSON body as its type. Raises an `invalid_parameter` problem that names the member, never what was sent."""
    try:
        return msgspec.json.decode(body, type=type_)
    except msgspec.ValidationError as error:
        said, _, where = str(error).partition(" - at `")
        name = where.rstrip("`").removeprefix("$").removeprefix(".") or "body"
        raise invalid_parameter(name, said) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_parameter("body", "a JSON object") from error


def answer(content: Any, status_code: int = 200) -> Response[Any]:
    """An answer that no cache keeps."""
    return Response(content, status_code=status_code, headers=NO_STORE)


def _problem(status: int, code: str, detail: str) -> Callable[[Exception], Problem]:
    return lambda _: Problem(status, code, detail)


def _refused(error: Exception) -> Problem:
    assert isinstance(error, Refused)
    return invalid_parameter(error.member, error.expected)


def _too_soon(error: Exception) -> Problem:
    assert isinstance(error, TooSoon)
    detail = "A verification was asked for a moment ago, or some wait to be delivered."
    return Problem(429, "too_many_requests", detail, headers={"Retry-After": str(error.seconds)})


ANSWERS: Final[dict[type[Exception], Callable[[Exception], Problem]]] = {
    NoSuchStream: _problem(404, "not_found", "This receiver has no stream of this id."),
    NotPolled: _problem(404, "not_found", "This stream is delivered by push."),
    TooManyStreams: _problem(
        403,
        "too_many_streams",
        f"A receiver has at most {MAX_STREAMS_OF_RECEIVER} streams, or all of them together have as many as they may.",
    ),
    TooManyRules: _problem(403, "not_permitted", f"A stream has at most {MAX_RULES} subjects added or removed."),
    Refused: _refused,
    TooSoon: _too_soon,
    TooManyPolls: lambda _: unavailable("Too many polls wait.", retry_after_seconds=RETRY_AFTER_SECONDS),
    NotAtWork: lambda _: unavailable("The stream is not at work yet. Try again."),
    Contended: lambda _: unavailable("The stream is being changed by others. Try again."),
    Unavailable: lambda _: unavailable("NATS cannot be reached right now. Try again."),
}
