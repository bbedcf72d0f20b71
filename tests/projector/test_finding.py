"""How clients are found: whichever way, it is what looking at each of them would give."""

from typing import Final

import pytest

from grantbook.events import ClientMetadata, Event
from projector import finding
from projector.db import Connection
from projector.finding import ClientFilter, Paging
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


@pytest.mark.parametrize(("looked_at", "sorted_", "farther"), [(1, 1, 2), (4, 2, 2), (4, 2, 4), (1, 100, 1)])
async def test_whichever_way_a_page_is_found_it_is_the_same(
    database: Connection, monkeypatch: pytest.MonkeyPatch, looked_at: int, sorted_: int, farther: int
) -> None:
    """Admins after a flood: clients that stand behind many new ones are found, each once, in their order."""
    monkeypatch.setattr(finding, "LOOKED_AT", looked_at)
    monkeypatch.setattr(finding, "LOOKED_AT_BESIDE", looked_at)
    monkeypatch.setattr(finding, "SORTED", sorted_)
    monkeypatch.setattr(finding, "FARTHER", farther)
    events = [named(number, "old" if number < 9 else "of the flood") for number in range(20)]
    await apply(database, list(enumerate(events)), size=7)
    for name, having in (("old", range(9)), ("o", range(20)), ("none", range(0))):
        for sort in ("created_at", "-created_at", "active_grants"):
            keys: list[str] = []
            cursor: str | None = None
            while True:
                paging = Paging(sort, 2, cursor, count=False, key=KEY)
                page, around = await finding.page(database, ClientFilter(name=name), paging)
                keys += page
                if not isinstance(around.next_cursor, str):
                    break
                cursor = around.next_cursor
            expected = [f"c{number}" for number in having]
            assert keys == (expected[::-1] if sort.startswith("-") else expected), (name, sort)


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
