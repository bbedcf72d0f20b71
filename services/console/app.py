"""Composition root of the console: what it stands on, made here and handed on."""

import os
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import uuid_utils
from litestar import Litestar, Router, get
from litestar.datastructures import State
from litestar.di import Provide
from litestar.response import Redirect

from console import refusals
from console.api import Api, Away, Refused, connections
from console.gate import Origin, from_here, signed_in, visitor_of
from console.house import Console, the_console
from console.jobs import Jobs
from console.links import Links
from console.oidc import Oidc, OidcSettings
from console.pages import actions, audit, bulk, client, clients, sign_in, stale, static, status, users
from console.sessions import Sessions, SigningIn
from console.settings import Settings
from console.troubles import Troubles
from door import front, health, roles

_PAGES: Final = [client, clients, actions, bulk, stale, users, status, audit]


@get("/", include_in_schema=False, sync_to_thread=False)
def begin() -> Redirect:
    """The first page."""
    return Redirect(sign_in.START)


ROUTES: Final = [
    Router(
        "/console",
        route_handlers=[
            *static.ROUTES,
            *sign_in.ROUTES,
            Router("/", route_handlers=[begin, *(each for page in _PAGES for each in page.ROUTES)], guards=[signed_in]),
        ],
        guards=[from_here],
    )
]
DEPENDENCIES: Final = {
    "console": Provide(the_console),
    "visitor": Provide(visitor_of, sync_to_thread=False),
}
ANSWERS: Final = refusals.ANSWERS
RENDERINGS: Final = refusals.RENDERINGS


def now() -> datetime:
    """UTC, in microseconds."""
    return datetime.now(UTC)


def new_id() -> str:
    """A UUIDv7."""
    return str(uuid_utils.uuid7())


def settings_from(environment: Mapping[str, str]) -> Settings:
    """Settings out of `GRANTBOOK_...` variables. Raises `ValueError`, and `KeyError` with the name of one missing."""
    url = environment["GRANTBOOK_CONSOLE_URL"].rstrip("/")
    issuer = environment["GRANTBOOK_OIDC_ISSUER"]
    tokens_file = environment.get("GRANTBOOK_TOKENS_FILE")
    values = tuple(each.strip() for each in environment["GRANTBOOK_OIDC_ADMIN_VALUES"].split(",") if each.strip())
    if not values:
        raise ValueError("GRANTBOOK_OIDC_ADMIN_VALUES names nobody: say who is an admin")
    return Settings(
        url=url,
        registry_url=environment["GRANTBOOK_REGISTRY_URL"],
        projector_url=environment["GRANTBOOK_PROJECTOR_URL"],
        token=environment["GRANTBOOK_CONSOLE_TOKEN"],
        oidc=OidcSettings(
            issuer=issuer,
            client_id=environment["GRANTBOOK_OIDC_CLIENT_ID"],
            client_secret=environment.get("GRANTBOOK_OIDC_CLIENT_SECRET") or None,
            redirect_uri=f"{url}/console/sign-in/callback",
            admin_claim=environment["GRANTBOOK_OIDC_ADMIN_CLAIM"],
            admin_values=values,
        ),
        tokens_file=None if tokens_file is None else Path(tokens_file),
    )


@asynccontextmanager
async def running(settings: Settings, state: State) -> AsyncIterator[None]:
    """The console at work: puts what its handlers need into the application's state. Raises ValueError."""
    origin = Origin.of(settings.url)
    sessions = Sessions(random=secrets.token_bytes, clock=time.monotonic)
    async with connections() as http, Jobs(new_id=new_id, now=now) as jobs:
        api = Api(http, registry_url=settings.registry_url, projector_url=settings.projector_url, token=settings.token)
        state.console_origin = origin
        state.console_sessions = sessions
        state.console = Console(
            api=api,
            sessions=sessions,
            signing_in=SigningIn(random=secrets.token_bytes, clock=time.monotonic),
            troubles=Troubles(api, clock=time.monotonic),
            jobs=jobs,
            origin=origin,
            links=None if settings.link_key is None else Links(settings.link_key, started_at=time.time()),
            oidc=None
            if settings.oidc is None
            else Oidc(settings.oidc, http=None, random=secrets.token_bytes, clock=time.time),
            now=now,
            monotonic=time.monotonic,
            new_id=new_id,
        )
        yield


async def apis_answer(state: State) -> str | None:
    """A warning while the read API does not answer: pages then say what they cannot show."""
    console: Console = state.console
    try:
        await console.api.read("console", "/admin/v1/status", dict)
    except (Away, Refused) as error:
        return f"the read API does not answer: {type(error).__name__}"
    return None


READY: Final[dict[str, health.Check]] = {}
WARN: Final[dict[str, health.Check]] = {"read_api": apis_answer}


def create_app(settings: Settings | None = None) -> Litestar:
    """The console as an ASGI application of its own. Without settings: from the environment.

    Raises `KeyError` with the name of a variable that is missing, `ValueError`, and `roles.TokensRefused`.
    """
    chosen = settings or settings_from(os.environ)
    Origin.of(chosen.url)

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with running(chosen, app.state):
            yield

    keyring = (
        roles.Keyring(()) if chosen.tokens_file is None else roles.load(chosen.tokens_file, allow_development=False)
    )
    return front.litestar_app(
        ROUTES,
        name="console",
        keyring=keyring,
        mint_request_id=new_id,
        ready=READY,
        warn=WARN,
        lifespan=[lifespan],
        dependencies=DEPENDENCIES,
        answers=ANSWERS,
        renderings=RENDERINGS,
    )
