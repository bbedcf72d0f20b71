"""How clients are found: whichever way, it is what looking at each of them would give."""

import itertools
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
from msgspec import Struct

from appraisal import flags
from grantbook.events import ClientMetadata, Event
from projector import finding
from projector.db import Connection
from projector.filters import ClientFilter
from projector.pages import Paging
from tests.projector import given
from tests.projector.test_flags import apply

KEY: Final = b"a key of cursors"
NAMES: Final = (
    *("Goose", "go", "g", "O'Brien \\ Sons", "100% _agent_", "a-b", "--", "\N{ROBOT FACE}\N{ROBOT FACE}\N{ROBOT FACE}"),
    *("Straße", "日本語エージェント", "' & '", ":*", "x" * 200, "ß" * 200),
)
REDIRECTS: Final = ("https://agent.example/callback", "https://Agent.Example/%5C_'", "com.example.app:/cb")
LONG: Final = tuple(f"https://deep.agent.example/{'long' * 100}/{number}" for number in range(4))


def named(number: int, name: str) -> Event:
    redirects = LONG if number % 5 == 0 else (REDIRECTS[number % len(REDIRECTS)],)
    return given.registered(f"c{number}", given.metadata(name, redirect_uris=redirects))


async def found(database: Connection, wanted: ClientFilter) -> set[str]:
    """The clients of all pages, which are as many as are counted."""
    keys: list[str] = []
    paging = Paging("client_name", 3, None, count=True, key=KEY)
    while True:
        page, around = await finding.page(database, wanted, paging)
        keys += page
        if not isinstance(around.next_cursor, str):
            break
        paging = Paging("client_name", 3, around.next_cursor, count=False, key=KEY)
    assert len(set(keys)) == len(keys) == await finding.total(database, wanted), wanted
    return set(keys)


async def test_every_part_of_every_name_and_redirect_finds_all_that_have_it(database: Connection) -> None:
    """Admins: a part of one character, or of none of the alphabet, is a part; and none of it is anything but text."""
    events = [named(number, name) for number, name in enumerate(NAMES)]
    await apply(database, list(enumerate(events)), size=5)
    clients: dict[str, ClientMetadata] = {each.client_id: each.metadata for each in events}  # type: ignore[union-attr]
    for analyzed in (False, True):
        if analyzed:
            await database.execute("VACUUM ANALYZE")  # and now it knows which hosts are common
        for name in NAMES:
            for length in (1, 2, 3, len(name)):
                part = name[:length]
                having = {
                    each for each, said in clients.items() if part.casefold() in (said.client_name or "").casefold()
                }
                assert await found(database, ClientFilter(name=part)) == having, part
        for text in (*REDIRECTS, LONG[0]):
            for part in (text[:2], text[-3:], text):
                having = {each for each, said in clients.items() if any(part in uri for uri in said.redirect_uris)}
                assert await found(database, ClientFilter(redirect_uri=part)) == having, part
        for host, few in (("agent.example", False), ("deep.agent.example", True), ("xample", None)):
            wanted = ClientFilter(redirect_host=host)
            of_deep = {each for each, said in clients.items() if said.redirect_uris == LONG}
            of_any = {each for each, said in clients.items() if said.redirect_uris[0].startswith("https")}
            assert await found(database, wanted) == (set() if few is None else of_deep if few else of_any), host


DAY: Final = timedelta(days=1)
MICROSECOND: Final = timedelta(microseconds=1)
NOW: Final = given.now()


class Known(Struct):
    """A client as the model of a test knows it."""

    key: str
    name: str
    redirects: tuple[str, ...]
    at: datetime
    status: str = "active"
    source: str = "dcr"
    grants: int = 0
    granted: bool = False
    used: datetime | None = None


