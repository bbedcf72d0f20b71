"""Signing in and out: by a one-time link on one's own machine, else with the identity provider."""

from typing import Any, Final

import structlog
from litestar import Request, Response, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromQuery

from console import rendering
from console.forms import form_of
from console.house import Console
from console.oidc import ProviderAway, SignInRefused, safe_return_to
from console.sessions import COOKIE, SIGNING_IN_COOKIE, cookie, no_cookie

START: Final = "/console/clients"
LINK_ADMIN: Final = "local-admin"
"""What is done after signing in by a link is recorded under this name: a link does not say who holds it."""
MAX_LINK_CHARACTERS: Final = 256
_log = structlog.get_logger("console")


def _sign_in_page(
    console: Console, *, return_to: str, why: str | None = None, link: str | None = None
) -> Response[bytes]:
    return rendering.html(
        "sign_in.html",
        200 if why is None else 403,
        layout="page.html",
        admin=None,
        path="/console/sign-in",
        troubles=[],
        why=why,
        link=link,
        by_link=console.links is not None,
        by_oidc=console.oidc is not None,
        return_to=return_to,
    )


@get("/sign-in", include_in_schema=False)
async def show_sign_in(
    request: Request[Any, Any, State],
    console: NamedDependency[Console],
    return_to: FromQuery[str | None] = None,
    link: FromQuery[str | None] = None,
) -> Response[bytes]:
    """How to sign in. With a link: a button, so that what only looks at addresses does not use the link up."""
    wanted = safe_return_to(return_to)
    session = console.sessions.find(request.cookies.get(COOKIE))
    if session is not None:
        return rendering.see_other(wanted)
    return _sign_in_page(console, return_to=wanted, link=link[:MAX_LINK_CHARACTERS] if link else None)


@post("/sign-in", include_in_schema=False)
async def sign_in_by_link(request: Request[Any, Any, State], console: NamedDependency[Console]) -> Response[bytes]:
    """Sign in with a one-time link. Used, too old or made up: the page says how to get another."""
    form = await form_of(request)
    link, return_to = str(form.get("link", "")), safe_return_to(str(form.get("return_to", "")))
    if console.links is None or not console.links.use(link, console.now().timestamp()):
        why = "This link was used already, has ended, or is none. Make another: make console"
        return _sign_in_page(console, return_to=return_to, why=why)
    console.sessions.end(request.cookies.get(COOKIE))
    name, _ = console.sessions.begin(admin=LINK_ADMIN)
    _log.info("signed in", admin=LINK_ADMIN, by="link")
    answer = rendering.see_other(return_to)
    answer.set_cookie(cookie(name))
    return answer


@get("/sign-in/start", include_in_schema=False)
async def start_sign_in(console: NamedDependency[Console], return_to: FromQuery[str | None] = None) -> Response[bytes]:
    """Off to the identity provider (OpenID Connect Core section 3.1)."""
    wanted = safe_return_to(return_to)
    if console.oidc is None:
        return rendering.see_other(rendering.address("/console/sign-in", return_to=wanted))
    try:
        url, pending = await console.oidc.begin(wanted)
    except ProviderAway as away:
        return _sign_in_page(console, return_to=wanted, why=str(away))
    answer = rendering.see_other(url)
    answer.set_cookie(cookie(console.signing_in.seal(pending), SIGNING_IN_COOKIE))
    return answer


@get("/sign-in/callback", include_in_schema=False)
async def finish_sign_in(request: Request[Any, Any, State], console: NamedDependency[Console]) -> Response[bytes]:
    """Back from the identity provider."""
    pending = console.signing_in.take(request.cookies.get(SIGNING_IN_COOKIE))
    if console.oidc is None or pending is None:
        return _sign_in_page(
            console, return_to=START, why="This sign-in was not begun here, or took too long. Try again."
        )
    try:
        admin = await console.oidc.finish(pending, dict(request.query_params))
    except (SignInRefused, ProviderAway) as refused:
        _log.warning("nobody was signed in", why=str(refused))
        return _sign_in_page(console, return_to=pending.return_to, why=str(refused))
    console.sessions.end(request.cookies.get(COOKIE))
    fresh, _ = console.sessions.begin(admin=admin.name)
    # Who is behind a name, should that ever be asked: the log of events has the name alone.
    _log.info("signed in", admin=admin.name, by="provider", issuer=admin.issuer, subject=admin.subject)
    answer = rendering.see_other(safe_return_to(pending.return_to))
    answer.set_cookie(cookie(fresh))
    answer.set_cookie(no_cookie(SIGNING_IN_COOKIE))
    return answer


@post("/sign-out", include_in_schema=False)
async def sign_out(request: Request[Any, Any, State], console: NamedDependency[Console]) -> Response[bytes]:
    """End the session."""
    console.sessions.end(request.cookies.get(COOKIE))
    answer = rendering.see_other("/console/sign-in")
    answer.set_cookie(no_cookie())
    return answer


ROUTES: Final = [show_sign_in, sign_in_by_link, start_sign_in, finish_sign_in, sign_out]
