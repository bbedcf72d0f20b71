"""`/admin/v1`, acting: revoke, delete, suspend, resume, and revoke all of a user's grants."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from litestar import Request, Response, delete, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from door.requests import current_traceparent
from door.roles import Caller, requires
from grantbook import subjects
from grantbook.events import Event, UserGrantsRevoked
from registry import clients
from registry.api.idp import end_grant, intent_of
from registry.clients import Client
from registry.register import Register
from registry.store import client, user

_admin: Final = [requires("admin")]
_TAGS: Final = ["admin: acting"]


@post(
    "/admin/v1/clients/{client_id:str}/grants/{grant_id:str}/revoke",
    guards=_admin,
    status_code=HTTPStatus.NO_CONTENT,
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


@delete("/admin/v1/clients/{client_id:str}", guards=_admin, status_code=HTTPStatus.NO_CONTENT, tags=_TAGS)
async def delete_client(
    client_id: FromPath[str],
    request: Request[Any, Any, Any],
    register: NamedDependency[Register],
    caller: NamedDependency[Caller],
) -> Response[None]:
    """End every grant of a client, and admit it no more. Deleted already: 204 as well."""
    intent = await intent_of(request, register, caller, default_reason="admin")
    return await _decide(client_id, register, lambda state: clients.delete(state, intent))


@post("/admin/v1/clients/{client_id:str}/suspend", guards=_admin, status_code=HTTPStatus.NO_CONTENT, tags=_TAGS)
async def suspend_client(
    client_id: FromPath[str],
    request: Request[Any, Any, Any],
    register: NamedDependency[Register],
    caller: NamedDependency[Caller],
) -> Response[None]:
    """Deny the client's grants, and issue none, until it is resumed."""
    intent = await intent_of(request, register, caller, default_reason=None)
    return await _decide(client_id, register, lambda state: clients.suspend(state, intent))


@post("/admin/v1/clients/{client_id:str}/resume", guards=_admin, status_code=HTTPStatus.NO_CONTENT, tags=_TAGS)
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


@post("/admin/v1/users/{user_id:str}/revoke", guards=_admin, status_code=HTTPStatus.NO_CONTENT, tags=_TAGS)
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


ROUTES: Final = [revoke_grant_as_admin, delete_client, suspend_client, resume_client, revoke_grants_of_user]
