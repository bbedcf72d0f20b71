"""What the read API tells of days: how often a client was used, and what happened in the register."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from nats.aio.client import Client

from projector import projections
from projector.db import Connection
from projector.run import Sources
from tests.projector import given as written
from tests.projector.conftest import Api, caught_up, projecting
from tests.projector.test_run import age_out
from tests.projector.test_verify import compared

DAY = timedelta(days=1)


async def test_use_is_told_by_day(log: Client, api: Api, projected: None, database: Connection) -> None:
    """Admins: whether an agent is in use, or was once, can be seen at a glance."""
    now = written.now()
    await written.write(log, *(written.registered(each) for each in ("c1", "c2", "idle")))
    await written.write(log, written.issued("c1", "g1", "u1"), written.issued("c2", "g2", "u1"))
    await written.write(
        log,
        written.used(("c1", "g1"), at=now - 13 * DAY, count=3),
        written.used(("c1", "g1"), at=now - 14 * DAY, count=5),
        written.used(("c1", "g1"), ("c2", "g2"), at=now - DAY, count=2),
        written.used(("c1", "g1"), at=now),
        written.used(("c1", "g1"), at=now),
        written.used(("c1", "g1"), at=now - 91 * DAY, count=7),
    )
    await caught_up(database, log)
    page = await api.get("/admin/v1/clients", activity_days=14)
    used = {each["client_id"]: each["activity"] for each in page["items"]}
    assert used == {"c1": [3, *[0] * 11, 2, 2], "c2": [*[0] * 12, 2, 0], "idle": [0] * 14}
    assert (await api.get("/admin/v1/clients/c1", activity_days=15))["activity"] == [5, 3, *[0] * 11, 2, 2]
    assert "activity" not in (await api.get("/admin/v1/clients"))["items"][0]
    for days in ("0", "91", "many"):
        await api.get("/admin/v1/clients", activity_days=days, answers=400)
    assert await database.fetchval("SELECT count(*) FROM client_days WHERE uses = 7") == 0


async def test_days_that_are_long_over_are_forgotten(
    log: Client, sources: Sources, database: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operators: the table does not grow for ever. What is left is what the log would give."""
    monkeypatch.setattr(projections, "DAYS_OF_ACTIVITY", DAY)
    await written.write(log, written.registered("c1"), written.issued("c1", "g1", "u1"))
    await written.write(log, written.used(("c1", "g1"), at=written.now() - DAY))
    await database.execute("INSERT INTO client_days VALUES ($1, 'c1', 1)", (written.now() - 3 * DAY).date())
    async with projecting(database_url, sources):
        await caught_up(database, log)
    assert await database.fetchval("SELECT count(*) FROM client_days") == 1
    assert await compared(database_url, sources) == {}


async def test_a_day_that_differs_from_the_log_is_found(
    log: Client, sources: Sources, database: Connection, database_url: str
) -> None:
    """Auditors: these tables are compared with the log like all others, as far as the activity is kept."""
    async with projecting(database_url, sources):
        await written.write(log, written.registered("c1"), written.issued("c1", "g1", "u1"))
        await written.write(log, written.used(("c1", "g1")), written.used(("c1", "g1")))
        await caught_up(database, log)
    assert await compared(database_url, sources) == {}
    await database.execute("UPDATE client_days SET uses = 5")
    await database.execute("UPDATE hours SET events = 5 WHERE type = 'grant.issued'")
    assert await compared(database_url, sources) == {
        (table, side): 1 for table in ("hours", "client_days") for side in ("live", "log")
    }
    await database.execute("UPDATE hours SET events = 1")
    await age_out(log, before=2)
    assert await compared(database_url, sources) == {}


async def test_what_happened_is_told_by_day_and_by_hour(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """Operators: a flood of registrations, or of revocations, stands out."""
    await written.write(
        log,
        *(written.registered(f"c{number}") for number in range(5)),
        written.issued("c1", "g1", "u1"),
        written.issued("c1", "g2", "u2"),
        written.revoked("c1", "g1"),
        written.cut_off("u2"),
        written.suspended("c2"),
        written.resumed("c2"),
        written.deleted("c3"),
    )
    await caught_up(database, log)
    happened = {"registered": 5, "granted": 2, "revoked": 1, "users_cut_off": 1, "suspended": 1, "deleted": 1}
    by_day = await api.get("/admin/v1/trends")
    assert by_day["by"] == "day"
    assert len(by_day["items"]) == 30
    assert counted(by_day["items"][-2:]) == counted(by_day["items"]) == happened
    starts = [datetime.fromisoformat(each["since"]) for each in by_day["items"]]
    assert starts == [starts[0] + number * DAY for number in range(30)]
    assert starts[-1] <= datetime.now(UTC) < starts[-1] + 2 * DAY
    by_hour = await api.get("/admin/v1/trends", days=2, by="hour")
    assert counted(by_hour["items"]) == happened
    assert 25 <= len(by_hour["items"]) <= 48
    wrong: list[dict[str, Any]] = [{"days": "0"}, {"days": "366"}, {"days": "15", "by": "hour"}, {"by": "week"}]
    for query in wrong:
        await api.get("/admin/v1/trends", answers=400, **query)


def counted(items: list[dict[str, Any]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in items:
        total.update({name: value for name, value in each.items() if name != "since"})
    return dict(total)
