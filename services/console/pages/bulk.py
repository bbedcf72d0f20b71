"""Acting on several clients: those selected, or all that a list matches. Consequences first, then a word to type."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from litestar import Request, Response, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec import UNSET, Struct

from console import jobs, rendering
from console.api import Away, Refused
from console.forms import form_of
from console.gate import Visitor
from console.house import Console
from console.jobs import Job
from console.pages.clients import Shown, chosen
from door.problems import Problem
from grantbook.admin import ClientItem, ClientPage, Preview
from grantbook.events import REVOKE_REASONS

MAX_SELECTED: Final = 200
"""As many as a page of the list can have."""
MAX_BULK: Final = 100_000
PAGE_CLIENTS: Final = 200
SAMPLE_CLIENTS: Final = 10
MAX_DETAIL_CHARACTERS: Final = 1_000
ACTS: Final[Mapping[str, str]] = {"suspend": "Suspend", "resume": "Resume", "delete": "Delete"}


class Asked(Struct, frozen=True, kw_only=True):
    """What a form asks for: an act, and either clients by their keys, or all that a list matches."""

    act: str
    all: bool
    selected: list[str]
    shown: Shown


def asked(said: Any) -> Asked:
    """What the list's form, or the confirmation's, asks for. Raises a `Problem` for what is none of our acts."""
    everything = said.get("all") or ""
    act = everything or said.get("act") or ""
    if act not in ACTS:
        raise Problem(400, "invalid_parameter", "act: one of suspend, resume, delete")
    selected = list(dict.fromkeys(str(each) for each in said.getall("select", []) if each))
    if len(selected) > MAX_SELECTED:
        raise Problem(400, "invalid_parameter", f"select: at most {MAX_SELECTED} clients")
    return Asked(act=act, all=bool(everything), selected=selected, shown=chosen(said))


def word(act: str, count: int) -> str:
    """What has to be typed."""
    return f"{act} {count}"


@get("/bulk", include_in_schema=False)
async def confirm_bulk(
    request: Request[Any, Any, State], console: NamedDependency[Console], visitor: NamedDependency[Visitor]
) -> Response[bytes]:
    """What it would do, in numbers."""
    return await _confirmation(request, console, visitor, asked(request.query_params))


@post("/bulk", include_in_schema=False)
async def begin_bulk(
    request: Request[Any, Any, State], console: NamedDependency[Console], visitor: NamedDependency[Visitor]
) -> Response[bytes]:
    """Do it, as a job, once the word was typed for as many clients as there are now."""
    form = await form_of(request)
    wanted = asked(form)
    count = await _count(console, visitor, wanted)
    typed = " ".join(str(form.get("typed", "")).lower().split())
    if typed != word(wanted.act, count) or count == 0:
        return await _confirmation(request, console, visitor, wanted, form=form)
    why = why_of(form)
    try:
        job = console.jobs.begin(
            visitor.name, ACTS[wanted.act], count, lambda job: _work(console, visitor, wanted, why, count, job)
        )
    except jobs.Busy:
        return await _confirmation(request, console, visitor, wanted, form=form, busy=True)
    return rendering.see_other(f"/console/jobs/{job.id}")


def why_of(form: Any) -> dict[str, str]:
    """Reason and detail of a form, as a command's body. What is none of the reasons is for the API to refuse."""
    said = {name: str(form.get(name, "")).strip() for name in ("reason", "detail")}
    return {name: value[:MAX_DETAIL_CHARACTERS] for name, value in said.items() if value}


async def _confirmation(
    request: Request[Any, Any, State],
    console: Console,
    visitor: Visitor,
    wanted: Asked,
    *,
    form: Any = None,
    busy: bool = False,
) -> Response[bytes]:
    count = await _count(console, visitor, wanted)
    sample, previews = await asyncio.gather(_sample(console, visitor, wanted), _previews(console, visitor, wanted))
    return await console.page(
        request,
        visitor,
        "bulk.html",
        200 if form is None else 409 if busy else 400,
        wanted=wanted,
        word=word(wanted.act, count),
        verb=ACTS[wanted.act],
        count=count,
        most=MAX_BULK,
        sample=sample,
        grants=sum(each.active_grants for each in previews) if previews else None,
        reasons=REVOKE_REASONS,
        said={} if form is None else {name: str(form.get(name, "")) for name in ("reason", "detail", "typed")},
        wrong=form is not None and not busy,
        busy=busy,
        back=rendering.address("/console/clients", wanted.shown.address),
    )


