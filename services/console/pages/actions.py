"""Cutting off: consequences with their numbers first, then the act, then whether token services have it.

No title and no button holds a word that came from outside.
"""

from collections.abc import Mapping
from typing import Any, Final

from litestar import Request, Response, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
from msgspec import UNSET, Struct

from console import rendering
from console.api import Away, Refused
from console.gate import Visitor
from console.house import Console
from console.pages.bulk import why_of, word
from console.pages.client import read_client
from grantbook import subjects
from grantbook.admin import ClientItem, Delivery, FamilyItem, GrantPage, Preview
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
    subject: ClientItem | FamilyItem | None = None
    user_id: str | None = None


def ends(grants: int, users: int | None = None) -> str:
    """What is ended, like: This ends 3 active grants of 2 users."""
    if grants == 0:
        return "No grant stands, so nobody loses access by it."
    of = "" if users is None else f" of {users:,} user{'' if users == 1 else 's'}"
    return f"This ends {grants:,} active grant{'' if grants == 1 else 's'}{of}."


KNOWN_SOON: Final = "Token services know within a second."
FOR_EVER: Final = "It is for ever: none can be issued again, and the agent has to register anew."


async def _preview(console: Console, visitor: Visitor, path: str) -> Preview | None:
    """What it would end, as the lists have it. None while they cannot be read: that shall hold up nobody."""
    try:
        return (await console.api.read(visitor.name, f"{path}/preview", Preview, seen=visitor.session.position)).content
    except Away:
        return None


async def _subject(console: Console, visitor: Visitor, client: str) -> ClientItem | None:
    try:
        return (await read_client(console, visitor, client)).content
    except Away:
        return None


UNKNOWN: Final = "What it would end cannot be counted: the lists cannot be read right now. It works all the same."


async def _of_client(console: Console, visitor: Visitor, client: str, act: str) -> Act:
    key = rendering.in_path(client)
    path, here = f"/admin/v1/clients/{key}", f"/console/clients/{key}"
    subject = await _subject(console, visitor, client)
    seen = None if subject is None else await _preview(console, visitor, path)
    common: dict[str, Any] = {"here": f"{here}/{act}", "back": here, "subject": subject}
    if act == "delete":
        counted = UNKNOWN if seen is None else ends(seen.active_grants + seen.suspended_grants, seen.users or None)
        return Act(
            title="Delete this client",
            verb="Delete",
            grave=True,
            method="DELETE",
            path=path,
            sentences=[counted, FOR_EVER, KNOWN_SOON],
            typed=word("delete", 0 if seen is None else seen.active_grants + seen.suspended_grants),
            **common,
        )
    if act == "suspend":
        held = UNKNOWN if seen is None else ends(seen.active_grants, seen.users).replace("This ends", "This holds up")
        return Act(
            title="Suspend this client",
            verb="Suspend",
            grave=True,
            method="POST",
            path=f"{path}/suspend",
            sentences=[held, "Its grants are denied, and none is issued, until it is resumed.", KNOWN_SOON],
            **common,
        )
    given = [] if seen is None else [f"{seen.suspended_grants:,} grants that it had are good again."]
    return Act(
        title="Resume this client",
        verb="Resume",
        grave=False,
        method="POST",
        path=f"{path}/resume",
        sentences=[*given, "It is let in as before."],
        **common,
    )


async def _of_grant(console: Console, visitor: Visitor, client: str, grant: str) -> Act:
    key, grant_key = rendering.in_path(client), rendering.in_path(grant)
    here = f"/console/clients/{key}"
    return Act(
        title="Revoke this grant",
        verb="Revoke",
        grave=True,
        method="POST",
        path=f"/admin/v1/clients/{key}/grants/{grant_key}/revoke",
        here=f"{here}/grants/{grant_key}/revoke",
        back=f"{here}/users",
        sentences=["This ends 1 grant of 1 user. Other users of the client notice nothing.", KNOWN_SOON],
        subject=await _subject(console, visitor, client),
    )


