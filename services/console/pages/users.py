"""Users: who let clients in, and on a page of each what, and how to end one or all of it."""

from typing import Any, Final

from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from console import rendering
from console.gate import Visitor
from console.house import Console
from console.pages.clients import DEFAULT_LIMIT, LIMITS, chosen
from grantbook.admin import GrantPage, UserPage

STATES: Final = ("active", "suspended", "expired", "revoked", "any")
SORTS: Final = {
    "issued_at": "Issued",
    "last_activity_at": "Last activity",
    "expires_at": "Expires",
}


@get("/users", include_in_schema=False)
async def find_user(
    request: Request[Any, Any, State], console: NamedDependency[Console], visitor: NamedDependency[Visitor]
) -> Response[bytes]:
    """Users, by a part of the name or by the whole id."""
    wanted = request.query_params.get("user", "").strip()
    shown = chosen(request.query_params)
    answer = await console.api.read(
        visitor.name,
        "/admin/v1/users",
        UserPage,
        {"user": wanted, "limit": shown.limit, "cursor": shown.cursor, "count": True},
        seen=visitor.session.position,
    )
    query = {"user": wanted, "limit": shown.limit if shown.limit != DEFAULT_LIMIT else ""}
    return await console.page(
        request,
        visitor,
        "users.html",
        page=answer.content,
        stale=answer.stale,
        wanted=wanted,
        query=query,
        shown=shown,
        limits=LIMITS,
    )


@get("/users/{user:str}", include_in_schema=False)
async def show_user(
    user: FromPath[str],
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
    status: FromQuery[str] = "active",
    sort: FromQuery[str] = "-issued_at",
) -> Response[bytes]:
    """The user's grants, across clients."""
    shown = chosen(request.query_params)
    answer = await console.api.read(
        visitor.name,
        f"/admin/v1/users/{rendering.in_path(user)}/grants",
        GrantPage,
        {"status": status, "sort": sort, "limit": shown.limit, "cursor": shown.cursor, "count": True},
        seen=visitor.session.position,
    )
    query = {name: value for name, value in {"status": status, "sort": sort, "limit": shown.limit}.items() if value}
    return await console.page(
        request,
        visitor,
        "user.html",
        page=answer.content,
        stale=answer.stale,
        user=user,
        status=status,
        sort=sort,
        states=STATES,
        sorts=SORTS,
        query=query,
        shown=shown,
        limits=LIMITS,
    )


ROUTES: Final = [find_user, show_user]
