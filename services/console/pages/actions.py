"""Cutting off: consequences with their numbers first, then the act, then whether token services have it.

No title and no button holds a word that came from outside.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from litestar import Request, Response, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
from msgspec import UNSET, Struct

from console import rendering
from console.api import Away, Query, Refused
from console.forms import form_of
from console.gate import Visitor
from console.house import Console
from console.jobs import PERHAPS
from console.pages.bulk import why_of, word
from console.pages.client import read_client
from door.problems import Problem
from grantbook import positions
from grantbook.admin import AuditPage, ClientItem, Delivery, FamilyItem, GrantPage, Preview
from grantbook.events import REVOKE_REASONS


class Act(Struct, frozen=True, kw_only=True):
    """What is about to be done. All texts are ours."""

    title: str
    verb: str
    grave: bool
    method: str
    path: str
    """Of the register's API."""
    here: str
    """Of our page: where its form goes."""
    back: str
    sentences: list[str]
    typed: str | None = None
    counted: bool = True
    """Whether the number in `typed` is known. Where it is not, there is none."""
    subject: ClientItem | FamilyItem | None = None
    client: str | None = None
    """What was said to name the client, where the lists do not have it."""
    user_id: str | None = None


class Found(Struct, frozen=True):
    """What the lists have of a client. Where they have nothing, `unknown` says why, in words."""

    subject: ClientItem | None = None
    preview: Preview | None = None
    unknown: str = ""


KNOWN_SOON: Final = "Token services know within a second."
FOR_EVER: Final = "It is for ever: none can be issued again, and the agent has to register anew."
UNKNOWN: Final = "What it would end cannot be counted: the lists cannot be read right now. It works all the same."
UNLISTED: Final = (
    "The lists do not have this client, so what it would end cannot be counted. Where they are just behind, it works "
    "all the same; where the id is wrong, nothing happens."
)
ENDS_ONE: Final = "This ends 1 grant of 1 user. Other users of the client notice nothing."
UNKNOWN_GRANT: Final = (
    "Nobody knows right now whose grant this is, or the client has none of this id. Where there is one, it ends; where "
    "there is none, nothing happens."
)


def ends(active: int, users: int | None = None, *, suspended: int = 0) -> str:
    """What is ended, like: This ends 3 active grants of 2 users, and 1 suspended grant."""
    of = "" if users is None else f" of {users:,} user{_s(users)}"
    parts = [f"{active:,} active grant{_s(active)}{of}"] if active else []
    if suspended:
        parts.append(f"{suspended:,} suspended grant{_s(suspended)}")
    return f"This ends {', and '.join(parts)}." if parts else "No grant stands, so nobody loses access by it."


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def is_typed(text: str, act: Act) -> bool:
    """Whether the word was typed, and the number with it.

    A number that cannot be counted any more is taken as it was shown: the lists may go away while a form is filled in.
    """
    typed = " ".join(text.lower().split())
    if act.typed is None or typed == act.typed:
        return True
    verb, _, number = typed.partition(" ")
    return not act.counted and verb == act.typed and number.isdecimal()


async def _found(console: Console, visitor: Visitor, client: str, *, unlisted: bool) -> Found:
    """The client, and what deleting it would end. That the lists cannot be read shall hold up nobody.

    `unlisted`: nor that they do not have it, as what was registered just now while they are behind. The register has
    the last word on it. Raises `Refused`, and a `Problem` for one that is deleted.
    """
    path = f"/admin/v1/clients/{rendering.in_path(client)}/preview"
    try:
        subject = (await read_client(console, visitor, client)).content
        if subject.status == "deleted":
            raise Problem(410, "client_deleted", "This client is deleted already: there is nothing left to do.")
        preview = (await console.api.read(visitor.name, path, Preview, seen=visitor.session.position)).content
    except Away:
        return Found(unknown=UNKNOWN)
    except Refused as refused:
        if not unlisted or refused.code != "client_not_found":
            raise
        return Found(unknown=UNLISTED)
    return Found(subject, preview)


