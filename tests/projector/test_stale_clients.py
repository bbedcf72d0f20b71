"""Clients that nobody has used for long: the dry run before they are deleted."""

from datetime import timedelta
from typing import Any

import pytest
from msgspec import structs
from nats.aio.client import Client

from projector.db import Connection
from tests.projector import given
from tests.projector.conftest import Api, caught_up

DAY = timedelta(days=1)


async def some_clients(log: Client, database: Connection) -> None:
    """Clients named after how they were last used; all but `young` were registered 200 days ago."""
    now = given.now()
    names = ("nothing", "granted", "granted lately", "extended", "used", "used lately", "paused", "gone")
    registered = [given.registered(each, at=now - 200 * DAY + timedelta(hours=n)) for n, each in enumerate(names)]

    def issued(client: str, user: str, days: int) -> Any:
        return given.issued(client, f"of {client}", user, at=now - days * DAY, lifetime=300 * DAY)

    extended = issued("extended", "u2", 150)
    await given.write(
        log,
        *registered,
        given.registered("young", at=now - 89 * DAY),
        issued("granted", "u1", 120),
        issued("granted lately", "u1", 80),
        extended,
        issued("used", "u1", 190),
        issued("used lately", "u2", 190),
        issued("paused", "u3", 180),
        issued("gone", "u3", 150),
        structs.replace(given.extended(extended, 12, 20 * DAY), at=now - 30 * DAY),
        given.suspended("paused"),
        given.deleted("gone"),
    )
    await given.write(
        log,
        given.used(("used", "of used"), at=now - 100 * DAY),
        given.used(("used lately", "of used lately"), at=now - DAY),
        given.used(("paused", "of paused"), at=now - 195 * DAY),
    )
    await caught_up(database, log)


STALE = ["nothing", "paused", "granted", "used"]


@pytest.fixture
async def lists(log: Client, api: Api, projected: None, database: Connection) -> Api:
    """The read API over `some_clients`."""
    await some_clients(log, database)
    return api


async def test_stale_is_what_nobody_used_granted_or_registered_since(lists: Api) -> None:
    """Users: nothing that anybody uses is ever on the list that is deleted by."""
    page = await lists.get("/admin/v1/stale-clients", unused_for="90d", count="true")
    assert [each["client_id"] for each in page["items"]] == STALE
    assert (page["total"], page["active_grants"], page["users"]) == (4, 2, 1)
    items = {each["client_id"]: each for each in page["items"]}
    assert items["nothing"]["last_used_at"] == items["nothing"]["created_at"]
    assert items["used"]["last_used_at"] == items["used"]["last_activity_at"]
    (grant,) = (await lists.get("/admin/v1/clients/granted/grants"))["items"]
    assert items["granted"]["last_used_at"] == grant["issued_at"]
    (grant,) = (await lists.get("/admin/v1/clients/paused/grants", status="suspended"))["items"]
    assert (items["paused"]["last_used_at"], items["paused"]["status"]) == (grant["issued_at"], "suspended")
    for each in page["items"]:
        assert each.pop("last_used_at") < page["unused_since"]
        assert each == item_of(await lists.get("/admin/v1/clients", status=each["status"]), each["client_id"])


def item_of(page: dict[str, Any], client_id: str) -> dict[str, Any]:
    (item,) = (each for each in page["items"] if each["client_id"] == client_id)
    found: dict[str, Any] = item
    return found


@pytest.mark.parametrize(
    ("unused_for", "expected"),
    [
        ("20w", ["nothing", "paused"]),
        ("170d", ["nothing", "paused"]),
        ("4704h", ["nothing"]),
        ("3650d", []),
        ("87d", [*STALE, "young"]),
        ("1s", ["nothing", "paused", "granted", "used", "young", "granted lately", "extended", "used lately"]),
    ],
)
async def test_the_length_of_time_is_what_the_unit_says(unused_for: str, expected: list[str], lists: Api) -> None:
    """Admins: a day is never taken for a week."""
    page = await lists.get("/admin/v1/stale-clients", unused_for=unused_for)
    assert [each["client_id"] for each in page["items"]] == expected


async def test_all_pages_of_a_list_are_about_the_same_moment(log: Client, lists: Api, database: Connection) -> None:
    """Admins who page through: each client is there once, and one that came into use meanwhile is not."""
    whole = await lists.get("/admin/v1/stale-clients", unused_for="90d")
    pages = [await lists.get("/admin/v1/stale-clients", unused_for="90d", limit=1)]
    assert pages[0]["unused_since"] > whole["unused_since"]
    assert "total" not in pages[0]
    while "next_cursor" in pages[-1]:
        await given.write(log, given.registered(f"new {len(pages)}", at=given.now() - 400 * DAY))
        if len(pages) == 2:
            await given.write(log, given.used(("used", "of used")))
        await caught_up(database, log)
        cursor = pages[-1]["next_cursor"]
        pages.append(await lists.get("/admin/v1/stale-clients", unused_for="90d", limit=1, cursor=cursor))
    assert [item["client_id"] for each in pages for item in each["items"]] == ["nothing", "paused", "granted"]
    assert {each["unused_since"] for each in pages} == {pages[0]["unused_since"]}
    problem = await lists.get("/admin/v1/stale-clients", unused_for="91d", cursor=pages[0]["next_cursor"], answers=400)
    assert problem["detail"].startswith("cursor: ")
    await lists.get("/admin/v1/clients", cursor=pages[0]["next_cursor"], answers=400)


async def test_a_list_says_which_positions_it_holds_for(lists: Api) -> None:
    """Users: what came into use after the list was made is spared by the command that takes these positions."""
    answer = await lists.ask("/admin/v1/stale-clients", unused_for="90d")
    status = await lists.get("/admin/v1/status")
    page = answer.json()
    assert page["as_of"] == answer.headers["Grantbook-Position"] == status["read_models"]["log"]["position"]
    assert page["activity_as_of"] == status["read_models"]["activity"]["position"]


@pytest.mark.parametrize(
    "unused_for",
    [
        "",
        "90",
        "d",
        "-1d",
        "+1d",
        "1.5d",
        "90 d",
        "90D",
        "90d\n",
        "1y",
        "3651d",
        "522w",
        "999999999w",
        "9" * 30 + "s",
        "٣d",
    ],
)
async def test_a_length_of_time_that_cannot_be_meant_is_refused(unused_for: str, api: Api) -> None:
    """Admins: a slip of the finger never makes a list of everything."""
    problem = await api.get("/admin/v1/stale-clients", unused_for=unused_for, answers=400)
    assert problem["code"] == "invalid_parameter"
    assert "unused_for" in problem["detail"]


async def test_for_how_long_must_be_said(api: Api) -> None:
    """Admins: there is no default by which anything is deleted."""
    problem = await api.get("/admin/v1/stale-clients", answers=400)
    assert (problem["code"], "unused_for" in problem["detail"]) == ("invalid_parameter", True)