async def _of_user(console: Console, visitor: Visitor, user: str) -> Act:
    key = rendering.in_path(user)
    user_id: str | None = None
    try:
        answer = await console.api.read(
            visitor.name,
            f"/admin/v1/users/{key}/grants",
            GrantPage,
            {"limit": 1, "count": True},
            seen=visitor.session.position,
        )
        page = answer.content
        total = 0 if page.total is UNSET else page.total
        sentence = ends(total, 1)
        user_id = page.items[0].user_id if page.items else None
    except Away:
        total, sentence = 0, UNKNOWN
    return Act(
        title="Revoke all of this user's grants",
        verb="Revoke all",
        grave=True,
        method="POST",
        path=f"/admin/v1/users/{key}/revoke",
        here=f"/console/users/{key}/revoke",
        back=f"/console/users/{key}",
        sentences=[sentence, "Over all clients, those issued so far. Later ones are fine.", KNOWN_SOON],
        typed=word("revoke", total),
        user_id=user_id,
    )


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
            f"These are {seen.clients:,} client{'' if seen.clients == 1 else 's'}.",
            ends(seen.active_grants + seen.suspended_grants, seen.users or None),
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
    *,
    form: Mapping[str, Any] | None = None,
    refused: Refused | None = None,
) -> Response[bytes]:
    status = 200 if form is None else 400 if refused is None else refused.status if refused.status < 500 else 502
    return await console.page(
        request,
        visitor,
        "act.html",
        status,
        act=act,
        reasons=REVOKE_REASONS,
        said={} if form is None else {name: str(form.get(name, "")) for name in ("reason", "detail", "typed")},
        wrong=form is not None and refused is None,
        refused=None if refused is None else refused.detail,
    )


async def _do(request: Request[Any, Any, State], console: Console, visitor: Visitor, act: Act) -> Response[bytes]:
    form = await request.form()
    typed = " ".join(str(form.get("typed", "")).lower().split())
    if act.typed is not None and typed != act.typed:
        return await _confirm(request, console, visitor, act, form=form)
    try:
        position = await console.api.act(visitor.name, act.method, act.path, why_of(form))
    except Refused as refused:
        return await _confirm(request, console, visitor, act, form=form, refused=refused)
    if not position:
        return rendering.see_other(act.back)
    visitor.session.position = position
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
    return await _do(request, console, visitor, await _of_client(console, visitor, client, "delete"))


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
    return await _do(request, console, visitor, await _of_client(console, visitor, client, "suspend"))


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
    return await _do(request, console, visitor, await _of_client(console, visitor, client, "resume"))


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
    return await _do(request, console, visitor, await _of_grant(console, visitor, client, grant))


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


@get("/cut-off", include_in_schema=False, sync_to_thread=False)
def cut_off(client_id: FromQuery[str]) -> Response[bytes]:
    """To the deletion of a client by its id: for when the lists, where it would be clicked, cannot be read."""
    return rendering.see_other(f"/console/clients/{subjects.token(client_id.strip())}/delete")


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
    try:
        answer = await console.api.read(
            visitor.name, f"/admin/v1/revocations/{rendering.in_path(position)}/delivery", Delivery
        )
        delivery = answer.content
    except Refused as refused:
        if refused.code not in {"revocation_not_found", "invalid_parameter"}:
            raise
        trouble = refused.detail
    except Away:
        trouble = "Whether it arrived cannot be told right now: the log cannot be asked. It stays recorded."
    here = rendering.address(request.scope["path"], back=back)
    return await console.page(
        request,
        visitor,
        "delivery.html",
        position=position,
        delivery=delivery,
        trouble=trouble,
        live=delivery is not None and delivery.waiting > 0,
        here=here,
        back=back if back is not None and _ours(back) else None,
    )


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
