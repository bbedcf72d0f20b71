"""The management API of event streams (SSF 1.0 section 8.1). A stream belongs to the token that made it."""

from http import HTTPStatus
from typing import Any, Final

from litestar import Request, Response, delete, get, patch, post, put
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromQuery

from door import docs
from door.roles import Caller, requires
from transmitter import streams
from transmitter.api.answers import MAX_BODY_BYTES, NO_STORE, answer, decoded
from transmitter.service import Service
from transmitter.streams import (
    Asked,
    ChangeAsked,
    Shown,
    ShownStatus,
    StatusAsked,
    SubjectAsked,
    VerificationAsked,
    shown,
    shown_status,
)

STREAMS: Final = "/ssf/v1/streams"
STATUS: Final = "/ssf/v1/status"

_receiver: Final = [requires("feed")]
_TAGS: Final = ["shared signals: streams"]
_ADD: Final = "/ssf/v1/subjects/add"
_REMOVE: Final = "/ssf/v1/subjects/remove"
_VERIFY: Final = "/ssf/v1/verify"


@post(STREAMS, guards=_receiver, request_max_body_size=MAX_BODY_BYTES, opt=docs.takes(Asked), tags=_TAGS)
async def create_stream(
    request: Request[Any, Any, Any], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Response[Shown]:
    """Make a stream (section 8.1.1.1). It hears of everything from now on, by poll unless it asks for push."""
    asked = decoded(await request.body(), Asked)
    made = streams.create(
        asked,
        stream_id=service.new_id(),
        owner=caller.name,
        start_at=(await service.feed.state()).now,
        terms=service.terms,
        seal=service.seal,
    )
    await service.transmission.create(made)
    return answer(shown(made, service.terms), HTTPStatus.CREATED)


@get(STREAMS, guards=_receiver, tags=_TAGS)
async def read_streams(
    service: NamedDependency[Service], caller: NamedDependency[Caller], stream_id: FromQuery[str | None] = None
) -> Response[Shown | list[Shown]]:
    """One stream, or without `stream_id` all of the caller's (section 8.1.1.2)."""
    if stream_id is not None:
        found = await service.transmission.find(caller.name, stream_id)
        return answer(shown(found.stream, service.terms))
    return answer([shown(each, service.terms) for each in await service.transmission.streams_of(caller.name)])


@patch(STREAMS, guards=_receiver, request_max_body_size=MAX_BODY_BYTES, opt=docs.takes(ChangeAsked), tags=_TAGS)
async def change_stream(
    request: Request[Any, Any, Any], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Response[Shown]:
    """Change what is named, and leave the rest (section 8.1.1.3)."""
    asked = decoded(await request.body(), ChangeAsked)
    changed = await service.transmission.change(
        caller.name,
        asked.stream_id,
        lambda stream: streams.change(stream, asked, terms=service.terms, seal=service.seal),
    )
    return answer(shown(changed, service.terms))


@put(STREAMS, guards=_receiver, request_max_body_size=MAX_BODY_BYTES, opt=docs.takes(ChangeAsked), tags=_TAGS)
async def replace_stream(
    request: Request[Any, Any, Any], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Response[Shown]:
    """Replace all that the receiver supplies (section 8.1.1.4). The secret of an `endpoint_url` that stays is kept."""
    asked = decoded(await request.body(), ChangeAsked)
    changed = await service.transmission.change(
        caller.name,
        asked.stream_id,
        lambda stream: streams.replace(stream, asked, terms=service.terms, seal=service.seal),
    )
    return answer(shown(changed, service.terms))


@delete(STREAMS, guards=_receiver, tags=_TAGS, status_code=HTTPStatus.NO_CONTENT)
async def delete_stream(
    stream_id: FromQuery[str], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Response[None]:
    """Delete a stream, and all that it holds (section 8.1.1.5)."""
    await service.transmission.delete(caller.name, stream_id)
    return Response(None, status_code=HTTPStatus.NO_CONTENT, headers=NO_STORE)


@get(STATUS, guards=_receiver, tags=_TAGS)
async def read_status(
    stream_id: FromQuery[str], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Response[ShownStatus]:
    """Whether a stream is enabled, paused or disabled (section 8.1.2.1)."""
    found = await service.transmission.find(caller.name, stream_id)
    return answer(shown_status(found.stream))


@post(STATUS, guards=_receiver, request_max_body_size=MAX_BODY_BYTES, opt=docs.takes(StatusAsked), tags=_TAGS)
async def set_status(
    request: Request[Any, Any, Any], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Response[ShownStatus]:
    """Enable, pause or disable a stream (section 8.1.2.2). Paused, it holds what it hears; disabled, it hears not."""
    asked = decoded(await request.body(), StatusAsked)
    now = (await service.feed.state()).now
    changed = await service.transmission.change(
        caller.name, asked.stream_id, lambda stream: streams.with_status(stream, asked, now=now)
    )
    return answer(shown_status(changed))


@post(_ADD, guards=_receiver, request_max_body_size=MAX_BODY_BYTES, opt=docs.takes(SubjectAsked), tags=_TAGS)
async def add_subject(
    request: Request[Any, Any, Any], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Response[None]:
    """Hear of a subject again (section 8.1.3.2). Whether there is such a subject is not said."""
    asked = decoded(await request.body(), SubjectAsked)
    await service.transmission.change(
        caller.name, asked.stream_id, lambda stream: streams.with_subject(stream, asked, hears=True)
    )
    return Response(None, status_code=HTTPStatus.OK, headers=NO_STORE)


@post(_REMOVE, guards=_receiver, request_max_body_size=MAX_BODY_BYTES, opt=docs.takes(SubjectAsked), tags=_TAGS)
async def remove_subject(
    request: Request[Any, Any, Any], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Response[None]:
    """Hear of a subject no longer (section 8.1.3.3)."""
    asked = decoded(await request.body(), SubjectAsked)
    await service.transmission.change(
        caller.name, asked.stream_id, lambda stream: streams.with_subject(stream, asked, hears=False)
    )
    return Response(None, status_code=HTTPStatus.NO_CONTENT, headers=NO_STORE)


@post(_VERIFY, guards=_receiver, request_max_body_size=MAX_BODY_BYTES, opt=docs.takes(VerificationAsked), tags=_TAGS)
async def verify_stream(
    request: Request[Any, Any, Any], service: NamedDependency[Service], caller: NamedDependency[Caller]
) -> Response[None]:
    """Have a verification event delivered (section 8.1.4.2); it is stored until it is."""
    asked = decoded(await request.body(), VerificationAsked)
    verification_id, now = service.new_id(), service.now()
    await service.transmission.change(
        caller.name,
        asked.stream_id,
        lambda stream: streams.with_verification(
            stream, asked, verification_id=verification_id, now=now, terms=service.terms
        ),
    )
    return Response(None, status_code=HTTPStatus.NO_CONTENT, headers=NO_STORE)


ROUTES: Final[list[HTTPRouteHandler]] = [
    create_stream,
    read_streams,
    change_stream,
    replace_stream,
    delete_stream,
    read_status,
    set_status,
    add_subject,
    remove_subject,
    verify_stream,
]
