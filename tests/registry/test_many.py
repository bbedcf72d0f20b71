"""Deleting many clients at once: families, and lists of clients that nobody used."""

from datetime import UTC, datetime
from typing import Any

import pytest

from appraisal.families import family
from grantbook.sdk.log import LogReader
from registry import metadata
from tests.registry.over_http import GRANT, PUBLIC, Http, as_, registered

CLAUDE = {"client_name": "Claude", "redirect_uris": ["http://localhost:1/callback"]}
FAMILY = family(metadata.check(PUBLIC | CLAUDE))


async def status_of(http: Http, body: dict[str, Any]) -> int:
    return (await http.get(f"/idp/v1/clients/{body['client_id']}", headers=as_("idp"))).status_code


async def test_a_family_is_deleted_whole_and_no_other_client(http: Http) -> None:
    """Admins: 42 rows that are one software go together, each by its own event; a second click changes nothing."""
    ports = [PUBLIC | CLAUDE | {"redirect_uris": [f"http://localhost:{port}/callback"]} for port in range(5_000, 5_042)]
    members = [await registered(http, **each) for each in ports]
    other = await registered(http, client_name="Other")
    await http.delete(f"/admin/v1/clients/{members[0]['client_id']}", headers=as_("admin"))
    path = f"/admin/v1/families/{FAMILY}/delete"
    answer = await http.post(path, json={"reason": "policy"}, headers=as_("admin"))
    assert answer.status_code == 200
    assert answer.json() == {"family": FAMILY, "deleted": 42}
    assert answer.headers["grantbook-position"].startswith("log-")
    assert {await status_of(http, each) for each in members} == {410}
    assert await status_of(http, other) == 200
    again = await http.post(path, headers=as_("admin"))
    assert again.json() == answer.json()
    assert again.headers["grantbook-position"] == answer.headers["grantbook-position"]


async def test_a_family_that_never_was_is_not_found(http: Http) -> None:
    """Admins: a typing error deletes nothing, and says so."""
    answer = await http.post("/admin/v1/families/000000000000/delete", headers=as_("admin"))
    assert answer.status_code == 404
    assert answer.json()["code"] == "family_not_found"
    await registered(http)
    assert (await http.post("/admin/v1/families/0/delete", headers=as_("admin"))).status_code == 404


async def positions(http: Http) -> dict[str, str]:
    """What a list of stale clients gives, as of now."""
    log = await http.post("/admin/v1/clients", json=PUBLIC, headers=as_("admin"))
    activity = await http.post("/idp/v1/activity", json={"activity": []}, headers=as_("idp"))
    return {
        "as_of": log.headers["grantbook-position"],
        "activity_as_of": activity.headers["grantbook-position"],
    }


async def test_just_the_listed_clients_are_deleted_but_for_those_used_since(http: Http) -> None:
    """Admins: what they saw in the dry run is what goes; what came into use meanwhile stays. Users of those."""
    stale, granted, used, unlisted, gone = [await registered(http, client_name=str(number)) for number in range(5)]
    path = f"/idp/v1/clients/{used['client_id']}/grants"
    grant = (await http.post(path, json=GRANT, headers=as_("idp"))).json()
    await http.delete(f"/admin/v1/clients/{gone['client_id']}", headers=as_("admin"))
    seen = await positions(http)
    await http.post(f"/idp/v1/clients/{granted['client_id']}/grants", json=GRANT, headers=as_("idp"))
    use = {"client_id": used["client_id"], "grant_id": grant["grant_id"], "kind": "tool_call"}
    report = {"activity": [use | {"at": datetime.now(UTC).isoformat()}]}
    assert (await http.post("/idp/v1/activity", json=report, headers=as_("idp"))).json()["recorded"] == 1
    asked = [each["client_id"] for each in (stale, granted, used, gone)] + ["never-was"]
    answer = await http.post(
        "/admin/v1/stale-clients/delete", json=seen | {"client_ids": [*asked, asked[0]]}, headers=as_("admin")
    )
    assert answer.status_code == 200
    assert answer.json() == {
        "deleted": 2,
        "left": [
            {"client_id": granted["client_id"], "code": "in_use"},
            {"client_id": used["client_id"], "code": "in_use"},
            {"client_id": "never-was", "code": "client_not_found"},
        ],
    }
    assert [await status_of(http, each) for each in (stale, granted, used, unlisted)] == [410, 200, 200, 200]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"client_ids": ["a"]},
        {"client_ids": [], "as_of": "log-00000000-1", "activity_as_of": "activity-00000000-1"},
        {"client_ids": ["a"], "as_of": "x", "activity_as_of": "activity-00000000-1"},
        {"client_ids": ["a"], "as_of": "activity-00000000-1", "activity_as_of": "activity-00000000-1"},
        {"client_ids": ["a"] * 1_001, "as_of": "log-00000000-1", "activity_as_of": "activity-00000000-1"},
        {"client_ids": ["a"], "as_of": "log-00000000-1", "activity_as_of": "activity-00000000-1", "reason": "x"},
    ],
)
async def test_a_list_that_cannot_be_understood_deletes_nothing(
    http: Http, reader: LogReader, body: dict[str, Any]
) -> None:
    """Admins: what is wrong is named."""
    answer = await http.post("/admin/v1/stale-clients/delete", json=body, headers=as_("admin"))
    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid_parameter"
    assert (await reader.state()).last == 0


async def test_a_list_of_another_log_is_too_old(http: Http) -> None:
    """Admins: positions of a log that was replaced say nothing about this one."""
    body = {"client_ids": ["a"], "as_of": "log-00000000-1", "activity_as_of": "activity-00000000-1"}
    answer = await http.post("/admin/v1/stale-clients/delete", json=body, headers=as_("admin"))
    assert answer.status_code == 409
    assert answer.json()["code"] == "list_too_old"