def happened(dice: random.Random) -> tuple[list[Event], list[Known]]:
    """A register of some clients, most of the newest of which are alike, as those of a flood are."""
    events: list[Event] = []
    known: list[Known] = []
    for number in range(40):
        new = number > 25 and dice.random() < 0.8
        name = "of the flood" if new else dice.choice(("old", "Older", "go", "another", ""))
        redirects = ("https://flood.example/cb",) if new else dice.choice((LONG, *((each,) for each in REDIRECTS)))
        at = NOW - (40 - number) * DAY - DAY / 2
        about = given.metadata(name or None, redirect_uris=redirects)
        client = Known(f"c{number:02}", name, redirects, at, source=dice.choice(("dcr", "dcr", "dcr", "manual")))
        events.append(given.registered(client.key, about, at=at, source=client.source))
        known.append(client)
        for grant in range(dice.choice((0, 0, 1, 3))):
            events.append(given.issued(client.key, f"g{grant}", "u"))
            client.grants += 1
            client.granted = True
        if dice.random() < 0.2:
            client.status = dice.choice(("deleted", "suspended"))
            client.grants = 0
            events.append(given.deleted(client.key) if client.status == "deleted" else given.suspended(client.key))
    return events, known


def is_never_used(client: Known) -> bool:
    """Whether it has that flag."""
    old = client.at < NOW - flags.NEVER_USED_DAYS * DAY
    return old and client.status != "deleted" and not client.granted and client.used is None


def passes(client: Known, wanted: ClientFilter) -> bool:
    """Whether a client is one of those asked for, by looking at it."""
    hosts = {urlsplit(each).hostname or "" for each in client.redirects if each.startswith("https")}
    return (
        (wanted.name is None or wanted.name.casefold() in client.name.casefold())
        and (wanted.redirect_uri is None or any(wanted.redirect_uri in each for each in client.redirects))
        and (wanted.redirect_host is None or any(f".{each}".endswith(f".{wanted.redirect_host}") for each in hosts))
        and wanted.status in {"any", client.status}
        and (wanted.created_after is None or client.at > wanted.created_after)
        and (wanted.created_before is None or client.at < wanted.created_before)
        and (wanted.has_active_grants is None or (client.grants > 0) == wanted.has_active_grants)
        and (wanted.last_activity_before is None or client.used is None or client.used < wanted.last_activity_before)
        and wanted.source in {None, client.source}
        and ("never_used" not in wanted.flags or is_never_used(client))
        and ("loopback_only" not in wanted.flags)
    )