async def _of_client(console: Console, visitor: Visitor, client: str, act: str, *, unlisted: bool = False) -> Act:
    key = rendering.in_path(client)
    path, here = f"/admin/v1/clients/{key}", f"/console/clients/{key}"
    found = await _found(console, visitor, client, unlisted=unlisted)
    seen = found.preview
    common: dict[str, Any] = {"here": f"{here}/{act}", "back": here, "subject": found.subject}
    if found.subject is None:
        common["client"] = client
    if act == "delete":
        counted = found.unknown
        if seen is not None:
            counted = ends(seen.active_grants, seen.users, suspended=seen.suspended_grants)
        return Act(
            title="Delete this client",
            verb="Delete",
            grave=True,
            method="DELETE",
            path=path,
            sentences=[counted, FOR_EVER, KNOWN_SOON],
            typed="delete" if seen is None else word("delete", seen.active_grants + seen.suspended_grants),
            counted=seen is not None,
            **common,
        )
    if act == "suspend":
        held = found.unknown
        if seen is not None:
            held = ends(seen.active_grants, seen.users).replace("This ends", "This holds up")
        return Act(
            title="Suspend this client",
            verb="Suspend",
            grave=True,
            method="POST",
            path=f"{path}/suspend",
            sentences=[held, "Its grants are denied, and none is issued, until it is resumed.", KNOWN_SOON],
            **common,
        )
    return Act(
        title="Resume this client",
        verb="Resume",
        grave=False,
        method="POST",
        path=f"{path}/resume",
        sentences=[found.unknown if seen is None else _given_back(seen.suspended_grants), "It is let in as before."],
        **common,
    )


def _given_back(grants: int) -> str:
    if grants == 0:
        return "It has no grant that stands."
    return f"Its {grants:,} grant{_s(grants)} {'is' if grants == 1 else 'are'} good again."


async def _of_grant(console: Console, visitor: Visitor, client: str, grant: str, *, unlisted: bool = False) -> Act:
    key, grant_key = rendering.in_path(client), rendering.in_path(grant)
    here = f"/console/clients/{key}"
    found = await _found(console, visitor, client, unlisted=unlisted)
    client_id = found.subject.client_id if isinstance(found.subject, ClientItem) else client
    holder = await _holder(console, visitor, client_id, grant)
    return Act(
        title="Revoke this grant",
        verb="Revoke",
        grave=True,
        method="POST",
        path=f"/admin/v1/clients/{key}/grants/{grant_key}/revoke",
        here=f"{here}/grants/{grant_key}/revoke",
        back=f"{here}/users",
        sentences=[ENDS_ONE if holder else UNKNOWN_GRANT, KNOWN_SOON],
        subject=found.subject,
        user_id=holder,
    )


async def _holder(console: Console, visitor: Visitor, client: str, grant: str) -> str | None:
    """The id of the user who let it in, as the log has it. None where that is not known."""
    query: Query = {"client_id": client, "grant_id": grant, "type": "grant.issued", "limit": 1}
    try:
        answer = await console.api.read(visitor.name, "/audit/v1/events", AuditPage, query)
    except (Away, Refused):
        return None
    return next((str(each.data["user_id"]) for each in answer.content.items if "user_id" in each.data), None)


async def _of_user(console: Console, visitor: Visitor, user: str) -> Act:
    key = rendering.in_path(user)
    sentence, typed, user_id = UNKNOWN, "revoke", None
    try:
        pages = await asyncio.gather(*(_standing(console, visitor, key, status) for status in ("active", "suspended")))
    except Away:
        pages = []
    if pages:
        active, suspended = (0 if page.total is UNSET else page.total for page in pages)
        sentence, typed = ends(active, 1, suspended=suspended), word("revoke", active + suspended)
        user_id = next((item.user_id for page in pages for item in page.items), None)
    return Act(
        title="Revoke all of this user's grants",
        verb="Revoke all",
        grave=True,
        method="POST",
        path=f"/admin/v1/users/{key}/revoke",
        here=f"/console/users/{key}/revoke",
        back=f"/console/users/{key}",
        sentences=[sentence, "Over all clients, those issued so far. Later ones are fine.", KNOWN_SOON],
        typed=typed,
        counted=bool(pages),
        user_id=user_id,
    )


async def _standing(console: Console, visitor: Visitor, user: str, status: str) -> GrantPage:
    """One of a user's grants of a status, and how many there are."""
    query: Query = {"status": status, "limit": 1, "count": True}
    path = f"/admin/v1/users/{user}/grants"
    return (await console.api.read(visitor.name, path, GrantPage, query, seen=visitor.session.position)).content


async def _of_family(console: Console, visitor: Visitor, family: str) -> Act:
    key = rendering.in_path(family)
    path = f"/admin/v1/families/{key}"
    subject = (await console.api.read(visitor.name, path, FamilyItem, seen=visitor.session.position)).content
    seen = (await console.api.read(visitor.name, f"{path}/preview", Preview, seen=visitor.session.position)).content
    return Act(
        title="Delete this family of clients",
        verb="Delete all",
        grave=True,
        method="POST",
        path=f"{path}/delete",
        here=f"/console/families/{key}/delete",
        back="/console/families",
        sentences=[
            f"These are {seen.clients:,} client{_s(seen.clients)}.",
            ends(seen.active_grants, seen.users, suspended=seen.suspended_grants),
            FOR_EVER,
            KNOWN_SOON,
        ],
        typed=word("delete", seen.clients),
        subject=subject,
    )


