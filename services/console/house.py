"""What every page's handler is given."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from litestar import Request, Response
from litestar.datastructures import State
from msgspec import Struct

from console import rendering
from console.api import Api
from console.gate import Origin, Visitor
from console.jobs import Jobs
from console.links import Links
from console.oidc import Oidc
from console.sessions import Sessions, SigningIn
from console.troubles import Troubles


class Console(Struct, frozen=True, kw_only=True):
    """The console at work."""

    api: Api
    sessions: Sessions
    signing_in: SigningIn
    troubles: Troubles
    jobs: Jobs
    origin: Origin
    links: Links | None
    oidc: Oidc | None
    now: Callable[[], datetime]
    monotonic: Callable[[], float]
    new_id: Callable[[], str]

    async def page(
        self,
        request: Request[Any, Any, State],
        visitor: Visitor,
        template: str,
        status_code: int = 200,
        /,
        **context: Any,
    ) -> Response[bytes]:
        """A page for an admin: the template in its layout, with the banner of what is wrong."""
        layout = rendering.layout_for(request)
        # A part of a page stands below a banner that is there already.
        troubles = [] if layout == "fragment.html" else await self.troubles.now(visitor.name)
        path = request.scope["path"]
        return rendering.html(
            template,
            status_code,
            layout=layout,
            admin=visitor.name,
            path=path,
            now=self.now(),
            troubles=troubles,
            **context,
        )


async def the_console(state: State) -> Console:
    """The handlers' `console`."""
    console: Console = state.console
    return console
