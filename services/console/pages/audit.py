"""The audit: events as the log has them, a client as it was at a moment, and both to take along."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import msgspec
from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
from litestar.response import Stream

from console import export, highlight, rendering
from console.api import Answer, Query
from console.gate import Visitor
from console.house import Console
from console.pages.clients import LIMITS, chosen
from door.problems import CODES, Problem
from grantbook import subjects
from grantbook.admin import AuditEvent, AuditPage, ClientAsOf, ClientDetail

TYPES: Final[Mapping[str, str]] = {
    "client.registered": "registered",
    "client.metadata_changed": "changed",
    "client.suspended": "suspended",
    "client.resumed": "resumed",
    "client.deleted": "deleted",
    "grant.issued": "grant issued",
    "grant.extended": "grant extended",
    "grant.revoked": "grant revoked",
    "user.grants_revoked": "all of a user's grants revoked",
}
EVENTS_A_PAGE: Final = 25
"""Each comes with its data: a page stays below 60 KB."""
FILTERS: Final = ("client_id", "user_id", "grant_id", "from", "to", "after")
MEDIA_TYPES: Final = {"jsonl": "application/x-ndjson", "csv": "text/csv; header=present"}


def asked(said: Any) -> dict[str, Any]:
    """The filters of an address."""
    found: dict[str, Any] = {name: value for name in FILTERS if (value := said.get(name))}
    if types := [each for each in said.getall("type", []) if each]:
        found["type"] = list(dict.fromkeys(types))
    return found


@get("/audit", include_in_schema=False)
async def list_events(
    request: Request[Any, Any, State], console: NamedDependency[Console], visitor: NamedDependency[Visitor]
) -> Response[bytes]:
    """The events, oldest first, by client, user, grant, type and time."""
    query = asked(request.query_params)
    shown = chosen(request.query_params, limit=EVENTS_A_PAGE)
    answer = await console.api.read(
        visitor.name,
        "/audit/v1/events",
        AuditPage,
        {**query, "limit": shown.limit, "cursor": shown.cursor, "count": True},
        seen=visitor.session.position,
    )
    return await console.page(
        request,
        visitor,
        "audit.html",
        page=answer.content,
        stale=answer.stale,
        query=query | {"limit": shown.limit},
        filters=query,
        shown=shown,
        limits=LIMITS,
        types=TYPES,
        pretty=highlight.pretty,
    )


@get("/audit/as-of", include_in_schema=False)
async def show_as_of(
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
    client_id: FromQuery[str | None] = None,
    as_of: FromQuery[str | None] = None,
) -> Response[bytes]:
    """A client and its grants as they were then, and what is different now."""
    then: Answer[ClientAsOf] | None = None
    changed: list[tuple[str, str, str]] = []
    if client_id:
        key = subjects.token(client_id)
        query: Query = {"as_of": as_of}
        then = await console.api.read(visitor.name, f"/audit/v1/clients/{key}", ClientAsOf, query)
        now = await console.api.read(visitor.name, f"/admin/v1/clients/{key}", ClientDetail)
        changed = differences(then.content.metadata, now.content.metadata)
    return await console.page(
        request,
        visitor,
        "audit_as_of.html",
        client_id=client_id or "",
        as_of=as_of or "",
        then=None if then is None else then.content,
        definition=None if then is None else highlight.highlighted(highlight.pretty(then.content.metadata)),
        changed=changed,
    )


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Members of the metadata that are not what they were: name, then, now; as JSON, empty where there is none."""

    def said(value: Any) -> str:
        return "" if value is None else highlight.pretty(value)

    return [
        (name, said(then.get(name)), said(now.get(name)))
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]


@get("/audit/export/{name:str}", include_in_schema=False)
async def export_events(
    name: FromPath[str],
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
) -> Stream:
    """All events that the filters let through, as `events.jsonl` or `events.csv`, as they come from the log."""
    kind = name.removeprefix("events.")
    if kind not in MEDIA_TYPES or not name.startswith("events."):
        raise Problem(404, "not_found", CODES["not_found"].text)
    lines = _lines(console, visitor, asked(request.query_params))
    # The first is read before anything is answered: what cannot be exported is a page that says so, not an empty file.
    first = await anext(lines, None)
    headers = {**rendering.HEADERS, "Content-Disposition": f'attachment; filename="{name}"'}
    return Stream(_written(kind, first, lines), media_type=MEDIA_TYPES[kind], headers=headers)


async def _lines(console: Console, visitor: Visitor, query: Mapping[str, Any]) -> AsyncIterator[str]:
    async with console.api.lines(visitor.name, "/audit/v1/events", query) as lines:
        async for line in lines:
            if line:
                yield line


async def _written(kind: str, first: str | None, lines: AsyncIterator[str]) -> AsyncIterator[bytes]:
    """The file. Where the API breaks off, this does: the browser says that the download failed."""
    if kind == "csv":
        yield export.row(export.COLUMNS)
    if first is not None:
        yield _one(kind, first)
    async for line in lines:
        yield _one(kind, line)


def _one(kind: str, line: str) -> bytes:
    if kind == "jsonl":
        return line.encode() + b"\n"
    return export.row(export.cells(msgspec.json.decode(line, type=AuditEvent)))


ROUTES: Final = [list_events, show_as_of, export_events]