async def _count(console: Console, visitor: Visitor, wanted: Asked) -> int:
    if not wanted.all:
        return len(wanted.selected)
    page = await _page(console, visitor, wanted, limit=1, cursor=None, count=True)
    return 0 if page.total is UNSET else min(page.total, MAX_BULK)


async def _sample(console: Console, visitor: Visitor, wanted: Asked) -> list[ClientItem]:
    if wanted.all:
        return (await _page(console, visitor, wanted, limit=SAMPLE_CLIENTS, cursor=None, count=False)).items
    found = await asyncio.gather(*(_item(console, visitor, each) for each in wanted.selected[:SAMPLE_CLIENTS]))
    return [each for each in found if each is not None]


async def _item(console: Console, visitor: Visitor, key: str) -> ClientItem | None:
    try:
        answer = await console.api.read(visitor.name, f"/admin/v1/clients/{rendering.in_path(key)}", ClientItem)
    except Refused:
        return None
    return answer.content


async def _previews(console: Console, visitor: Visitor, wanted: Asked) -> list[Preview]:
    """What each of those selected has; nothing where all of a list are meant, which may be very many."""
    if wanted.all:
        return []
    found: list[Preview] = []
    waiting = iter(wanted.selected)

    async def worker() -> None:
        for key in waiting:
            path = f"/admin/v1/clients/{rendering.in_path(key)}/preview"
            try:
                found.append((await console.api.read(visitor.name, path, Preview)).content)
            except (Away, Refused):
                continue  # what is known of the others is told

    async with asyncio.TaskGroup() as group:
        for _ in range(jobs.CONCURRENT_COMMANDS):
            group.create_task(worker())
    return found


async def _page(
    console: Console, visitor: Visitor, wanted: Asked, *, limit: int, cursor: str | None, count: bool
) -> ClientPage:
    query = {
        **wanted.shown.asked(console.now()),
        "sort": "created_at",
        "limit": limit,
        "cursor": cursor,
        "count": count,
    }
    answer = await console.api.read(visitor.name, "/admin/v1/clients", ClientPage, query, seen=visitor.session.position)
    return answer.content


async def _matching(console: Console, visitor: Visitor, wanted: Asked) -> AsyncIterator[list[str]]:
    cursor: str | None = None
    while True:
        page = await _page(console, visitor, wanted, limit=PAGE_CLIENTS, cursor=cursor, count=False)
        yield [rendering.key_of(each) for each in page.items]
        if page.next_cursor is UNSET:
            return
        cursor = page.next_cursor


async def _work(console: Console, visitor: Visitor, wanted: Asked, why: dict[str, str], most: int, job: Job) -> None:
    keys = wanted.selected
    if wanted.all:
        # All of them first: what is acted on leaves the list, and would take the place in it along. The oldest, and no
        # more than was typed: whoever registers meanwhile is not meant.
        keys = await jobs.gathered(_matching(console, visitor, wanted), most)
        job.total = len(keys)

    async def command(key: str) -> str:
        path = f"/admin/v1/clients/{rendering.in_path(key)}"
        if wanted.act == "delete":
            return await console.api.act(visitor.name, "DELETE", path, why)
        return await console.api.act(visitor.name, "POST", f"{path}/{wanted.act}", why)

    await jobs.for_each(job, keys, command)
    visitor.session.reached(job.position)


@get("/jobs/{job_id:str}", include_in_schema=False)
async def show_job(
    job_id: FromPath[str],
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
) -> Response[bytes]:
    """How far a job is, and what it could not do."""
    job = console.jobs.find(job_id)
    if job is None:
        detail = "This job ended long ago, or the console was started anew since. What it did stays; the audit has it."
        raise Problem(404, "job_not_found", detail)
    return await console.page(request, visitor, "job.html", job=job, seconds_left=job.seconds_left(console.now()))


@post("/jobs/{job_id:str}/stop", include_in_schema=False)
async def stop_job(
    job_id: FromPath[str], console: NamedDependency[Console], visitor: NamedDependency[Visitor]
) -> Response[bytes]:
    """Stop it, whoever began it. What was done stays done."""
    console.jobs.stop(job_id, visitor.name)
    return rendering.see_other(f"/console/jobs/{rendering.in_path(job_id)}")


ROUTES: Final = [confirm_bulk, begin_bulk, show_job, stop_job]