ASKED: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"name": "old"},
    {"name": "o", "status": "any"},
    {"name": "of the flood"},
    {"name": "none such"},
    {"redirect_uri": "deep.agent"},
    {"redirect_uri": "e", "status": "deleted"},
    {"redirect_host": "agent.example"},
    {"redirect_host": "example", "name": "o"},
    {"redirect_host": "flood.example", "redirect_uri": "none such"},
    {"name": "old", "redirect_uri": "https"},
    {"name": "old", "has_active_grants": False},
    {"name": "go", "has_active_grants": True, "status": "any"},
    {"redirect_host": "agent.example", "last_activity_before": NOW - 5 * DAY},
    {"status": "suspended"},
    {"has_active_grants": True},
    {"has_active_grants": False, "status": "any"},
    {"has_active_grants": False, "status": "deleted"},
    {"has_active_grants": True, "status": "deleted"},
    {"name": "o", "status": "suspended"},
    {"status": "suspended", "last_activity_before": NOW - 5 * DAY},
    {"status": "suspended", "flags": ["never_used"]},
    {"status": "deleted", "flags": ["never_used"]},
    {"status": "deleted", "has_active_grants": False, "last_activity_before": NOW - 5 * DAY},
    {"status": "deleted", "redirect_host": "agent.example", "redirect_uri": "https"},
    {"last_activity_before": NOW - 5 * DAY},
    {"last_activity_before": NOW - 5 * DAY, "has_active_grants": True},
    {"created_after": NOW - 20 * DAY, "created_before": NOW - 10 * DAY},
    {"created_after": NOW - 30 * DAY, "name": "o"},
    {"created_after": NOW - 30 * DAY, "last_activity_before": NOW - 5 * DAY},
    {"created_before": NOW - 9 * DAY, "has_active_grants": False, "status": "any"},
    {"created_before": NOW - 20 * DAY, "redirect_host": "agent.example", "has_active_grants": True},
    {"grant_types": ["authorization_code"], "has_active_grants": True},
    {"redirect_uri": "e", "has_active_grants": False, "status": "any"},
    {"redirect_host": "flood.example", "has_active_grants": True},
    {"source": "manual"},
    {"source": "dcr", "name": "o", "status": "any"},
    {"source": "manual", "has_active_grants": False, "redirect_uri": "https"},
    {"flags": ["never_used"]},
    {"flags": ["never_used"], "name": "o", "status": "any"},
    {"flags": ["never_used"], "source": "manual", "redirect_host": "agent.example"},
    {"flags": ["loopback_only"]},
    {"grant_types": ["authorization_code"], "created_after": NOW - 3 * DAY},
)
PAGES: Final = (2, 5, 13)
KNOBS: Final[tuple[dict[str, int], ...]] = (
    {},
    {"LOOKED_AT": 1, "LOOKED_AT_BESIDE": 1, "FEW": 0, "SORTED": 0, "READ": 0, "TEXTS": 0, "FARTHER": 2}
    | {"LOOKED_AT_NAMES": 1, "FEWER": 0},
    {"LOOKED_AT": 4, "LOOKED_AT_BESIDE": 3, "FEW": 1, "SORTED": 5, "READ": 0, "TEXTS": 2, "SHARE": 1}
    | {"LOOKED_AT_NAMES": 4},
    {"LOOKED_AT": 1, "LOOKED_AT_BESIDE": 1, "FEW": 100, "SORTED": 100, "OTHERS": 2, "LOOKED_AT_NAMES": 2},
    {"LOOKED_AT": 4, "LOOKED_AT_BESIDE": 2, "FARTHER": 20, "FEW": 0, "SORTED": 0, "SHARE": 100}
    | {"LOOKED_AT_NAMES": 6, "FEWER": 1},
)


@pytest.mark.parametrize("knobs", KNOBS)
async def test_whichever_way_a_page_is_found_it_is_the_same(
    database: Connection, monkeypatch: pytest.MonkeyPatch, knobs: dict[str, int]
) -> None:
    """Admins of any register, also after a flood: all that they ask for are found, once each, in order, and counted."""
    for name, value in knobs.items():
        monkeypatch.setattr(finding, name, value)
    dice = random.Random(11)

    async def share(_: object, __: object) -> float:
        return dice.choice((0.0, 0.6, 1.0))  # a sample of so few redirects would say nothing

    monkeypatch.setattr(finding, "_share", share)
    events, known = happened(dice)
    await apply(database, list(enumerate(events)), size=7)
    for client in known[::3]:
        client.used = NOW - dice.randrange(10) * DAY
        update = "UPDATE standings SET last_activity_at = $2 WHERE client_key = $1"
        await database.execute(update, client.key, client.used)
    orders: dict[str, Callable[[Known], Any]] = {
        "created_at": lambda each: each.at,
        "client_name": lambda each: each.name.casefold(),
        "last_activity_at": lambda each: each.used.timestamp() if each.used else 0,
        "active_grants": lambda each: each.grants,
    }
    for asked in ASKED:
        wanted = ClientFilter(**asked)
        found = [each for each in known if passes(each, wanted)]
        assert await finding.total(database, wanted) == len(found), asked
        for name, of in orders.items():
            for sign in ("", "-"):
                expected = [each.key for each in sorted(found, key=of)]
                if sign:  # of two alike, the newer first
                    expected.reverse()
                size = dice.choice(PAGES)
                assert await every_page(database, wanted, sign + name, size) == expected, (asked, sign + name, size)


