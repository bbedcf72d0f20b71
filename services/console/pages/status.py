"""How the register is: read models, token services, totals. What cannot be shown is said, and the rest is shown."""

from typing import Any, Final

from litestar import Request, Response, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath

from console import rendering
from console.api import Away, Refused
from console.gate import Visitor
from console.house import Console
from console.troubles import READ_MODELS, sentences_of
from grantbook.admin import Status


@get("/status", include_in_schema=False)
async def show_status(
    request: Request[Any, Any, State], console: NamedDependency[Console], visitor: NamedDependency[Visitor]
) -> Response[bytes]:
    """The status, which keeps itself up to date."""
    status: Status | None = None
    away: str | None = None
    try:
        status = (await console.api.read(visitor.name, "/admin/v1/status", Status)).content
    except (Away, Refused) as error:
        away = f"The lists cannot be asked: {error.why if isinstance(error, Away) else error.detail}"
    return await console.page(
        request,
        visitor,
        "status.html",
        status=status,
        away=away,
        wrong=[] if status is None else sentences_of(status),
        read_models=READ_MODELS,
    )


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
