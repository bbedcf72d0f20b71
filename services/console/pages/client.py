"""One client: what it says it is, who let it in, what happened to it, and why it is flagged."""

from collections.abc import Mapping
from typing import Any, Final

from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath

from console import highlight, rendering
from console.api import Answer
from console.gate import Visitor
from console.house import Console
from console.pages.clients import LIMITS, SPARK_DAYS, chosen
from grantbook.admin import ClientDetail, GrantPage

PARTS: Final[Mapping[str, str]] = {
    "": "Definition",
    "/users": "Connected users",
    "/history": "History",
    "/flags": "Why flagged",
}
"""The parts of the page by what stands behind the client in their address."""
STATES: Final = ("active", "suspended", "expired", "revoked", "any")
SORTS: Final = {
    "username": "User",
    "issued_at": "Issued",
    "last_activity_at": "Last activity",
    "expires_at": "Expires",
}


async def read_client(console: Console, visitor: Visitor, client: str) -> Answer[ClientDetail]:
    """The client, as new as what this admin did last. Raises `Refused` and `Away`."""
    return await console.api.read(
        visitor.name,
        f"/admin/v1/clients/{rendering.in_path(client)}",
        ClientDetail,
        {"activity_days": SPARK_DAYS},
        seen=visitor.session.position,
    )


def definition(client: ClientDetail) -> dict[str, Any]:
    """The registration as RFC 7591 has it (section 3.2.1), and how it came here; no secret is in it, or kept at all."""
    known = {"client_id": client.client_id, "client_id_issued_at": client.client_id_issued_at}
    # What the register knows comes last where names are the same: no client says who it is, or where from.
    return {**known, **client.metadata, **known, "source": client.source}


async def _shown(
    request: Request[Any, Any, State],
    console: Console,
    visitor: Visitor,
    part: str,
    read: Answer[ClientDetail],
    **context: Any,
) -> Response[bytes]:
    client = read.content
    key = rendering.key_of(client)
    return await console.page(
        request,
        visitor,
        "client.html",
        client=client,
        key=key,
        here=f"/console/clients/{key}",
        part=part,
        parts=PARTS,
        stale=read.stale,
        **context,
    )


@get("/clients/{client:str}", include_in_schema=False)
async def show_definition(
    client: FromPath[str],
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
) -> Response[bytes]:
    """Its whole registration."""
    read = await read_client(console, visitor, client)
    text = highlight.pretty(definition(read.content))
    return await _shown(request, console, visitor, "", read, text=text, highlighted=highlight.highlighted(text))


@get("/clients/{client:str}/definition.json", include_in_schema=False)
async def download_definition(
    client: FromPath[str], console: NamedDependency[Console], visitor: NamedDependency[Visitor]
) -> Response[bytes]:
    """The same as a file."""
    read = await read_client(console, visitor, client)
    headers = {**rendering.HEADERS, "Content-Disposition": 'attachment; filename="client.json"'}
    body = highlight.pretty(definition(read.content)).encode() + b"\n"
    return Response(body, media_type="application/json", headers=headers)


@get("/clients/{client:str}/users", include_in_schema=False)
async def show_users(
    client: FromPath[str],
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
) -> Response[bytes]:
    """Who let it in."""
    said = request.query_params
    shown = chosen(said)
    query = {
        "user": said.get("user") or None,
        "status": said.get("status") or "active",
        "sort": said.get("sort") or "-last_activity_at",
    }
    read = await read_client(console, visitor, client)
    answer = await console.api.read(
        visitor.name,
        f"/admin/v1/clients/{rendering.in_path(client)}/grants",
        GrantPage,
        {**query, "limit": shown.limit, "cursor": shown.cursor, "count": True},
        seen=visitor.session.position,
    )
    return await _shown(
        request,
        console,
        visitor,
        "/users",
        read,
        page=answer.content,
        query=query | {"limit": shown.limit},
        shown=shown,
        states=STATES,
        sorts=SORTS,
        limits=LIMITS,
    )


@get("/clients/{client:str}/history", include_in_schema=False)
async def show_history(
    client: FromPath[str],
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
) -> Response[bytes]:
    """What happened to it, by whom, and where that stands in the log."""
    return await _shown(request, console, visitor, "/history", await read_client(console, visitor, client))


@get("/clients/{client:str}/flags", include_in_schema=False)
async def show_flags(
    client: FromPath[str],
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
) -> Response[bytes]:
    """Each of its flags, in a sentence."""
    return await _shown(request, console, visitor, "/flags", await read_client(console, visitor, client))


ROUTES: Final = [show_definition, download_definition, show_users, show_history, show_flags]
