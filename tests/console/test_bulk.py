"""Acting on many clients at once."""

import asyncio
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import httpx
import pytest

from console import jobs
from console.api import Away, Refused
from console.jobs import Busy, Job, Jobs
from tests.console.conftest import Console, House

pytestmark = pytest.mark.browser

NOW = datetime(2026, 3, 14, tzinfo=UTC)


def a_job(total: int = 3) -> Job:
    return Job(id="j", admin="kim", what="Delete", begun_at=NOW, total=total)


async def test_one_that_is_refused_stops_no_other() -> None:
    """An admin with a thousand clients, one of which somebody else deleted meanwhile."""
    job = a_job()

    async def command(client: str) -> str:
        if client == "b":
            raise Refused(404, "client_not_found", "There is none.")
        return "log-aaaaaaaa-1"

    await jobs.for_each(job, ["a", "b", "c"], command)
    assert (job.done, job.failed, job.left) == (2, 1, 0)
    assert [(each.client, each.code) for each in job.failures] == [("b", "client_not_found")]


async def test_what_is_away_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An admin whose register is just being started anew."""
    monkeypatch.setattr(jobs, "RETRY_SECONDS", 0.0)
    tries = 0

    async def command(client: str) -> str:
        nonlocal tries
        tries += 1
        if tries < jobs.TRIES:
            raise Away("register", "ConnectError")
        return "there"

    job = a_job(1)
    await jobs.for_each(job, ["a"], command)
    assert (job.done, job.failed, job.position) == (1, 0, "there")


async def test_an_admin_has_one_job_at_a_time_and_another_can_stop_it() -> None:
    """An admin who clicked twice; and the colleague who sees what goes wrong: what is under way is not denied."""
    ids = iter("ab")
    asked: list[str] = []
    answer = asyncio.Event()

    async def command(client: str) -> str:
        asked.append(client)
        await answer.wait()
        return f"log-aaaaaaaa-{client}"

    clients = [str(number) for number in range(100)]
    async with Jobs(new_id=lambda: next(ids), now=lambda: NOW) as kept:
        job = kept.begin("kim", "Delete", 100, lambda job: jobs.for_each(job, clients, command))
        with pytest.raises(Busy):
            kept.begin("kim", "Delete", 1, lambda _: asyncio.sleep(0))
        kept.begin("lee", "Delete", 1, lambda _: asyncio.sleep(0))
        async with asyncio.timeout(5):
            while len(asked) < jobs.CONCURRENT_COMMANDS:
                await asyncio.sleep(0)
            kept.stop(job.id, "lee")
            answer.set()
            while job.state == "running":
                await asyncio.sleep(0)
    assert (job.state, job.stopped_by) == ("stopped", "lee")
    assert (job.done, job.left, job.unsure) == (len(asked), 100 - len(asked), 0)
    assert len(asked) == jobs.CONCURRENT_COMMANDS
    assert job.position == f"log-aaaaaaaa-{max(map(int, asked))}"


async def test_what_was_under_way_when_the_console_ended_is_not_said_to_be_undone() -> None:
    """An admin whose console was restarted in the middle: what was sent may have been done."""
    begun = asyncio.Event()

    async def command(_: str) -> str:
        begun.set()
        await asyncio.Event().wait()
        return ""

    async with Jobs(new_id=lambda: "a", now=lambda: NOW) as kept:
        job = kept.begin("kim", "Delete", 3, lambda job: jobs.for_each(job, ["a", "b", "c"], command))
        await begun.wait()
        await asyncio.sleep(0)
    assert (job.state, job.done, job.unsure, job.left) == ("stopped", 0, 3, 0)


@pytest.mark.parametrize(
    ("error", "failed", "unsure"),
    [
        (Refused(404, "client_not_found", "There is none."), 1, 0),
        (Refused(500, "internal_error", "It broke."), 0, 1),
        (Away("register", "ConnectError", heard=False), 1, 0),
        (Away("register", "ReadTimeout"), 0, 1),
    ],
)
async def test_what_may_have_been_done_is_not_counted_as_failed(
    monkeypatch: pytest.MonkeyPatch, error: Exception, failed: int, unsure: int
) -> None:
    """An admin who reads the result: "not done" is said of what was not done alone."""
    monkeypatch.setattr(jobs, "RETRY_SECONDS", 0.0)

    async def command(_: str) -> str:
        raise error

    job = a_job(1)
    await jobs.for_each(job, ["a"], command)
    assert (job.done, job.failed, job.unsure, job.left) == (0, failed, unsure, 0)
    assert ("Perhaps" in job.failures[0].detail) is bool(unsure)


async def test_no_more_are_taken_than_were_typed(
    console: Console, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An admin who acts on all that match, while an attacker registers more that do."""
    meant = [await house.register(f"Meant {number}") for number in range(2)]
    await house.settled()
    gathered = jobs.gathered
    late: list[str] = []

    async def meanwhile(pages: Any, most: int) -> list[str]:
        late.append(await house.register("Meant too"))
        await house.settled()
        return await gathered(pages, most)

    monkeypatch.setattr(jobs, "gathered", meanwhile)
    form = {"all": "delete", "name": "meant", "typed": "delete 2"}
    assert "Finished: 2 done, 0 failed." in await finished(console, await console.post("/console/bulk", form))
    for client, status in ((meant[0], 410), (meant[1], 410), (late[0], 200)):
        assert (await house.ask("GET", f"/idp/v1/clients/{client}", role="idp")).status_code == status


