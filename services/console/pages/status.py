"""How the register is: read models, token services, totals, what happened over time.

Each part is asked for by itself: what cannot be shown is said, and the rest is shown.
"""

import asyncio
from typing import Any, Final, TypeVar

from litestar import Request, Response, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from console import plots, rendering
from console.api import Away, Query, Refused
from console.gate import Visitor
from console.house import Console
from console.troubles import READ_MODELS, sentences_of
from grantbook.admin import Status, Trends

DAYS: Final = (7, 30, 90, 365)
T = TypeVar("T")


@get("/status", include_in_schema=False)
async def show_status(
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
    days: FromQuery[int] = DAYS[1],
) -> Response[bytes]:
    """The status, which keeps itself up to date."""
    days = days if days in DAYS else DAYS[1]
    (status, away), (trends, _), services = await asyncio.gather(
        _part(console, visitor, "/admin/v1/status", Status),
        _part(console, visitor, "/admin/v1/trends", Trends, {"days": days}),
        console.api.readiness(),
    )
    return await console.page(
        request,
        visitor,
        "status.html",
        status=status,
        away=away,
        wrong=[] if status is None else sentences_of(status),
        read_models=READ_MODELS,
        services=services,
        trends=trends,
        plots=[] if trends is None else plots.plots(trends),
        days=days,
        choices=DAYS,
    )


async def _part(
    console: Console, visitor: Visitor, path: str, type_: type[T], query: Query | None = None
) -> tuple[T | None, str | None]:
    """What is shown, or why it cannot be."""
    try:
        return (await console.api.read(visitor.name, path, type_, query)).content, None
    except (Away, Refused) as error:
        return None, f"The lists cannot be asked: {error.why if isinstance(error, Away) else error.detail}"


@get("/subscribers/{name:str}/{instance:str}/forget", include_in_schema=False)
async def confirm_forget(
    name: FromPath[str],
    instance: FromPath[str],
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
) -> Response[bytes]:
    """What it means to take a token service off the list."""
    return await console.page(request, visitor, "forget.html", name=name, instance=instance)


@post("/subscribers/{name:str}/{instance:str}/forget", include_in_schema=False)
async def forget(
    name: FromPath[str],
    instance: FromPath[str],
    console: NamedDependency[Console],
    visitor: NamedDependency[Visitor],
) -> Response[bytes]:
    """Take it off."""
    await console.api.act(
        visitor.name, "DELETE", f"/admin/v1/subscribers/{rendering.segment(name)}/{rendering.segment(instance)}"
    )
    return rendering.see_other("/console/status")


ROUTES: Final = [show_status, confirm_forget, forget]
