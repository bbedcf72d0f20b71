"""`/healthz`: the process runs. `/readyz`: it can do its work, or says why not.

Both answer anybody, so reasons hold no address and no secret. However many ask at once, the checks run once at a time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog
from litestar import Response, get
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from msgspec import UNSET, Struct, UnsetType

Check = Callable[[State], Awaitable[str | None]]
"""Looks at one thing that the work needs, given the application's state. None when it is well, else the reason."""

CHECK_SECONDS: Final = 2.0
"""A check that takes longer has failed: a probe must not hang with what it probes."""

log = structlog.get_logger("door")


class Health(Struct, frozen=True):
    """The answer of `/healthz`."""

    status: str = "ok"


class Readiness(Struct, frozen=True, kw_only=True):
    """The answer of `/readyz`: `ready` or `unready`, and by check name why not, and what to look at before it fails."""

    status: str
    reasons: dict[str, str] | UnsetType = UNSET
    warnings: dict[str, str] | UnsetType = UNSET


def routes(
    *, ready: Mapping[str, Check], warn: Mapping[str, Check], seconds: float = CHECK_SECONDS
) -> list[HTTPRouteHandler]:
    """The two routes. A check in `ready` that gives a reason makes the answer 503; one in `warn` is only shown."""
    running: asyncio.Task[Readiness] | None = None

    @get("/healthz", sync_to_thread=False, tags=["operating"])
    def healthz() -> Health:
        """Whether the process runs."""
        return Health()

    @get("/readyz", tags=["operating"])
    async def readyz(state: State) -> Response[Readiness]:
        """Whether the service can do its work: 503 with reasons while it cannot."""
        nonlocal running
        if running is None or running.done():
            running = asyncio.create_task(_readiness(state, ready, warn, seconds))
        # Shielded: one caller that leaves must not take the answer from the others.
        readiness = await asyncio.shield(running)
        return Response(readiness, status_code=200 if readiness.reasons is UNSET else 503)

    return [healthz, readyz]


async def _readiness(state: State, ready: Mapping[str, Check], warn: Mapping[str, Check], seconds: float) -> Readiness:
    found = await asyncio.gather(
        *(_outcome(name, check, state, seconds) for name, check in [*ready.items(), *warn.items()])
    )
    reasons = {name: reason for name, reason in zip(ready, found, strict=False) if reason is not None}
    warnings = {name: reason for name, reason in zip(warn, found[len(ready) :], strict=True) if reason is not None}
    return Readiness(status="unready" if reasons else "ready", reasons=reasons or UNSET, warnings=warnings or UNSET)


async def _outcome(name: str, check: Check, state: State, seconds: float) -> str | None:
    try:
        async with asyncio.timeout(seconds):
            return await check(state)
    except TimeoutError:
        return f"no answer within {seconds:g} s"
    except Exception as error:
        # A check that breaks is a reason, and no 500. Its text may hold an address: that goes to the log alone.
        log.warning("readiness check failed", check=name, exc_info=error)
        return f"the check failed: {type(error).__name__}"
