"""Who may come in to the pages, and from where: every request passes here before anything else is looked at.

Browsers say where a request comes from: `Sec-Fetch-Site` (Fetch Metadata) and `Origin` (RFC 6454). What changes
something is let in from our own pages alone, so another site's form or script does nothing, cookie or not.
"""

from typing import Any, Final
from urllib.parse import urlsplit

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.handlers import BaseRouteHandler
from msgspec import Struct

from console import rendering
from console.sessions import COOKIE, Session, Sessions
from door import requests
from door.problems import Problem

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
NOT_SIGNED_IN: Final = "not_signed_in"
NOT_FROM_HERE: Final = "not_from_here"


class Visitor(Struct, frozen=True):
    """An admin who is signed in."""

    name: str
    session: Session


class Origin(Struct, frozen=True):
    """Where our pages are, as browsers name it."""

    origin: str
    host: str

    @classmethod
    def of(cls, url: str) -> "Origin":
        """Of the console's URL. Raises ValueError where browsers would not keep our cookie, or others could read it."""
        parts = urlsplit(url)
        loopback = parts.hostname in {"127.0.0.1", "localhost", "::1"}
        if parts.scheme != "https" and not (parts.scheme == "http" and loopback):
            raise ValueError("the console's URL is https, but for one's own machine")
        if parts.path.strip("/") or parts.query or parts.fragment or not parts.hostname or "@" in parts.netloc:
            raise ValueError("the console's URL is a scheme and a host, and a port perhaps; /console follows by itself")
        # As browsers name it: without the port that the scheme has anyway.
        host = parts.netloc.lower().removesuffix(":443" if parts.scheme == "https" else ":80")
        return cls(f"{parts.scheme}://{host}", host)


async def from_here(connection: ASGIConnection[Any, Any, Any, State], _: BaseRouteHandler) -> None:
    """A guard: the request is for this host, and what is unsafe comes from our own pages. Raises a `Problem`."""
    ours: Origin = connection.app.state.console_origin
    headers = connection.headers
    # A name that leads to us although it is not ours (DNS rebinding) would be another origin with our answers.
    if headers.get("host", "").lower() != ours.host:
        raise Problem(421, NOT_FROM_HERE, f"The console is at {ours.origin}/console, and answers under no other name.")
    site = headers.get("sec-fetch-site")
    if connection.scope["method"] in SAFE:  # type: ignore[typeddict-item]  # of HTTP, as all here are
        # A link from elsewhere may lead here; a picture, a script or a frame of elsewhere may not.
        if site in {"cross-site", "same-site"} and headers.get("sec-fetch-mode") != "navigate":
            raise _elsewhere()
        if headers.get("sec-fetch-dest") in {"iframe", "frame", "embed", "object"}:
            raise _elsewhere()
        return
    origins = headers.getall("origin", [])
    if site not in {None, "same-origin"} or (origins != [ours.origin] and (origins or site is None)):
        raise _elsewhere()


async def signed_in(connection: ASGIConnection[Any, Any, Any, State], _: BaseRouteHandler) -> None:
    """A guard: an admin is signed in. Raises a `Problem` that becomes the way to sign in."""
    sessions: Sessions = connection.app.state.console_sessions
    live = connection.headers.get(rendering.FRAGMENT) == rendering.LIVE
    session = sessions.find(connection.cookies.get(COOKIE), used=not live)
    if session is None:
        path = connection.scope["path"]
        query = connection.scope["query_string"].decode("ascii", "replace")
        wanted = f"{path}?{query}" if query else path
        safe = connection.scope["method"] in SAFE  # type: ignore[typeddict-item]  # of HTTP
        raise Problem(
            401,
            NOT_SIGNED_IN,
            "Sign in first; nothing was done.",
            members={"return_to": wanted} if safe else {},
        )
    requests.note_caller(session.admin)
    connection.scope["user"] = Visitor(session.admin, session)


def visitor_of(request: Request[object, object, State]) -> Visitor:
    """The dependency `visitor`: who passed the guard."""
    visitor = request.scope.get("user")
    if not isinstance(visitor, Visitor):
        raise TypeError("`visitor` needs a guard: guards=[signed_in]")
    return visitor


def _elsewhere() -> Problem:
    return Problem(403, NOT_FROM_HERE, "This came from another site than the console's own pages; nothing was done.")