async def _confirm(
    request: Request[Any, Any, State],
    console: Console,
    visitor: Visitor,
    act: Act,
    status: int = 200,
    *,
    form: Mapping[str, Any] | None = None,
    trouble: str | None = None,
) -> Response[bytes]:
    """The page before the act; or after it, with what was entered, and with what is wrong."""
    return await console.page(
        request,
        visitor,
        "act.html",
        status,
        act=act,
        reasons=REVOKE_REASONS,
        said={} if form is None else {name: str(form.get(name, "")) for name in ("reason", "detail", "typed")},
        wrong=form is not None and trouble is None,
        trouble=trouble,
    )


async def _do(request: Request[Any, Any, State], console: Console, visitor: Visitor, act: Act) -> Response[bytes]:
    form = await form_of(request)
    if not is_typed(str(form.get("typed", "")), act):
        return await _confirm(request, console, visitor, act, 400, form=form)
    try:
        position = await console.api.act(visitor.name, act.method, act.path, why_of(form))
    except Refused as refused:
        # What fails inside may have been written before it failed.
        failed = refused.status >= 500
        trouble = f"{refused.detail} {PERHAPS if failed else 'Nothing was changed.'}"
        return await _confirm(
            request, console, visitor, act, 502 if failed else refused.status, form=form, trouble=trouble
        )
    except Away as away:
        trouble = f"The {away.service} cannot be asked right now: {away.why}. {PERHAPS}"
        return await _confirm(request, console, visitor, act, 503, form=form, trouble=trouble)
    if not position:
        return rendering.see_other(act.back)
    visitor.session.reached(position)
    return rendering.see_other(rendering.address(f"/console/deliveries/{position}", back=act.back))


@get("/clients/{client:str}/delete", include_in_schema=False)
async def confirm_delete(
    client: FromPath[str],
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
) -> Response[bytes]:
    """What deleting the client would end."""
    return await _confirm(request, console, visitor, await _of_client(console, visitor, client, "delete"))


@post("/clients/{client:str}/delete", include_in_schema=False)
async def delete_client(
    client: FromPath[str],
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
) -> Response[bytes]:
    """Delete it."""
    act = await _of_client(console, visitor, client, "delete", unlisted=True)
    return await _do(request, console, visitor, act)


@get("/clients/{client:str}/suspend", include_in_schema=False)
async def confirm_suspend(
    client: FromPath[str],
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
) -> Response[bytes]:
    """What suspending the client would hold up."""
    return await _confirm(request, console, visitor, await _of_client(console, visitor, client, "suspend"))


@post("/clients/{client:str}/suspend", include_in_schema=False)
async def suspend_client(
    client: FromPath[str],
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
) -> Response[bytes]:
    """Suspend it."""
    act = await _of_client(console, visitor, client, "suspend", unlisted=True)
    return await _do(request, console, visitor, act)


@get("/clients/{client:str}/resume", include_in_schema=False)
async def confirm_resume(
    client: FromPath[str],
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
) -> Response[bytes]:
    """What resuming the client would give back."""
    return await _confirm(request, console, visitor, await _of_client(console, visitor, client, "resume"))


@post("/clients/{client:str}/resume", include_in_schema=False)
async def resume_client(
    client: FromPath[str],
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
) -> Response[bytes]:
    """Resume it."""
    act = await _of_client(console, visitor, client, "resume", unlisted=True)
    return await _do(request, console, visitor, act)


@get("/clients/{client:str}/grants/{grant:str}/revoke", include_in_schema=False)
async def confirm_revoke(
    client: FromPath[str],
    grant: FromPath[str],
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
) -> Response[bytes]:
    """What revoking one grant would end."""
    return await _confirm(request, console, visitor, await _of_grant(console, visitor, client, grant))


@post("/clients/{client:str}/grants/{grant:str}/revoke", include_in_schema=False)
async def revoke_grant(
    client: FromPath[str],
    grant: FromPath[str],
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
) -> Response[bytes]:
    """Revoke it."""
    act = await _of_grant(console, visitor, client, grant, unlisted=True)
    return await _do(request, console, visitor, act)


@get("/users/{user:str}/revoke", include_in_schema=False)
async def confirm_revoke_user(
    user: FromPath[str],
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
) -> Response[bytes]:
    """What ending all of a user's grants would end."""
    return await _confirm(request, console, visitor, await _of_user(console, visitor, user))


