"""`/admin/v1`, acting: revoke, delete, suspend, resume, and revoke all of a user's grants."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any, Final

from litestar import Request, Response, delete, post
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec import Meta, Struct

from door import docs
from door.problems import CODES, Problem, invalid_parameter
from door.ready import ReadyResponse
from door.requests import current_traceparent
from door.roles import Caller, requires
from grantbook import positions, receipts, subjects
from grantbook.events import Actor, Event, UserGrantsRevoked
from registry import clients, enrolment, many, metadata
from registry.api.bodies import ClientId, Detail, Why, checked_why, decoded
from registry.api.idp import end_grant, intent_for, intent_of
from registry.api.registration import MAX_BODY_BYTES, NO_STORE, answer, checked, members_of
from registry.clients import Client
from registry.many import MAX_LISTED, Left
from registry.register import Register
from registry.store import client, user

_admin: Final = [requires("admin")]
_TAGS: Final = ["admin: acting"]
_WHY: Final = docs.takes(Why, optional=True)


class StaleClients(Struct, frozen=True):
    """Clients out of `GET /admin/v1/stale-clients`, and the positions that it gave: what was used since is spared."""

    client_ids: Annotated[list[ClientId], Meta(min_length=1, max_length=MAX_LISTED)]
    as_of: str
    activity_as_of: str
    reason: str | None = None
    detail: Detail | None = None


class FamilyDeleted(Struct, frozen=True):
    """How many clients of the family are deleted, now or before: all of them."""

    family: str
    deleted: int


class StaleDeleted(Struct, frozen=True):
    """How many of the clients are deleted, now or before, and which were left, and why."""

    deleted: int
    left: list[Left]


@post(
    "/admin/v1/clients",
    guards=_admin,
    request_max_body_size=MAX_BODY_BYTES,
    opt=docs.takes(metadata.SCHEMA),
    tags=_TAGS,
)
async def add_client(
    request: Request[Any, Any, Any], register: NamedDependency[Register], caller: NamedDependency[Caller]
) -> ReadyResponse[bytes]:
    """Put a client on the register by hand; its source is `manual`. The body is metadata as RFC 7591 has it.

    The answer is RFC 7591's too, with the secret and the registration access token, which are shown this once.
    """
    said = checked(register, await members_of(request))
    enrolled = await enrolment.enrol(
        register, said, source="manual", by=Actor("admin", caller.name), traceparent=current_traceparent()
    )
    return answer(HTTPStatus.CREATED, enrolment.information(register, enrolled), NO_STORE, register, enrolled.position)


@post("/admin/v1/families/{family:str}/delete", guards=_admin, status_code=HTTPStatus.OK, opt=_WHY, tags=_TAGS)
async def delete_family(
    family: FromPath[str],
    request: Request[Any, Any, Any],
    register: NamedDependency[Register],
    caller: NamedDependency[Caller],
) -> Response[FamilyDeleted]:
    """Delete every client of a family, each by an event of its own. What that would end is shown by its preview.

    The register reads all registrations for it, some 30,000 in a second. When it is cut short, ask again.
    """
    intent = await intent_of(request, register, caller, default_reason="admin")
    deleted = await many.delete_family(register.log, family, intent, traceparent=current_traceparent())
    if deleted is None:
        raise Problem(404, "family_not_found", "No client of this family was ever registered.")
    return Response(FamilyDeleted(family, deleted.clients), headers=register.log_position(deleted.position))


@post(
    "/admin/v1/stale-clients/delete",
    guards=_admin,
    status_code=HTTPStatus.OK,
    opt=docs.takes(StaleClients),
    tags=_TAGS,
)
async def delete_stale_clients(
    request: Request[Any, Any, Any], register: NamedDependency[Register], caller: NamedDependency[Caller]
) -> Response[StaleDeleted]:
    """Delete just the clients of a list that was shown before, but for those that were used since."""
    asked = decoded(await request.body(), StaleClients)
    said = checked_why(asked.reason, asked.detail, default="policy")
    as_of = _position("as_of", asked.as_of, "log", register.log_identity)
    activity_as_of = _position("activity_as_of", asked.activity_as_of, "activity", register.activity_identity)
    intent = await intent_for(said, register, caller)
    used = await many.used_since(register.activity_reader, activity_as_of)
    deleted, left = await many.delete_unused(
        register.log,
        list(dict.fromkeys(asked.client_ids)),
        used,
        intent,
        since=as_of,
        traceparent=current_traceparent(),
    )
    return Response(StaleDeleted(deleted.clients, left), headers=register.log_position(deleted.position))


def _position(name: str, text: str, kind: positions.Kind, identity: str) -> int:
    try:
        position = positions.parse(text)
    except positions.InvalidPosition:
        position = None
    if position is None or position.kind != kind:
        raise invalid_parameter(name, "a position as the list of stale clients gave it")
    if position.identity != identity:
        raise Problem(409, "list_too_old", CODES["list_too_old"].text)
    return position.sequence


@post(
    "/admin/v1/clients/{client_id:str}/grants/{grant_id:str}/revoke",
    guards=_admin,
    status_code=HTTPStatus.NO_CONTENT,
    opt=_WHY,
    tags=_TAGS,
)
async def revoke_grant_as_admin(
    client_id: FromPath[str],
    grant_id: FromPath[str],
    request: Request[Any, Any, Any],
    register: NamedDependency[Register],
    caller: NamedDependency[Caller],
) -> Response[None]:
    """End one grant; others are untouched. Ended already: 204 as well."""
    return await end_grant(client_id, grant_id, request, register, caller, default_reason="admin")


@delete("/admin/v1/clients/{client_id:str}", guards=_admin, status_code=HTTPStatus.NO_CONTENT, opt=_WHY, tags=_TAGS)
async def delete_client(
    client_id: FromPath[str],
    request: Request[Any, Any, Any],
    register: NamedDependency[Register],
    caller: NamedDependency[Caller],
) -> Response[None]:
    """End every grant of a client, and admit it no more. Deleted already: 204 as well."""
    intent = await intent_of(request, register, caller, default_reason="admin")
    return await _decide(client_id, register, lambda state: clients.delete(state, intent))


@post(
    "/admin/v1/clients/{client_id:str}/suspend", guards=_admin, status_code=HTTPStatus.NO_CONTENT, opt=_WHY, tags=_TAGS
)
async def suspend_client(
    client_id: FromPath[str],
    request: Request[Any, Any, Any],
    register: NamedDependency[Register],
    caller: NamedDependency[Caller],
) -> Response[None]:
    """Deny the client's grants, and issue none, until it is resumed."""
    intent = await intent_of(request, register, caller, default_reason=None)
    return await _decide(client_id, register, lambda state: clients.suspend(state, intent))


