"""How Postgres finds the pages of lists: by an index, whatever is asked for. Plans are looked at, and not times."""

import asyncio
import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from grantbook.events import Event
from projector import finding, queries, traits
from projector.db import Connection
from projector.filters import ClientFilter
from projector.pages import Paging
from tests.projector import given
from tests.projector.conftest import template, until
from tests.projector.test_flags import apply

CLIENTS: Final = 20_000
RARE: Final = 10
KEY: Final = b"a key of cursors"
LARGE: Final = frozenset({"clients", "listed", "standings", "grants", "client_users", "events", "client_days", "users"})
NOW: Final = datetime.now(UTC)

PAGES: Final[dict[str, dict[str, Any]]] = {
    "all": {},
    "any": {"status": "any"},
    "deleted": {"status": "deleted"},
    "a name": {"name": "rare agent"},
    "a common name": {"name": "agent"},
    "no such name": {"name": "nowhere"},
    "two characters of a name": {"name": "ra"},
    "a character of no name": {"name": "z"},
    "characters of no alphabet": {"name": "\N{ROBOT FACE}\N{ROBOT FACE}\N{ROBOT FACE}"},
    "a part of a redirect": {"redirect_uri": "rare.example"},
    "no such redirect": {"redirect_uri": "nowhere.example"},
    "a host": {"redirect_host": "rare.example"},
    "no such host": {"redirect_host": "nowhere.example"},
    "a grant type": {"grant_types": ["authorization_code"]},
    "no such grant type": {"grant_types": ["password"]},
    "a rare source": {"source": "manual"},
    "a flag": {"flags": ["loopback_only"]},
    "no such flag": {"flags": ["punycode_host"]},
    "never used": {"flags": ["never_used"]},
    "suspended": {"status": "suspended"},
    "a burst": {"flags": ["many_registrations"]},
    "a new host": {"flags": ["new_redirect_host"]},
    "to review": {"needs_review": True},
    "a time": {"created_after": NOW - timedelta(hours=1), "created_before": NOW},
    "a family": {"family": "0" * 32},
    "a client": {"client_key": "c7"},
    "with grants": {"has_active_grants": True},
    "unused for long": {"last_activity_before": NOW - timedelta(days=365)},
    "lately cut off": {"revoked_after": NOW - timedelta(days=1), "status": "any"},
}
COUNTED_BY_TRAITS: Final = ("all", "any", "deleted", "a grant type", "a rare source", "a flag", "to review")


