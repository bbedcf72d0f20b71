"""Lists of the read API: filters, sorts, pages, positions, and what is refused."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nats.aio.client import Client

from grantbook import subjects
from grantbook.sealed import user_key_id
from projector import cursors
from projector.cursors import InvalidCursor, Place
from projector.db import Connection
from tests.projector import given as written
from tests.projector.conftest import TOKENS, Api, caught_up

KEY = b"a key of cursors"
HOUR = timedelta(hours=1)


async def some_clients(log: Client, database: Connection) -> None:
    """Clients of every kind that filters tell apart; `old` was registered and used long before the others."""
    now = written.now()
    metadata, registered = written.metadata, written.registered
    native = metadata("Claude Code", redirect_uris=("http://127.0.0.1:3000/cb", "com.example.app:/cb"))
    web = metadata(
        "ChatGPT Connector",
        redirect_uris=("https://Chat.Example.COM/aip/cb?x=%5C",),
        grant_types=("authorization_code", "refresh_token"),
    )
    await written.write(
        log,
        registered("old", metadata("ÄLTER agent", redirect_uris=("https://example.com/cb",)), at=now - 100 * HOUR),
        registered("native", native, at=now - 4 * HOUR),
        registered("web", web, at=now - 3 * HOUR),
        registered("cimd", metadata(None), source="cimd", at=now - 2 * HOUR),
        registered("paused", metadata("Paused"), at=now - HOUR),
        registered("gone", metadata("Gone"), at=now),
        written.issued("old", "g1", "u1"),
        written.issued("web", "g2", "u1"),
        written.issued("web", "g3", "u2"),
        written.issued("web", "g4", "u2"),
        written.issued("web", "g8", "u2"),
        written.issued("paused", "g5", "u1"),
        written.issued("gone", "g6", "u1"),
        written.issued("native", "g7", "u3"),
        written.suspended("paused"),
        written.deleted("gone"),
        written.revoked("web", "g8"),
        written.cut_off("u3"),
    )
    await written.write(log, written.used(("old", "g1"), at=now - 50 * HOUR), written.used(("web", "g2"), at=now))
    await caught_up(database, log)


ALL = ["gone", "paused", "cimd", "web", "native", "old"]


FILTERS: tuple[tuple[dict[str, Any], list[str]], ...] = (
    ({"status": "active"}, ["cimd", "web", "native", "old"]),
    ({"status": "suspended"}, ["paused"]),
    ({"status": "deleted"}, ["gone"]),
    ({}, ALL),
    ({"name": "CLAUDE"}, ["native"]),
    ({"name": "älter"}, ["old"]),
    ({"name": "%"}, []),
    ({"name": ""}, ALL),
    ({"redirect_uri": "/aip/"}, ["web"]),
    ({"redirect_uri": "%5C"}, ["web"]),
    ({"redirect_uri": "3000/cb\ncom.example"}, []),
    ({"name": "_laude"}, []),
    ({"name": "\\"}, []),
    ({"redirect_uri": "_"}, []),
    ({"source": "dcr", "grant_type": "refresh_token"}, ["web"]),
    ({"grant_type": "password"}, []),
    ({"redirect_host": "example.com"}, ["web", "old"]),
    ({"redirect_host": "CHAT.example.com"}, ["web"]),
    ({"redirect_host": "xample.com"}, []),
    ({"redirect_host": "127.0.0.1"}, ["native"]),
    ({"redirect_host": "0.0.1"}, []),
    ({"grant_type": "refresh_token"}, ["web"]),
    ({"grant_type": ["refresh_token", "authorization_code"]}, ["web"]),
    ({"source": "cimd"}, ["cimd"]),
    ({"source": "manual"}, []),
    ({"flag": "private_use_scheme"}, ["native"]),
    ({"flag": ["private_use_scheme", "loopback_only"]}, []),
    ({"created_after": -5, "created_before": -2.5}, ["web", "native"]),
    ({"last_activity_before": -1}, ["gone", "paused", "cimd", "native", "old"]),
    ({"has_active_grants": "true"}, ["web", "old"]),
    ({"has_active_grants": "true", "status": "active"}, ["web", "old"]),
    ({"has_active_grants": "true", "status": "suspended"}, []),
    ({"has_active_grants": "true", "status": "deleted", "sort": "-active_grants"}, []),
    ({"has_active_grants": "true", "sort": "created_at"}, ["old", "web"]),
    ({"has_active_grants": "true", "created_after": -5, "created_before": -2.5}, ["web"]),
    ({"has_active_grants": "true", "redirect_host": "example.com", "sort": "client_name"}, ["web", "old"]),
    ({"has_active_grants": "true", "grant_type": "refresh_token"}, ["web"]),
    ({"has_active_grants": "false"}, ["gone", "paused", "cimd", "native"]),
    ({"sort": "created_at"}, ALL[::-1]),
    ({"sort": "client_name"}, ["cimd", "web", "native", "gone", "paused", "old"]),
    ({"sort": "-client_name"}, ["old", "paused", "gone", "native", "web", "cimd"]),
    ({"sort": "-last_activity_at"}, ["web", "old", "gone", "paused", "cimd", "native"]),
    ({"sort": "last_activity_at"}, ["native", "cimd", "paused", "gone", "old", "web"]),
    ({"sort": "-active_grants"}, ["web", "old", "gone", "paused", "cimd", "native"]),
    ({"revoked_after": -1}, ["gone", "paused", "web", "native"]),
    ({"revoked_after": 1}, []),
    ({"nonsense": "1"}, ALL),
    ({"sort": "-active_grants", "name": "a", "status": "active"}, ["web", "old", "native"]),
)
"""What is asked, and which clients that gives."""


async def test_each_filter_and_sort_gives_just_these_clients(lists: Api, subtests: pytest.Subtests) -> None:
    """Admins: a filter that lets one too many or too few through leads them to cut off the wrong client."""
    now = written.now()
    for query, expected in FILTERS:
        with subtests.test(query=query):
            asked: dict[str, Any] = {
                name: (now + timedelta(hours=value)).isoformat() if isinstance(value, int | float) else value
                for name, value in ({"status": "any"} | query).items()
            }
            page = await lists.get("/admin/v1/clients", count="true", **asked)
            assert [each["client_id"] for each in page["items"]] == expected
            assert page["total"] == len(expected)
            paged = await everything(lists, "/admin/v1/clients", limit=1, **asked)
            assert [each["client_id"] for each in paged] == expected


@pytest.fixture
async def lists(log: Client, api: Api, projected: None, database: Connection) -> Api:
    """The read API over `some_clients`."""
    await some_clients(log, database)
    return api


async def everything(api: Api, path: str, **query: Any) -> list[dict[str, Any]]:
    """All items, page by page. Going back from the last page shows the same pages again."""
    pages = [await api.get(path, **query)]
    while "next_cursor" in pages[-1]:
        pages.append(await api.get(path, cursor=pages[-1]["next_cursor"], **query))
    page = pages[-1]
    before: list[Any] = []
    while "previous_cursor" in page:
        page = await api.get(path, cursor=page["previous_cursor"], **query)
        before.insert(0, page["items"])
    assert before == [each["items"] for each in pages[:-1]]
    return [item for each in pages for item in each["items"]]


async def test_active_grants_are_counted_as_they_are_listed(lists: Api) -> None:
    """Admins: the number beside a client is the number of rows behind it."""
    for client in (await lists.get("/admin/v1/clients", status="any"))["items"]:
        page = await lists.get(f"/admin/v1/clients/{client['client_id']}/grants", count="true")
        assert client["active_grants"] == page["total"] == len(page["items"])
        assert client["active_users"] == len({each["user_id"] for each in page["items"]})
    web = await lists.get("/admin/v1/clients/web")
    assert (web["active_grants"], web["active_users"]) == (3, 2)


async def test_status_tells_positions_and_totals(lists: Api) -> None:
    """Operators: how far everything is, at a glance."""
    status = await lists.get("/admin/v1/status")
    log = status["read_models"]["log"]
    assert log["position"] == status["log_position"]
    assert status["read_models"]["activity"]["position"] == status["activity_position"]
    assert (log["lag_events"], log["lag_seconds"], "halted" in log) == (0, 0.0, False)
    assert status["totals"] == {
        "clients": 6,
        "active_clients": 4,
        "suspended_clients": 1,
        "deleted_clients": 1,
        "grants": 8,
        "active_grants": 4,
        "users": 3,
    }


@pytest.mark.parametrize(
    "sort", ["issued_at", "-issued_at", "-last_activity_at", "expires_at", "username", "-username"]
)
async def test_paging_by_any_sort_gives_every_grant_once(
    sort: str, log: Client, api: Api, projected: None, database: Connection
) -> None:
    """Admins who page through equal names and times: no grant is skipped, and none is shown twice."""
    at = written.now()
    await written.write_keys(log, user_key_id("u0"), user_key_id("u1"))
    grants = [written.issued("c1", f"g{n}", f"u{n % 3}", at=at + HOUR * (n % 4)) for n in range(30)]
    await written.write(log, written.registered("c1"), *grants)
    await written.write(log, *(written.used(("c1", f"g{n}"), at=at) for n in range(0, 30, 2)))
    await caught_up(database, log)
    whole = (await api.get("/admin/v1/clients/c1/grants", sort=sort, limit=200))["items"]
    assert len({each["grant_id"] for each in whole}) == 30
    member = sort.removeprefix("-")
    said = [each.get(member) or "" for each in whole]
    assert said == sorted(said, reverse=sort.startswith("-"))
    assert await everything(api, "/admin/v1/clients/c1/grants", sort=sort, limit=7) == whole
    of_user = await everything(api, "/admin/v1/users/u1/grants", sort=sort, limit=3)
    assert [each["grant_id"] for each in of_user] == [each["grant_id"] for each in whole if each["user_id"] == "u1"]


async def test_paging_neither_skips_nor_repeats_while_clients_register(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """Admins who page through a busy register see each client that was there when they began, once."""
    await written.write(log, *(written.registered(f"c{n:02}") for n in range(20)))
    await caught_up(database, log)
    seen: list[str] = []
    page = await api.get("/admin/v1/clients", limit=3)
    while True:
        seen += [each["client_id"] for each in page["items"]]
        if "next_cursor" not in page:
            break
        await written.write(log, written.registered(f"new{len(seen)}"), written.deleted(seen[0]))
        await caught_up(database, log)
        page = await api.get("/admin/v1/clients", limit=3, cursor=page["next_cursor"])
    assert seen == [f"c{n:02}" for n in reversed(range(20))]


async def test_a_family_is_what_registered_alike(log: Client, api: Api, projected: None, database: Connection) -> None:
    """Admins: a thousand installations of one agent are one line."""
    ports = [written.metadata("Claude Code", redirect_uris=(f"http://localhost:{port}/cb",)) for port in (1, 2, 3)]
    await written.write(
        log,
        *(written.registered(f"c{n}", each) for n, each in enumerate(ports)),
        written.registered("other"),
        written.issued("c0", "g1", "u1"),
        written.issued("c1", "g2", "u1"),
        written.deleted("c1"),
    )
    await caught_up(database, log)
    first = await api.get("/admin/v1/families", limit=1, count="true")
    assert first["total"] == 2
    (family,) = first["items"]
    assert (family["client_name"], family["clients"], family["active_grants"]) == ("Claude Code", 2, 1)
    assert family["redirect_uris"] == ["http://localhost:1/cb"]
    (other,) = (await api.get("/admin/v1/families", limit=1, cursor=first["next_cursor"]))["items"]
    assert (other["client_name"], other["clients"]) == ("Agent", 1)
    of_family = await api.get("/admin/v1/clients", family=family["family"], status="any")
    assert {each["client_id"] for each in of_family["items"]} == {"c0", "c1", "c2"}


NOT_UNDERSTOOD: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("/admin/v1/clients", {"limit": "0"}, "limit"),
    ("/admin/v1/clients", {"limit": "201"}, "limit"),
    ("/admin/v1/clients", {"limit": "many"}, "limit"),
    ("/admin/v1/clients", {"sort": "client_id; DROP TABLE clients"}, "sort"),
    ("/admin/v1/clients", {"sort": "--created_at"}, "sort"),
    ("/admin/v1/clients", {"status": "expired"}, "status"),
    ("/admin/v1/clients", {"source": "dns"}, "source"),
    ("/admin/v1/clients", {"created_after": "yesterday"}, "created_after"),
    ("/admin/v1/clients", {"created_after": "2026-01-01T00:00:00"}, "created_after"),
    ("/admin/v1/clients", {"has_active_grants": "perhaps"}, "has_active_grants"),
    ("/admin/v1/clients", {"name": "a\0b"}, "name"),
    ("/admin/v1/clients", {"redirect_uri": "x" * 2_049}, "redirect_uri"),
    ("/admin/v1/clients", {"flag": ["x"] * 51}, "flag"),
    ("/admin/v1/clients", {"flag": "odd"}, "flag"),
    ("/admin/v1/clients", {"cursor": "AAAA"}, "cursor"),
    ("/admin/v1/clients", {"cursor": "ä"}, "cursor"),
    ("/admin/v1/clients", {"at_least": "soon"}, "at_least"),
    ("/admin/v1/clients", {"at_least": "log-00000000-1"}, "at_least"),
    ("/admin/v1/clients/c1/grants", {"status": "deleted"}, "status"),
    ("/admin/v1/clients/c1/grants", {"sort": "grant_id"}, "sort"),
    ("/admin/v1/users/u1/grants", {"cursor": ""}, "cursor"),
)
"""What is asked, and the parameter that is wrong."""


async def test_what_cannot_be_understood_is_refused_by_name(
    log: Client, api: Api, projected: None, database: Connection, subtests: pytest.Subtests
) -> None:
    """Callers: they are told which parameter was wrong, and never get a list that they did not ask for."""
    await written.write(log, written.registered("c1"))
    await caught_up(database, log)
    for path, query, named in NOT_UNDERSTOOD:
        with subtests.test(path=path, query=query):
            problem = await api.get(path, answers=400, **query)
            assert problem["code"] == "invalid_parameter"
            assert problem["detail"].startswith(f"{named}: ")


OF_NUMBERS = (
    ("admin", "/admin/v1/clients", "limit", "{number}"),
    ("admin", "/admin/v1/stale-clients?unused_for=1d", "limit", "{number}"),
    ("admin", "/admin/v1/stale-clients", "unused_for", "{number}d"),
    ("admin", "/admin/v1/clients", "at_least", "log-{identity}-{number}"),
    ("admin", "/admin/v1/clients", "at_least", "activity-{identity}-{number}"),
    ("auditor", "/audit/v1/events", "limit", "{number}"),
    ("auditor", "/audit/v1/events", "after", "log-{identity}-{number}"),
    ("auditor", "/audit/v1/clients/c1", "as_of", "log-{identity}-{number}"),
    ("feed", "/revocations/v1/stream", "after", "log-{identity}-{number}"),
)
"""Who asks for what, and the parameter that has a number in it."""


async def test_a_number_that_no_log_reaches_is_refused(
    log: Client, api: Api, projected: None, database: Connection, subtests: pytest.Subtests
) -> None:
    """Operators: whoever sends a number that no column holds gets an answer, and wakes nobody up."""
    await written.write(log, written.registered("c1"))
    await caught_up(database, log)
    identity = (await written.position(log, subjects.LOG, 1)).split("-")[1]
    for number in (2**63, 10**400, -1):
        for role, path, name, like in OF_NUMBERS:
            with subtests.test(path=path, name=name, number=number):
                said = like.format(identity=identity, number=number)
                asked = dict(each.split("=") for each in path.partition("?")[2].split("&") if each)
                answer = await api.ask(path.partition("?")[0], role=role, **asked | {name: said})  # type: ignore[arg-type]
                assert answer.status_code == 400, answer.text
                assert name in answer.json()["detail"]


async def test_a_cursor_of_another_order_is_refused(lists: Api) -> None:
    """Callers: a cursor that is mixed up gives an error, not a page from somewhere."""
    cursor = (await lists.get("/admin/v1/clients", limit=1))["next_cursor"]
    await lists.get("/admin/v1/clients", sort="created_at", cursor=cursor, answers=400)
    await lists.get("/admin/v1/clients/web/grants", cursor=cursor, answers=400)
    await lists.get("/admin/v1/families", cursor=cursor, answers=400)


async def test_users_are_found_by_name_and_by_id(log: Client, api: Api, projected: None, database: Connection) -> None:
    """Admins to whom somebody says a name: the user behind it is found, with what still stands."""
    await written.write_keys(log, *(user_key_id(each) for each in ("u1", "u2", "id with spaces")))
    used_at = written.now()
    await written.write(
        log,
        written.registered("c1"),
        written.registered("c2"),
        written.issued("c1", "g1", "u1", username="Ada Byron"),
        written.issued("c2", "g2", "u1", username="Ada Lovelace"),
        written.issued("c2", "g3", "u2", username="Grace"),
        written.issued("c2", "g4", "id with spaces", username="ADALBERT"),
        written.issued("c2", "g5", "erased", username="Ada too"),
        written.revoked("c1", "g1"),
        written.cut_off("nobody's"),
    )
    await written.write(log, written.used(("c2", "g2"), at=used_at))
    await caught_up(database, log)

    async def found(**query: str) -> list[str]:
        return [each["user_id"] for each in await everything(api, "/admin/v1/users", limit=1, **query)]

    assert sorted(await found(user="ada")) == ["id with spaces", "u1"]
    assert await found(user="lovelace") == ["u1"]
    assert await found(user="byron") == ["u1"], "by a name of an earlier grant"
    assert await found(user="erased") == ["erased"], "by id, though the name is erased"
    assert await found(user="nobody") == []
    page = await api.get("/admin/v1/users", count="true")
    assert page["total"] == 4
    ada = next(each for each in page["items"] if each["user_id"] == "u1")
    assert {name: ada[name] for name in ("username", "active_grants", "grants")} == {
        "username": "Ada Lovelace",
        "active_grants": 1,
        "grants": 2,
    }
    assert "last_activity_at" in ada
    odd = next(each for each in page["items"] if each["user_id"] == "id with spaces")
    assert (await api.get(f"/admin/v1/users/{odd['user_key']}/grants"))["items"][0]["grant_id"] == "g4"
    assert "username" not in next(each for each in page["items"] if each["user_id"] == "erased")


async def test_what_was_never_registered_is_not_found(lists: Api) -> None:
    """Callers: 404 says that there never was one; a user without grants is no error."""
    for path in ("/admin/v1/clients/nobody", "/admin/v1/clients/nobody/grants"):
        assert (await lists.get(path, answers=404))["code"] == "client_not_found"
    assert await lists.get("/admin/v1/users/nobody/grants", count="true") == {"items": [], "total": 0}


async def test_only_its_role_may_read(lists: Api) -> None:
    """Users: what is known of them is shown to admins and auditors alone."""
    for path, may in (("/admin/v1/clients", "admin"), ("/audit/v1/events", "auditor")):
        for role in ("idp", "admin", "auditor", "feed", "ops"):
            answer = await lists.ask(path, role=role)
            assert answer.status_code == (200 if role == may else 403)
        assert (await lists.http.get(path)).status_code == 401


async def test_an_answer_waits_for_the_position_asked_for(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """Admins who deleted a client and look at the list: it is not there any more."""
    for stream, event in (
        (subjects.LOG, written.registered("c1")),
        (subjects.LOG, written.issued("c1", "g1", "u1")),
        (subjects.ACTIVITY, written.used(("c1", "g1"))),
        (subjects.LOG, written.deleted("c1")),
    ):
        (sequence,) = await written.write(log, event)
        answer = await api.ask(
            "/admin/v1/clients", status="any", at_least=await written.position(log, stream, sequence)
        )
        assert answer.status_code == 200, answer.text
        (client,) = answer.json()["items"]
        if stream == subjects.ACTIVITY:
            assert "last_activity_at" in client
        else:
            assert answer.headers["Grantbook-Position"] == await written.position(log, subjects.LOG, sequence)
    assert client["status"] == "deleted"


async def test_a_position_that_is_not_applied_in_time_is_told(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """Admins: rather than an old list they get a 503, and when to ask again."""
    await written.write(log, written.registered("c1"))
    await caught_up(database, log)
    answer = await api.ask("/admin/v1/clients", at_least=await written.position(log, subjects.LOG, 2))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json()["code"] == "not_yet_applied"


PLACES = st.builds(Place, order=st.just("clients created_at"), value=st.text(max_size=200), tie=st.text(max_size=20))


@given(PLACES)
def test_a_cursor_says_what_was_put_into_it(place: Place) -> None:
    """Admins: the next page begins where the last one ended."""
    assert cursors.decode(cursors.encode(place, KEY), KEY, order=place.order) == place


@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(PLACES, st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_a_cursor_that_was_tampered_with_is_refused(place: Place, where: int, change: int) -> None:
    """Operators: nothing that callers make up is ever taken for a place."""
    cursor = cursors.encode(place, KEY)
    where %= len(cursor)
    forged = cursor[:where] + chr(ord(cursor[where]) ^ change) + cursor[where + 1 :]
    with pytest.raises(InvalidCursor):  # also where it says the same bytes: with "/" for "_", or in unused bits
        cursors.decode(forged, KEY, order=place.order)
    with pytest.raises(InvalidCursor):
        cursors.decode(cursor, b"another key", order=place.order)


@given(st.text(max_size=300))
def test_any_text_at_all_is_refused_as_a_cursor(text: str) -> None:
    """Operators: a cursor from nowhere is a 400, never a 500."""
    with pytest.raises(InvalidCursor):
        cursors.decode(text, KEY, order="clients created_at")


async def test_head_answers_like_get_without_a_body(lists: Api) -> None:
    """Callers who only want the position: HEAD is reading, too (RFC 9110 section 9.3.2)."""
    headers = {"Authorization": f"Bearer {TOKENS['admin']}"}
    answer = await lists.http.head("/admin/v1/clients", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["Grantbook-Position"] == (await lists.ask("/admin/v1/clients")).headers["Grantbook-Position"]


async def test_clients_that_a_person_should_look_at_are_found(api: Api, log: Client, projected: None) -> None:
    """Admins with forty thousand clients: the few whose name and host do not fit together, and no other."""
    odd = written.metadata("Claude", redirect_uris=("https://claude-login.example/cb",))
    at = await written.write(log, written.registered("odd", odd), written.registered("plain"))
    assert at
    reached = await written.position(log, subjects.LOG, at[-1])

    async def found(**query: Any) -> list[str]:
        page = await api.get("/admin/v1/clients", at_least=reached, **query)
        return [each["client_id"] for each in page["items"]]

    assert await found(needs_review="true") == ["odd"]
    assert await found(needs_review="false") == ["plain"]
    assert await found(client_id="plain") == ["plain"]
    assert await found(client_id="nobody") == []
