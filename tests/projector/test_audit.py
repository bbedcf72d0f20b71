"""What auditors read: the events of the log, and a client as it was."""

import json
from typing import Any

from nats.aio.client import Client

from grantbook import subjects
from projector.db import Connection
from tests.projector import given
from tests.projector.conftest import Api, caught_up

NDJSON = {"Accept": "application/x-ndjson"}


async def story(log: Client, database: Connection) -> list[str]:
    """Two clients and what happened to them. The positions."""
    sequences = await given.write(
        log,
        given.registered("c1"),
        given.registered("c2"),
        given.issued("c1", "g1", "u1"),
        given.issued("c2", "g2", "u1"),
        given.revoked("c1", "g1", "u1"),
        given.cut_off("u1"),
        given.deleted("c2"),
    )
    await given.write(log, given.used(("c1", "g1")))
    await caught_up(database, log)
    return [await given.position(log, subjects.LOG, each) for each in sequences]


async def types(api: Api, **query: Any) -> list[str]:
    return [each["type"] for each in (await api.audit("/audit/v1/events", **query))["items"]]


async def test_events_are_read_in_the_order_of_the_log(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """Auditors: everything that was decided, once, as it stands in the log, and nothing else."""
    positions = await story(log, database)
    page = await api.audit("/audit/v1/events")
    assert [each["position"] for each in page["items"]] == positions
    assert "next_cursor" not in page
    first = page["items"][0]
    stored = await log.jetstream().get_msg(subjects.LOG, 1)
    assert stored.data is not None
    assert stored.headers is not None
    assert first["data"] == json.loads(stored.data)
    assert (first["id"], first["actor"]) == (stored.headers["ce-id"], {"kind": "agent"})
    pages = [await api.audit("/audit/v1/events", limit=2)]
    while "next_cursor" in pages[-1]:
        pages.append(await api.audit("/audit/v1/events", limit=2, cursor=pages[-1]["next_cursor"]))
    assert [item for each in pages for item in each["items"]] == page["items"]


async def test_events_are_found_by_whom_they_are_about(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """Auditors: the filters find all that is about someone."""
    positions = await story(log, database)
    items = (await api.audit("/audit/v1/events"))["items"]
    assert await types(api, client_id="c1") == ["client.registered", "grant.issued", "grant.revoked"]
    assert await types(api, user_id="u1") == ["grant.issued"] * 2 + ["grant.revoked", "user.grants_revoked"]
    assert await types(api, grant_id="g2") == ["grant.issued"]
    assert await types(api, type=["client.deleted", "grant.revoked"]) == ["grant.revoked", "client.deleted"]
    assert await types(api, after=positions[4]) == ["user.grants_revoked", "client.deleted"]
    assert await types(api, client_id="c2", user_id="u1") == ["grant.issued"]
    third = items[2]["recorded_at"]
    last = items[-1]["recorded_at"]
    assert await types(api, from_=third) == [each["type"] for each in items if each["recorded_at"] >= third]
    assert await types(api, to=third) == [each["type"] for each in items if each["recorded_at"] < third]
    assert await types(api, from_=third, to=third) == []
    assert await types(api, from_=last, after=positions[-1]) == []
    for query in ({"type": "grant.borrowed"}, {"after": "7"}, {"after": "log-00000000-1"}, {"from": "monday"}):
        problem = await api.audit("/audit/v1/events", answers=400, **query)
        assert problem["detail"].startswith(next(iter(query)))


async def test_all_events_are_streamed_as_lines(log: Client, api: Api, projected: None, database: Connection) -> None:
    """Auditors who take everything with them: one event a line, however many there are."""
    await given.write(log, given.registered("c0"), *(given.issued("c0", f"g{n}", "u1") for n in range(2_100)))
    await caught_up(database, log)
    answer = await api.ask("/audit/v1/events", role="auditor", headers=NDJSON)
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(each) for each in answer.text.splitlines()]
    assert [each["position"].rpartition("-")[2] for each in lines] == [str(n) for n in range(1, 2_102)]
    answer = await api.ask("/audit/v1/events", role="auditor", headers=NDJSON, type="client.registered")
    assert json.loads(answer.text) == lines[0]


async def test_a_client_is_told_as_it_was_at_a_position_and_at_a_time(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """Auditors: what stood when something happened, from the log itself."""
    positions = await story(log, database)
    items = (await api.audit("/audit/v1/events"))["items"]
    before = await api.audit("/audit/v1/clients/c1", as_of=positions[3])
    assert [each["status"] for each in before["grants"]] == ["active"]
    assert before["as_of"] == positions[3]
    at = await api.audit("/audit/v1/clients/c1", as_of=items[4]["recorded_at"])
    now = await api.audit("/audit/v1/clients/c1")
    for each in (at, now):
        assert [(grant["status"], grant["ended_reason"]) for grant in each["grants"]] == [("revoked", "admin")]
    deleted = await api.audit("/audit/v1/clients/c2", at_least=positions[-1])
    assert deleted["status"] == "deleted"
    await api.audit("/audit/v1/clients/c2", as_of=positions[0], answers=404)
    await api.audit("/audit/v1/clients/nobody", answers=404)
    for wrong in ("tomorrow", "log-00000000-1", positions[0].rpartition("-")[0] + "-999"):
        problem = await api.audit("/audit/v1/clients/c1", as_of=wrong, answers=400)
        assert problem["detail"].startswith("as_of: ")


async def test_the_read_model_and_the_log_agree_on_every_grant(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """Everyone: two ways to the same answer give the same answer."""
    await story(log, database)
    for client in ("c1", "c2"):
        listed = (await api.get(f"/admin/v1/clients/{client}/grants", status="any", sort="issued_at"))["items"]
        told = (await api.audit(f"/audit/v1/clients/{client}"))["grants"]
        shared = ("grant_id", "status", "ended_at", "ended_reason", "expires_at", "issued_at", "scopes")
        assert [[each.get(name) for name in shared] for each in listed] == [
            [each.get(name) for name in shared] for each in told
        ]
