"""Probes tell the truth, quickly."""

import asyncio
from typing import Any

from litestar import Litestar
from litestar.datastructures import State

from door import health
from tests.door.conftest import ask


def checks(**outcomes: Any) -> dict[str, health.Check]:
    def check(outcome: Any) -> health.Check:
        async def look(_: State) -> str | None:
            if isinstance(outcome, Exception):
                raise outcome
            if isinstance(outcome, asyncio.Event):
                await outcome.wait()
                return None
            assert outcome is None or isinstance(outcome, str)
            return outcome

        return look

    return {name: check(outcome) for name, outcome in outcomes.items()}


def app_with(seconds: float = 2.0, warn: dict[str, health.Check] | None = None, **outcomes: Any) -> Litestar:
    routes = health.routes(ready=checks(**outcomes), warn=warn or {}, seconds=seconds)
    return Litestar(routes, openapi_config=None)


async def test_ready_when_every_check_is_well() -> None:
    """A balancer sends requests here."""
    answer = await ask(app_with(nats=None, postgres=None), "/readyz")
    assert (answer.status, answer.json()) == (200, {"status": "ready"})


async def test_unready_says_which_and_why() -> None:
    """An operator reads the cause from the probe."""
    answer = await ask(app_with(nats="not connected", postgres=None), "/readyz")
    assert (answer.status, answer.json()) == (503, {"status": "unready", "reasons": {"nats": "not connected"}})


async def test_a_warning_is_shown_and_takes_nothing_out_of_service() -> None:
    """The log is 80 % full: act, but keep serving."""
    answer = await ask(app_with(nats=None, warn=checks(log="80 % full")), "/readyz")
    assert (answer.status, answer.json()) == (200, {"status": "ready", "warnings": {"log": "80 % full"}})


async def test_a_check_that_hangs_or_breaks_is_a_reason() -> None:
    """The probe answers in time when a server does not, and shows no address of one."""
    hanging = app_with(seconds=0.05, nats=asyncio.Event(), postgres=OSError("postgresql://secret@10.0.0.1"))
    answer = await ask(hanging, "/readyz")
    assert answer.json()["reasons"] == {"nats": "no answer within 0.05 s", "postgres": "the check failed: OSError"}
    assert answer.status == 503


async def test_many_who_ask_at_once_cause_one_round_of_checks() -> None:
    """Anybody may ask, so asking must not be a way to load the servers behind."""
    count = 0
    begun, go = asyncio.Event(), asyncio.Event()

    async def counted(_: State) -> str | None:
        nonlocal count
        count += 1
        begun.set()
        await go.wait()
        return None

    app = Litestar(health.routes(ready={"nats": counted}, warn={}), openapi_config=None)
    asking = [asyncio.create_task(ask(app, "/readyz")) for _ in range(20)]
    await begun.wait()
    asking[0].cancel()  # one who leaves does not take the answer from the others
    go.set()
    answers = await asyncio.gather(*asking[1:])
    assert {answer.status for answer in answers} == {200}
    assert count == 1


async def test_alive_needs_nothing(app: Litestar) -> None:
    """A supervisor restarts what hangs, not what waits for a server."""
    assert (await ask(app, "/healthz")).json() == {"status": "ok"}