@pytest.mark.parametrize("fewer", [0, 1, finding.FEWER])
async def test_of_a_name_all_are_counted_but_those_who_redirect_elsewhere(
    database: Connection, monkeypatch: pytest.MonkeyPatch, fewer: int
) -> None:
    """Admins of a large register: whichever are fewer, and whatever those are called who redirect elsewhere."""
    monkeypatch.setattr(finding, "SORTED", 0)
    monkeypatch.setattr(finding, "FEWER", fewer)

    async def share(_: object, __: object) -> float:
        return 1.0

    monkeypatch.setattr(finding, "_share", share)
    events, known = happened(random.Random(11))
    await apply(database, list(enumerate(events)), size=7)
    texts: list[dict[str, Any]] = [{"redirect_uri": each} for each in ("https", "deep")]
    texts += [{"redirect_host": each} for each in ("agent.example", "flood.example")]
    texts.append({"redirect_uri": "agent", "redirect_host": "example"})
    states = ("active", "any", "deleted")
    for name, text, status in itertools.product(("o", "old", "of the flood", "go"), texts, states):
        wanted = ClientFilter(name=name, status=status, **text)
        assert await finding.total(database, wanted) == sum(passes(each, wanted) for each in known), wanted


async def every_page(database: Connection, wanted: ClientFilter, sort: str, size: int) -> list[str]:
    """The keys of all pages, from the first to the last; going back shows the same."""
    pages: list[list[str]] = []
    cursor: str | None = None
    while True:
        page, around = await finding.page(database, wanted, Paging(sort, size, cursor, count=False, key=KEY))
        pages.append(page)
        if not isinstance(around.next_cursor, str):
            break
        cursor = around.next_cursor
    for before in pages[-2::-1]:
        assert isinstance(around.previous_cursor, str)
        page, around = await finding.page(
            database, wanted, Paging(sort, size, around.previous_cursor, count=False, key=KEY)
        )
        assert page == before, (wanted, sort)
    return [key for page in pages for key in page]


@pytest.mark.parametrize("few", [0, finding.SORTED])
async def test_clients_of_any_stretch_of_time_are_counted_once_wherever_it_begins(
    database: Connection, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """Admins who ask for a month or a minute: midnights, in UTC, are nowhere a gap, and nobody is counted twice."""
    monkeypatch.setattr(finding, "SORTED", few)
    midnights = [NOW.replace(hour=0, minute=0, second=0, microsecond=0) - days * DAY for days in range(4)]
    beside = [each + step for each in midnights for step in (-MICROSECOND, timedelta(0), MICROSECOND, DAY / 3)]
    registered = [given.registered(f"c{number}", at=at) for number, at in enumerate(beside)]
    gone: list[Event] = [given.deleted("c3"), given.suspended("c9"), given.changed("c6", given.metadata("Another"))]
    await apply(database, list(enumerate([*registered, *gone])), size=5)
    await database.execute("SET timezone = 'Pacific/Auckland'")
    asked = [None, *beside, datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]
    for after, before in itertools.product(asked, asked):
        for status, left in (("any", beside), ("active", beside[:3] + beside[4:9] + beside[10:])):
            wanted = ClientFilter(created_after=after, created_before=before, status=status)
            inside = [at for at in left if (after is None or at > after) and (before is None or at < before)]
            assert await finding.total(database, wanted) == len(inside), (after, before, status)


async def test_deleted_and_changed_clients_are_found_as_they_are(database: Connection) -> None:
    """The same admins: what a client was called before, and was before, finds it no more."""
    events: list[Event] = [named(1, "before"), named(2, "before"), named(3, "before")]
    events += [given.changed("c1", given.metadata("after")), given.deleted("c2"), given.suspended("c3")]
    for size in (1, len(events)):
        await apply(database, list(enumerate(events)), size=size)
        assert await found(database, ClientFilter(name="be")) == set()
        assert await found(database, ClientFilter(name="be", status="any")) == {"c2", "c3"}
        assert await found(database, ClientFilter(status="deleted")) == {"c2"}
        assert await found(database, ClientFilter(status="suspended")) == {"c3"}
        assert await found(database, ClientFilter(name="after")) == {"c1"}
