"""Cleaning up: clients that nobody used for long. First a list that changes nothing, then just these are deleted."""

import asyncio
from typing import Any, Final

import msgspec
from litestar import Request, Response, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromQuery
from msgspec import UNSET, Struct

from console import jobs, rendering
from console.api import Away, Query, Refused
from console.forms import form_of
from console.gate import Visitor
from console.house import Console
from console.jobs import Job
from console.pages.bulk import MAX_BULK, why_of, word
from console.pages.clients import DEFAULT_LIMIT, LIMITS, chosen
from grantbook.admin import StaleClientPage
from grantbook.events import REVOKE_REASONS

SPANS: Final = ("30d", "90d", "180d", "365d")
DELETED_AT_ONCE: Final = 1_000
"""Clients in one request to the register."""
PAGE_CLIENTS: Final = 200


class Left(Struct):
    """A client that the register left, and why."""

    client_id: str
    code: str


class Deleted(Struct):
    """The register's answer."""

    deleted: int
    left: list[Left]


REASONS_LEFT: Final = {"in_use": "It came into use since the list was made.", "client_not_found": "There is none."}


@get("/stale-clients", include_in_schema=False)
async def list_stale(
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
    unused_for: FromQuery[str] = "90d",
) -> Response[bytes]:
    """Those that nobody used for so long, the longest unused first."""
    return await _list(request, console, visitor, unused_for)


async def _list(
    request: Request[Any, Any, State],
    console: Console,
    visitor: Visitor,
    unused_for: str,
    *,
    form: Any = None,
    busy: bool = False,
) -> Response[bytes]:
    shown = chosen(request.query_params)
    query: Query = {"unused_for": unused_for, "limit": shown.limit, "cursor": shown.cursor, "count": True}
    answer = await console.api.read(
        visitor.name, "/admin/v1/stale-clients", StaleClientPage, query, seen=visitor.session.position
    )
    page = answer.content
    count = 0 if page.total is UNSET else min(page.total, MAX_BULK)
    return await console.page(
        request,
        visitor,
        "stale.html",
        200 if form is None else 409 if busy else 400,
        page=page,
        stale=answer.stale,
        shown=shown,
        query={"unused_for": unused_for} | ({"limit": shown.limit} if shown.limit != DEFAULT_LIMIT else {}),
        unused_for=unused_for,
        spans=SPANS,
        limits=LIMITS,
        count=count,
        most=MAX_BULK,
        word=word("delete", count),
        reasons=REVOKE_REASONS,
        said={} if form is None else {name: str(form.get(name, "")) for name in ("reason", "detail", "typed")},
        wrong=form is not None and not busy,
        busy=busy,
    )


@post("/stale-clients", include_in_schema=False)
async def delete_stale(
    request: Request[Any, Any, State], console: NamedDependency[Console], visitor: NamedDependency[Visitor]
) -> Response[bytes]:
    """Delete all of the list, as it was shown, but for those that came into use since."""
    form = await form_of(request)
    unused_for = str(form.get("unused_for", ""))
    counted = str(form.get("count", ""))
    count = int(counted) if counted.isascii() and counted.isdecimal() and len(counted) < 8 else 0
    typed = " ".join(str(form.get("typed", "")).lower().split())
    if count == 0 or typed != word("delete", count):
        return await _list(request, console, visitor, unused_for, form=form)
    why = why_of(form)
    try:
        job = console.jobs.begin(
            visitor.name, "Delete unused", count, lambda job: _work(console, visitor, unused_for, why, count, job)
        )
    except jobs.Busy:
        return await _list(request, console, visitor, unused_for, form=form, busy=True)
    return rendering.see_other(f"/console/jobs/{job.id}")


async def _work(console: Console, visitor: Visitor, unused_for: str, why: dict[str, str], most: int, job: Job) -> None:
    """Make the list, no longer than it was shown; then delete it, piece by piece."""
    ids: list[str] = []
    first: StaleClientPage | None = None
    cursor: str | None = None
    while len(ids) < most:
        query: Query = {"unused_for": unused_for, "limit": PAGE_CLIENTS, "cursor": cursor}
        page = (await console.api.read(visitor.name, "/admin/v1/stale-clients", StaleClientPage, query)).content
        first = first or page
        ids += [each.client_id for each in page.items]
        if page.next_cursor is UNSET:
            break
        cursor = page.next_cursor
    ids = ids[:most]
    job.total = len(ids)
    for start in range(0, len(ids), DELETED_AT_ONCE):
        if job.stopping:
            break
        assert first is not None
        piece = ids[start : start + DELETED_AT_ONCE]
        # Spared is what came into use since the first page was made: the later ones are no older.
        body = {"client_ids": piece, "as_of": first.as_of, "activity_as_of": first.activity_as_of, **why}
        try:
            answer = await console.api.command(visitor.name, "POST", "/admin/v1/stale-clients/delete", body)
        except asyncio.CancelledError:
            job.unsure += len(piece)
            raise
        except (Refused, Away) as error:
            for each in piece:
                job.note(each, error)
            continue
        told = msgspec.json.decode(answer.content, type=Deleted)
        job.done += told.deleted
        for left in told.left:
            job.fail(left.client_id, left.code, REASONS_LEFT.get(left.code, ""))
        job.reached(answer.headers.get("Grantbook-Position"))
    visitor.session.reached(job.position)


ROUTES: Final = [list_stale, delete_stale]