@post(
    "/admin/v1/clients/{client_id:str}/resume", guards=_admin, status_code=HTTPStatus.NO_CONTENT, opt=_WHY, tags=_TAGS
)
async def resume_client(
    client_id: FromPath[str],
    request: Request[Any, Any, Any],
    register: NamedDependency[Register],
    caller: NamedDependency[Caller],
) -> Response[None]:
    """Let a suspended client in again, with the grants that it had."""
    intent = await intent_of(request, register, caller, default_reason=None)
    return await _decide(client_id, register, lambda state: clients.resume(state, intent))


async def _decide(
    client_id: str, register: Register, decide: Callable[[Client | None], Event | None]
) -> Response[None]:
    aggregate = client(subjects.token_in_path(client_id))
    receipt = await register.log.transact(aggregate, decide, traceparent=current_traceparent())
    return Response(None, status_code=HTTPStatus.NO_CONTENT, headers=register.log_position(receipt.position))


@post("/admin/v1/users/{user_id:str}/revoke", guards=_admin, status_code=HTTPStatus.NO_CONTENT, opt=_WHY, tags=_TAGS)
async def revoke_grants_of_user(
    user_id: FromPath[str],
    request: Request[Any, Any, Any],
    register: NamedDependency[Register],
    caller: NamedDependency[Caller],
) -> Response[None]:
    """End every grant of a user issued so far, over all clients. Later grants are fine."""
    intent = await intent_of(request, register, caller, default_reason="admin")
    key = subjects.token_in_path(user_id)
    event = UserGrantsRevoked(
        user_key=key,
        user_id=None if key == user_id and subjects.is_key(key) else user_id,
        reason=intent.reason,
        note=intent.note,
        at=intent.at,
        by=intent.by,
    )
    receipt = await register.log.transact(user(key), lambda _: event, traceparent=current_traceparent())
    return Response(None, status_code=HTTPStatus.NO_CONTENT, headers=register.log_position(receipt.position))


@delete("/admin/v1/subscribers/{name:str}/{instance:str}", guards=_admin, status_code=HTTPStatus.NO_CONTENT, tags=_TAGS)
async def forget_subscriber(name: FromPath[str], instance: FromPath[str], register: NamedDependency[Register]) -> None:
    """Take a token service that is gone for good off the list of subscribers. One that is alive comes back."""
    if not await register.subscribers.forget(receipts.key(name, instance)):
        raise Problem(404, "subscriber_not_found", CODES["subscriber_not_found"].text)


ROUTES: Final = [
    add_client,
    delete_family,
    delete_stale_clients,
    revoke_grant_as_admin,
    delete_client,
    suspend_client,
    resume_client,
    revoke_grants_of_user,
    forget_subscriber,
]