@post("/users/{user:str}/revoke", include_in_schema=False)
async def revoke_user(
    user: FromPath[str],
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
) -> Response[bytes]:
    """End them."""
    return await _do(request, console, visitor, await _of_user(console, visitor, user))


@get("/families/{family:str}/delete", include_in_schema=False)
async def confirm_delete_family(
    family: FromPath[str],
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
) -> Response[bytes]:
    """What deleting the whole family would end."""
    return await _confirm(request, console, visitor, await _of_family(console, visitor, family))


@post("/families/{family:str}/delete", include_in_schema=False)
async def delete_family(
    family: FromPath[str],
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
) -> Response[bytes]:
    """Delete all of it."""
    return await _do(request, console, visitor, await _of_family(console, visitor, family))


@get("/cut-off", include_in_schema=False)
async def cut_off(
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
    client_id: FromQuery[str | None] = None,
) -> Response[bytes]:
    """The deletion of a client by its id: for when the lists, where it would be clicked, cannot be read or lack it."""
    wanted = (client_id or "").strip()
    if not wanted:
        return await console.page(request, visitor, "cut_off.html")
    act = await _of_client(console, visitor, wanted, "delete", unlisted=True)
    return await _confirm(request, console, visitor, act)


NO_PLACE: Final = "This address names no place in the log, so there is nothing to tell of it."
UNTOLD: Final = "Whether it arrived cannot be told right now: the log cannot be asked."


def arrival(delivery: Delivery) -> str:
    """Who has it, in words that say no more than is known."""
    count = len(delivery.subscribers)
    if not count:
        return "No token service reports here, so nobody can say which of them have it."
    if delivery.complete:
        slowest = UNSET if delivery.slowest is UNSET else delivery.slowest.took_ms
        took = "" if slowest is UNSET else f" The slowest took {slowest:.1f} ms."
        return f"Every token service has it.{took}"
    said = [f"{delivery.delivered:,} of {count:,} token services have it."]
    if delivery.waiting:
        said.append(f"{delivery.waiting:,} {'does' if delivery.waiting == 1 else 'do'} not yet.")
    if delivery.gone:
        said.append(f"{delivery.gone:,} fell silent before: nobody knows whether they still honour its tokens.")
    if delivery.truncated is True:
        said.append("There are more than are looked at, so nobody can say that all have it.")
    return " ".join(said)


@get("/deliveries/{position:str}", include_in_schema=False)
async def show_delivery(
    position: FromPath[str],
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
    back: FromQuery[str | None] = None,
) -> Response[bytes]:
    """Which token services have what was done, live until all of those that are there do."""
    delivery: Delivery | None = None
    trouble: str | None = None
    # This admin has just done it, whatever can be read now. Of any other place the log is asked what it was.
    own = position == visitor.session.position
    status, away = 200, False
    try:
        delivery = await _delivery(console, visitor, position)
    except Refused as refused:
        if refused.code not in {"revocation_not_found", "invalid_parameter"}:
            raise
        trouble = NO_PLACE if refused.code == "invalid_parameter" else refused.detail
        status = 200 if own else 404
    except Away:
        trouble, away = UNTOLD, True
        status = 200 if own else 503
    return await console.page(
        request,
        visitor,
        "delivery.html",
        status,
        position=position,
        done=own or (delivery is not None and delivery.revocation == position),
        delivery=delivery,
        arrival=None if delivery is None else arrival(delivery),
        trouble=trouble,
        away=away,
        live=away if delivery is None else delivery.waiting > 0,
        here=rendering.address(request.scope["path"], back=back),
        back=back if back is not None and _ours(back) else None,
    )


async def _delivery(console: Console, visitor: Visitor, position: str) -> Delivery:
    try:
        path = f"/admin/v1/revocations/{positions.parse(position)}/delivery"
    except positions.InvalidPosition as error:
        raise Refused(404, "invalid_parameter", str(error)) from error
    return (await console.api.read(visitor.name, path, Delivery)).content


def _ours(path: str) -> bool:
    """Whether it is a page of the console: nothing else is linked to because an address says so."""
    return path.startswith("/console/") and rendering.is_plain_path(path)


ROUTES: Final = [
    confirm_delete,
    delete_client,
    confirm_suspend,
    suspend_client,
    confirm_resume,
    resume_client,
    confirm_revoke,
    revoke_grant,
    confirm_revoke_user,
    revoke_user,
    confirm_delete_family,
    delete_family,
    cut_off,
    show_delivery,
]
