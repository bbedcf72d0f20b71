"""Delivery by poll (RFC 8936): a receiver acknowledges what it has, and is given what it has not."""

from http import HTTPStatus
from typing import Annotated, Any, Final

from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec import UNSET, Meta, Struct, UnsetType

from door import docs
from door.roles import Caller, requires
from transmitter.api.answers import MAX_BODY_BYTES, answer, decoded
from transmitter.api.management import STREAMS
from transmitter.delivery import MAX_POLLED
from transmitter.service import Service
from transmitter.transmission import POLL_SECONDS

MAX_ACKNOWLEDGED: Final = 1_000
MAX_JTI_CHARACTERS: Final = 256

Jti = Annotated[str, Meta(max_length=MAX_JTI_CHARACTERS)]


class SetError(Struct, frozen=True):
    """Why a receiver refuses a SET (RFC 8936 section 2.4.4)."""

    err: str
    description: str = ""


class PollAsked(Struct, frozen=True, rename="camel"):
    """A poll (RFC 8936 section 2.2). `maxEvents` 0 only acknowledges."""

    max_events: Annotated[int, Meta(ge=0)] = MAX_POLLED
    return_immediately: bool = False
    ack: Annotated[tuple[Jti, ...], Meta(max_length=MAX_ACKNOWLEDGED)] = ()
    set_errs: Annotated[dict[Jti, SetError], Meta(max_length=MAX_ACKNOWLEDGED)] = {}


class PollAnswer(Struct, frozen=True, rename="camel"):
    """The answer (RFC 8936 section 2.3): SETs by `jti`, oldest first."""

    sets: dict[str, str]
    more_available: bool | UnsetType = UNSET


@post(
    f"{STREAMS}/{{stream_id:str}}/poll",
    guards=[requires("feed")],
    request_max_body_size=MAX_BODY_BYTES,
    status_code=HTTPStatus.OK,
    opt=docs.takes(PollAsked),
    tags=["shared signals: poll"],
)
async def poll_stream(
    stream_id: FromPath[str],
    request: Request[Any, Any, Any],
    service: NamedDependency[Service],
    caller: NamedDependency[Caller],
) -> Response[PollAnswer]:
    """Acknowledge SETs, and get those that are not acknowledged, again if need be. Waits a while for the first."""
    asked = decoded(await request.body() or b"{}", PollAsked)
    given = await service.transmission.poll(
        caller.name,
        stream_id,
        most=asked.max_events,
        taken=asked.ack,
        refused={jti: each.err for jti, each in asked.set_errs.items()},
        wait_seconds=0.0 if asked.return_immediately else POLL_SECONDS,
    )
    return answer(PollAnswer(given.sets, given.more or UNSET))