def test_jobs_are_forgotten_after_an_hour() -> None:
    """The console's memory."""
    clock = [NOW]
    kept = Jobs(new_id=lambda: str(len(kept._jobs)), now=lambda: clock[0])
    for number in range(3):
        job = a_job()
        job.id, job.ended_at = str(number), NOW
        kept._jobs[job.id] = job
    clock[0] += jobs.KEPT + timedelta(seconds=1)
    kept._forget()
    assert not kept._jobs


async def finished(console: Console, answer: httpx.Response) -> str:
    """The job's page, once it has ended."""
    async with asyncio.timeout(30):
        while True:
            page = unescape((await console.get(answer.headers["location"])).text)
            if "data-live" not in page:
                return page
            await asyncio.sleep(0.02)


async def test_selected_clients_are_deleted_after_the_word_was_typed(console: Console, house: House) -> None:
    """An admin who ticked two of three."""
    first, second, third = [await house.register(f"A{number}") for number in range(3)]
    grant = await house.grant(first)
    page = unescape((await console.get(f"/console/bulk?act=delete&select={first}&select={second}")).text)
    assert "Delete 2 clients" in page
    assert "1 active grant" in page
    form = {"act": "delete", "select": [first, second], "reason": "policy"}
    assert "Nothing was done" in (await console.post("/console/bulk", form | {"typed": "delete 1"}, answers=400)).text
    assert (await house.ask("GET", f"/idp/v1/clients/{first}/grants/{grant}", role="idp")).json()["active"]
    page = await finished(console, await console.post("/console/bulk", form | {"typed": "delete 2"}))
    assert "Finished: 2 done, 0 failed." in page
    left = unescape((await console.get("/console/clients")).text)
    assert [f"<bdi>A{number}</bdi>" in left for number in range(3)] == [False, False, True]
    assert third


async def test_all_that_match_are_meant_and_no_other(console: Console, house: House) -> None:
    """An admin after a flood: more than a page, by a filter."""
    for number in range(60):
        await house.register(f"Flood {number}", redirect_uris=["https://flood.example/cb"])
    honest = await house.register("Honest")
    form = {"all": "delete", "redirect_host": "flood.example", "typed": "delete 60"}
    page = await finished(console, await console.post("/console/bulk", form))
    assert "Finished: 60 done, 0 failed." in page
    assert (await house.ask("GET", f"/idp/v1/clients/{honest}", role="idp")).status_code == 200
    assert "No client matches" in (await console.get("/console/clients?redirect_host=flood.example")).text


async def test_failures_are_listed_with_their_reason(console: Console, house: House) -> None:
    """An admin who has to know which."""
    client = await house.register()
    form = {"act": "suspend", "select": [client, "made-up"], "typed": "suspend 2"}
    page = await finished(console, await console.post("/console/bulk", form))
    assert "1 done, 1 failed" in page
    assert "<code>made-up</code>" in page


async def test_nothing_selected_does_nothing(console: Console) -> None:
    """An admin who pressed the button first."""
    assert "None is selected" in (await console.get("/console/bulk?act=delete")).text


async def test_clean_up_shows_first_and_spares_what_came_into_use(console: Console, house: House) -> None:
    """Users of a client that was idle until a minute ago."""
    idle, used = await house.register("Idle"), await house.register("Used")
    await house.settled()
    page = unescape((await console.get("/console/stale-clients?unused_for=0s")).text)
    assert "<bdi>Idle</bdi>" in page
    assert "type “delete 2”" in page
    form = {"unused_for": "0s", "count": "2", "typed": "delete 2"}
    page = await finished(console, await console.post("/console/stale-clients", form))
    assert "Finished: 2 done, 0 failed." in page
    for each in (idle, used):
        assert (await house.ask("GET", f"/idp/v1/clients/{each}", role="idp")).status_code == 410