class Explaining:
    """A connection that has each statement explained instead of answered."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.how = "FORMAT JSON"
        self.plans: list[dict[str, Any]] = []

    async def fetch(self, query: str, *values: object) -> Any:
        await self._explain(query, values)
        return await self._connection.fetch(query, *values)

    async def fetchrow(self, query: str, *values: object) -> Any:
        await self._explain(query, values)
        return await self._connection.fetchrow(query, *values)

    async def fetchval(self, query: str, *values: object) -> Any:
        await self._explain(query, values)
        return await self._connection.fetchval(query, *values)

    async def _explain(self, query: str, values: tuple[object, ...]) -> None:
        said = await self._connection.fetchval(f"EXPLAIN ({self.how}) {query}", *values)
        self.plans += [each["Plan"] for each in json.loads(said)]

    @property
    def nodes(self) -> list[dict[str, Any]]:
        return [node for plan in self.plans for node in walked(plan)]

    @property
    def read_whole(self) -> set[str]:
        """Large tables of which every row is read."""
        return {node["Relation Name"] for node in self.nodes if "Seq Scan" in node["Node Type"]} & LARGE


def walked(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for each in plan.get("Plans", []):
        yield from walked(each)


def happened() -> Iterator[Event]:
    """A register in which what is rare is rare."""
    for number in range(CLIENTS):
        rare = number % (CLIENTS // RARE) == 0
        client = f"c{number}"
        about = given.metadata(
            f"Rare agent {number}" if rare else f"Agent {number}",
            redirect_uris=(f"https://rare.example/{number}",) if rare else (f"https://h{number % 500}.agent.test/cb",),
        )
        yield given.registered(client, about, source="manual" if rare else "dcr")
        if number % 4 == 0:
            yield given.issued(client, "g", f"u{number % 999}")
        if number % 50 == 1:
            yield given.deleted(client)


_numbers = itertools.count()
_SEEN_BY_ALL: Final = "SELECT relallvisible > 0.9 * relpages FROM pg_class WHERE oid = 'listed'::regclass"


@pytest.fixture(scope="module")
def template_of_worker(postgres_url: str, template_of_worker: str) -> str:
    """Templates for this module have that register, with what Postgres knows of it."""

    async def make(database: Connection) -> None:
        await apply(database, enumerate(happened()), size=5_000)
        # Not at once: not while their commit is on its way to the disk, nor while Postgres looks at them by itself.
        await database.execute("CHECKPOINT")

        async def seen_by_all() -> bool:
            await database.execute("VACUUM ANALYZE")
            return bool(await database.fetchval(_SEEN_BY_ALL))

        await until(seen_by_all, "the pages to be known to be seen by all")

    # A worker may come back to this module, and makes it again.
    return asyncio.run(template(postgres_url, f"large_{next(_numbers)}", template_of_worker, make))


@pytest.fixture
def register(database: Connection) -> Explaining:
    """The read models, whose statements are explained."""
    return Explaining(database)


async def test_every_list_is_found_by_an_index(register: Explaining, database: Connection) -> None:
    """Admins of a large register: whichever filter and order they ask for, no page reads every client."""
    for name, asked in PAGES.items():
        for sort in finding.CLIENT_SORTS:
            for direction in ("", "-"):
                register.plans.clear()
                paging = Paging(f"{direction}{sort}", 50, None, count=False, key=KEY)
                await queries.clients(register, ClientFilter(**asked), paging)  # type: ignore[arg-type]
                assert register.read_whole == set(), (name, direction + sort)


async def test_a_page_of_clients_in_use_is_found_by_an_index_of_these(register: Explaining) -> None:
    """Admins of a register that strangers flood: those in use stand behind thousands that are not."""
    for sort in ("created_at", "-created_at"):
        register.plans.clear()
        paging = Paging(sort, 50, None, count=False, key=KEY)
        await queries.clients(register, ClientFilter(has_active_grants=True), paging)  # type: ignore[arg-type]
        assert "standings_with_grants" in {node.get("Index Name") for node in register.nodes}


async def test_totals_by_traits_read_a_tally_and_no_client(register: Explaining) -> None:
    """The same admins: how many there are is exact, and needs none of them to be looked at."""
    for name in COUNTED_BY_TRAITS:
        for has_active_grants in (None, True, False):
            register.plans.clear()
            wanted = ClientFilter(**PAGES[name] | {"has_active_grants": has_active_grants})
            await finding.total(register, wanted)  # type: ignore[arg-type]
            kinds = {node["Relation Name"] for node in register.nodes if "Scan" in node["Node Type"]}
            assert kinds == (set() if wanted.contradicts_itself else {"tallies"}), (name, has_active_grants, kinds)


async def test_totals_by_a_text_read_those_that_clients_have_and_no_client(register: Explaining) -> None:
    """Admins who count by a part of a name or of a redirect, or by a host: clients are alike by the thousand."""
    for asked in ({"name": "agent"}, {"name": "a"}, {"redirect_uri": "agent.test"}, {"redirect_host": "agent.test"}):
        for status in ("active", "any"):
            for has_active_grants, most in ((None, CLIENTS), (False, 3 * CLIENTS / 4), (True, CLIENTS / 4)):
                register.plans.clear()
                wanted = ClientFilter(**asked, status=status, has_active_grants=has_active_grants)  # type: ignore[arg-type]
                assert 0.9 * most < await finding.total(register, wanted) <= most  # type: ignore[arg-type]
                tables = {node["Relation Name"] for node in register.nodes if "Relation Name" in node}
                assert tables == {"names" if "name" in asked else "redirections"}, (wanted, tables)


async def test_nobody_is_looked_for_where_the_total_is_none(register: Explaining) -> None:
    """Admins who look for what no client has: two characters of a redirect are looked for in each, once."""
    paging = Paging("-created_at", 50, None, count=True, key=KEY)
    for asked in ({"redirect_uri": "zz"}, {"name": "nowhere"}, {"redirect_host": "nowhere.example"}):
        register.plans.clear()
        page = await queries.clients(register, ClientFilter(**asked), paging)  # type: ignore[arg-type]
        assert (page.total, page.items) == (0, [])
        assert len(register.plans) == 1, asked


async def test_totals_by_a_time_read_the_days_of_it_and_the_clients_of_two(register: Explaining) -> None:
    """The same admins, who ask for a quarter of a year: of its first day and its last alone clients are looked at."""
    for asked in (
        {"created_after": NOW - timedelta(days=90)},
        {"created_after": NOW - timedelta(days=90), "created_before": NOW + timedelta(days=1), "source": "dcr"},
    ):
        register.plans.clear()
        assert await finding.total(register, ClientFilter(**asked)) > 0  # type: ignore[arg-type]
        scans = {(each["Node Type"], each["Relation Name"]) for each in register.nodes if "Relation Name" in each}
        assert {relation for _, relation in scans} == {"tallies", "days", "listed"}, asked
        assert {kind for kind, relation in scans if relation == "listed"} == {"Index Only Scan"}, asked


async def test_totals_by_two_texts_or_a_time_read_indexes_of_clients_alone(register: Explaining) -> None:
    """The same admins, of a register that does not fit into memory: no client's row is looked at."""
    two = {"name": "agent", "redirect_host": "agent.test"}
    for asked in (two, two | {"has_active_grants": True}, two | {"created_after": NOW - timedelta(hours=1)}):
        register.plans.clear()
        assert await finding.total(register, ClientFilter(**asked)) > 0  # type: ignore[arg-type]
        scans = [node for node in register.nodes if node.get("Relation Name") in {"listed", "standings", "clients"}]
        assert {node["Node Type"] for node in scans} == {"Index Only Scan"}, asked


