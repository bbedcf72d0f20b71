"""Shapes that several endpoints take: ids, reasons, scopes, times; and an optional JSON body."""

from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

import msgspec
from litestar import Request
from msgspec import Meta, Struct

from door.problems import invalid_parameter
from grantbook.events import REVOKE_REASONS

MAX_ID_CHARACTERS: Final = 512
MAX_CLIENT_ID_CHARACTERS: Final = 2_048
MAX_USERNAME_CHARACTERS: Final = 512
MAX_DETAIL_CHARACTERS: Final = 1_000
MAX_SCOPES: Final = 200
MAX_SCOPE_CHARACTERS: Final = 256

_NO_CONTROLS: Final = r"\A[^\x00-\x1f\x7f]+\Z"
"""Every reader can keep and show it; Postgres, for one, knows no NUL."""

Id = Annotated[str, Meta(max_length=MAX_ID_CHARACTERS, pattern=_NO_CONTROLS)]
ClientId = Annotated[str, Meta(min_length=1, max_length=MAX_CLIENT_ID_CHARACTERS)]
Username = Annotated[str, Meta(max_length=MAX_USERNAME_CHARACTERS, pattern=_NO_CONTROLS)]
Scope = Annotated[str, Meta(min_length=1, max_length=MAX_SCOPE_CHARACTERS, pattern=r"^[\x21\x23-\x5B\x5D-\x7E]+$")]
"""A scope token (RFC 6749 section 3.3)."""
Scopes = Annotated[list[Scope], Meta(max_length=MAX_SCOPES)]
Moment = Annotated[datetime, Meta(tz=True)]
"""RFC 3339 with an offset."""
Detail = Annotated[str, Meta(max_length=MAX_DETAIL_CHARACTERS)]

T = TypeVar("T")


class Why(Struct, frozen=True, forbid_unknown_fields=False):
    """Why somebody acts on a gate. `detail` is free text, and is kept sealed."""

    reason: str | None = None
    detail: Detail | None = None


async def why(request: Request[Any, Any, Any], *, default: str | None) -> Why:
    """The optional `{"reason"?, "detail"?}` of a command. Raises an `invalid_parameter` problem."""
    body = await request.body()
    given = decoded(body, Why) if body.strip() else Why()
    return checked_why(given.reason, given.detail, default=default)


def checked_why(reason: str | None, detail: str | None, *, default: str | None) -> Why:
    """Why, with a reason that callers may give. Raises an `invalid_parameter` problem."""
    if reason is not None and reason not in REVOKE_REASONS:
        raise invalid_parameter("reason", f"one of {', '.join(REVOKE_REASONS)}")
    return Why(reason or default, detail or None)


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