async def test_what_few_clients_have_is_found_by_an_index_before_many_are_looked_at(register: Explaining) -> None:
    """Admins of any register: no page hangs on how many clients Postgres believes to pass."""
    register.how = "ANALYZE, FORMAT JSON"
    for asked, index, most in (
        ({"redirect_host": "rare.example"}, "redirections_to_find", RARE * 100),
        ({"redirect_uri": "rare.example/"}, "redirections_to_find", RARE * 100),
        ({"name": "rare agent"}, "names_to_find", finding.LOOKED_AT_NAMES),
    ):
        for sort in finding.CLIENT_SORTS:
            for direction in ("", "-"):
                register.plans.clear()
                paging = Paging(f"{direction}{sort}", 50, None, count=False, key=KEY)
                await queries.clients(register, ClientFilter(**asked), paging)  # type: ignore[arg-type]
                assert index in {node.get("Index Name") for node in register.nodes}, (asked, sort)
                first = 1 if "name" in asked and sort != "client_name" else 0  # which looks at so many rows at most
                believed = [node for plan in register.plans[first:] for node in walked(plan)]
                assert not any(node["Plan Rows"] > RARE * 100 for node in believed), (asked, sort)
                assert max(each["Actual Rows"] * each["Actual Loops"] for each in register.nodes) <= most, (asked, sort)


async def test_a_page_of_what_many_have_looks_at_so_many_rows_along_its_order(register: Explaining) -> None:
    """The same admins: the first page of a common name is there at once, by an index alone."""
    register.how = "ANALYZE, FORMAT JSON"
    for sort in ("created_at", "-created_at"):
        register.plans.clear()
        paging = Paging(sort, 50, None, count=False, key=KEY)
        await queries.clients(register, ClientFilter(name="agent", redirect_host="agent.test"), paging)  # type: ignore[arg-type]
        walks = [node for node in register.nodes if node.get("Index Name") == "listed_by_created_at"]
        assert {node["Node Type"] for node in walks} == {"Index Only Scan"}
        assert 50 < sum(node["Actual Rows"] for node in walks) <= finding.LOOKED_AT
        assert max(node["Actual Rows"] * node["Actual Loops"] for node in register.nodes) <= finding.LOOKED_AT


async def test_closed_clients_by_their_grants_are_read_along_an_index_of_these(register: Explaining) -> None:
    """Admins who look at what was deleted: none of it has active grants, and it stands far behind what is in use."""
    for status in traits.CLOSED:
        register.plans.clear()
        paging = Paging("-active_grants", 50, None, count=False, key=KEY)
        await queries.clients(register, ClientFilter(status=status), paging)  # type: ignore[arg-type]
        walks = [node for node in register.nodes if node.get("Index Name") == "listed_closed"]
        assert {node["Node Type"] for node in walks} == {"Index Only Scan"}, status


async def test_totals_of_what_changes_all_the_time_read_its_table_alone(register: Explaining) -> None:
    """Admins who look for what was used, and what was not: filters as the API has them, its empty lists included."""
    for status in ("active", "any"):
        for has_active_grants in (None, True, False):
            register.plans.clear()
            asked = {**PAGES["unused for long"], "status": status, "has_active_grants": has_active_grants}
            await finding.total(register, ClientFilter(**asked, flags=[], grant_types=[]))  # type: ignore[arg-type]
            tables = {node["Relation Name"] for node in register.nodes if "Relation Name" in node}
            assert tables - {"tallies"} == {"standings"}, asked


async def test_totals_of_the_register_read_two_small_tables(register: Explaining) -> None:
    """Whoever watches a large register by its status, each few seconds: that looks at no client, and at no grant."""
    found = await queries.totals(register)  # type: ignore[arg-type]
    assert (found.clients, found.grants) == (CLIENTS, CLIENTS / 4)
    assert {node["Relation Name"] for node in register.nodes if "Relation Name" in node} == {"tallies", "totals"}


async def test_a_client_and_its_users_are_found_by_an_index(register: Explaining) -> None:
    """Admins who open a client with a million grants: neither its page nor its numbers read them all."""
    paging = Paging("-issued_at", 50, None, count=False, key=KEY)
    await queries.client(register, "c8")  # type: ignore[arg-type]
    await queries.grants_of_client(register, "c8", "active", None, paging)  # type: ignore[arg-type]
    await queries.grants_of_user(register, "u8", "any", paging)  # type: ignore[arg-type]
    await queries.users(register, None, Paging("user_key", 50, None, count=False, key=KEY))  # type: ignore[arg-type]
    assert register.read_whole == set()
