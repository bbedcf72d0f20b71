"""A register of a million clients: made, made anew, asked, and written to; and what it takes of memory and disk."""

import json
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

import asyncpg
import nats
import psutil
import uvloop
from nats.aio.client import Client

from benchmarks import http_load, raw, registrations
from benchmarks.figures import Figure, Report, at_most, percentile, say
from benchmarks.seed import GIANT, History, fill
from deploy.dev import processes
from grantbook import subjects

LOG_BYTES: Final = 24 * 2**30
ROUNDS: Final = 200
TOTALS: Final = 100
PAGE_BAR_MS: Final = 30.0
TOTAL_BAR_MS: Final = 150.0
INSPECT_BAR_MS: Final = 20.0
INSPECT_RATIO: Final = 1.2
INSPECT_LIMIT: Final = 100
INSPECT_PAGES: Final = 1_000
COST_BAR: Final = 1.15
TURNS: Final = 5
WORK_MS: Final = 5.0
"""About what a page of a list takes the machine."""
WITHOUT: Final = f"p99 of {WORK_MS:g} ms of work without a server, by turns"
MEMORY_BAR_MB: Final = 200.0
MEGABYTE: Final = 1e6
PULLS: Final = 200_000
SEED_BAR: Final = 20_000.0
ANSWER_SECONDS: Final = 120.0
CRASH_SECONDS: Final = 900.0
POLL_SECONDS: Final = 0.1
WATCH_SECONDS: Final = 1.0
"""So often memory is looked at."""

T = TypeVar("T")


def filters(now: datetime) -> dict[str, dict[str, str]]:
    """Every filter of the list of clients, with values that many, few and no clients have."""
    day = timedelta(days=1)
    return {
        "no filter": {},
        "status=any": {"status": "any"},
        "status=suspended": {"status": "suspended"},
        "status=deleted": {"status": "deleted"},
        "name, of many": {"name": "claude"},
        "name, of few": {"name": "cursor 499"},
        "name, of none": {"name": "nobody's"},
        "name, two characters": {"name": "go"},
        "name, one character": {"name": "g"},
        "name, a character of none": {"name": "q"},
        "redirect_uri, of all": {"redirect_uri": "callback"},
        "redirect_uri, of one": {"redirect_uri": "own-5000.example"},
        "redirect_uri, of none": {"redirect_uri": "nowhere.example"},
        "redirect_uri, of many": {"redirect_uri": "agent-7"},
        "redirect_uri, two characters of none": {"redirect_uri": "zz"},
        "redirect_host, of all": {"redirect_host": "example"},
        "redirect_host, of one": {"redirect_host": "own-5000.example"},
        "redirect_host, of many": {"redirect_host": "agent-7.example"},
        "grant_type": {"grant_type": "refresh_token"},
        "grant_type, of none": {"grant_type": "password"},
        "source=dcr": {"source": "dcr"},
        "source=cimd": {"source": "cimd"},
        "flag=known_name_unknown_host": {"flag": "known_name_unknown_host"},
        "flag=never_used": {"flag": "never_used"},
        "flag=punycode_host": {"flag": "punycode_host"},
        "created_after": {"created_after": (now - day).isoformat()},
        "created, one day": {
            "created_after": (now - 20 * day).isoformat(),
            "created_before": (now - 19 * day).isoformat(),
        },
        "last_activity_before": {"last_activity_before": now.isoformat()},
        "has_active_grants=true": {"has_active_grants": "true"},
        "has_active_grants=false": {"has_active_grants": "false"},
        "dormant, one month": {
            "last_activity_before": now.isoformat(),
            "created_after": (now - 60 * day).isoformat(),
            "created_before": (now - 30 * day).isoformat(),
        },
        "dormant, deleted": {"last_activity_before": now.isoformat(), "status": "deleted"},
        "name and status, by grants": {"name": "claude", "status": "deleted", "sort": "-active_grants"},
        "name, by name": {"name": "claude", "sort": "client_name"},
        "name and grants": {"name": "claude", "has_active_grants": "true"},
        "name and redirect_host": {"name": "go", "redirect_host": "example"},
        "name and redirect_uri": {"name": "claude", "redirect_uri": "callback"},
    }


SORTS: Final = ("created_at", "client_name", "last_activity_at", "active_grants")


class Reads:
    """The read API as an admin asks it, over one connection after the other."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._headers = {"Authorization": f"Bearer {token}"}

    def get(self, path: str, **query: str) -> Any:
        """The answer."""
        url = f"http://127.0.0.1:{self._port}{path}?{urlencode(query)}"
        with urllib.request.urlopen(urllib.request.Request(url, headers=self._headers), timeout=ANSWER_SECONDS) as it:
            return json.load(it)

    def asking(self, path: str, **query: str) -> Callable[[], object]:
        """What asks so."""
        return partial(self.get, path, **query)


def by_turns(rounds: int, what: Mapping[T, Callable[[], object]]) -> dict[T, list[float]]:
    """How many milliseconds each took in each round, after one that nobody counts.

    By turns, so that what else the machine does falls upon all of them alike, and none is answered from what the one
    before it has just read.
    """
    taken: dict[T, list[float]] = {each: [] for each in what}
    for do in what.values():
        do()
    for _ in range(rounds):
        for name, do in what.items():
            started = time.perf_counter()
            do()
            taken[name].append((time.perf_counter() - started) * 1_000)
    return taken


def scale(
    servers: processes.Product, few: processes.Product, report: Report, *, clients: int, grants: int, seconds: float
) -> None:
    """Fill the register of these servers, measure it, and add to the report. One of `few` clients is beside it."""
    environment = servers.environment
    say(f"seeding {clients:,} clients and {grants:,} grants")
    history = History(clients, grants, datetime.now(UTC))
    started = time.perf_counter()
    events = uvloop.run(fill(servers.nats_url, history, processes=psutil.cpu_count() or 1))
    written = events / (time.perf_counter() - started)
    pulls = uvloop.run(_with_nats(servers, lambda each: raw.pulls(each, subjects.LOG, min(events, PULLS))))
    say(f"making the read models of {events:,} events")
    started = time.perf_counter()
    with memory_watched() as memory:
        processes.run("projector", "rebuild", environment=environment)
    rebuilt = events / (time.perf_counter() - started)
    report.figures += [
        Figure("seeded events, into the log", written, "/s", SEED_BAR, "bar", ">= 20,000/s", written >= SEED_BAR),
        Figure(f"rebuilt events, of {events:,}", rebuilt, "/s", pulls, "pulls of one client"),
    ]
    say("asking for lists")
    with processes.service(servers, "projector", "serve", until="/healthz") as port:
        _reads(Reads(port, servers.tokens["admin"]), report, clients)
        memory |= memory_now()
    report.details["size"] = uvloop.run(_sizes(servers)) | {"events": float(events)}
    say("registrations while a registry that has just started reads the log for clients that were never used")
    with processes.service(servers, "registry", "serve") as port:
        with memory_watched() as of_start:
            reading = uvloop.run(registrations.load(port, seconds, some_fail=True))
        memory["registry serve, just started"] = of_start.get("registry serve", 0.0)
        for answer, times in reading.refused.items():
            say(f"{times:,} were answered {answer}")
    say("registrations, by turns with a register of few clients")
    for each in (servers, few):
        each.environment["GRANTBOOK_MAX_UNUSED_CLIENTS"] = "off"
    with (
        processes.service(servers, "registry", "serve") as port,
        processes.service(few, "registry", "serve") as port_of_few,
    ):
        small, large = _rates_by_turns((port_of_few, port), seconds)
        memory |= memory_now()
        report.details["memory, MB"] = memory
        report.figures += [
            at_most(f"cost of a registration at {clients:,} clients", small / large, "x", 1.0, "at few", COST_BAR),
            Figure(f"the same, minutes after a start at {events:,} events", small / reading.rate, "x", 1.0, "at few"),
            Figure(
                "of these, answered otherwise than with 201", reading.failed, "", reading.answered, "answered with 201"
            ),
            *_memory_figures(memory),
        ]
        say("registrations after a crash of nats-server")
        crash = _until_registered_after_a_crash(servers, port)
        what = "from the start of nats-server after SIGKILL to a registration"
        report.figures.append(Figure(what, crash, "s", events / 1e6, "million events"))


def _rates_by_turns(ports: Sequence[int], seconds: float) -> list[float]:
    """Registrations a second at each, the median of some loads: by turns, the machine's hour falls upon all alike."""
    rates: dict[int, list[float]] = {port: [] for port in ports}
    for port in ports:
        uvloop.run(registrations.load(port, registrations.WARM_SECONDS))
    for _ in range(TURNS):
        for port in ports:
            rates[port].append(uvloop.run(registrations.load(port, seconds / 2)).rate)
    return [percentile(each, 0.5) for each in rates.values()]


def _memory_figures(memory: dict[str, float]) -> list[Figure]:
    """Those that have a bar. Few events are rebuilt without loaders."""
    kinds = ("registry serve", "registry serve, just started", "projector serve", "projector rebuild", "a loader")
    return [
        at_most(f"memory of `{each}`", memory[each], "MB", MEMORY_BAR_MB, "bar", MEMORY_BAR_MB)
        for each in kinds
        if each in memory
    ]


def _reads(reads: Reads, report: Report, clients: int) -> None:
    asked = filters(datetime.now(UTC))
    counted = {name: query | {"count": "true"} for name, query in asked.items()}
    sorted_ = {f"sort={way}{name}": {"sort": f"{way}{name}"} for name in SORTS for way in ("", "-")}
    took = by_turns(ROUNDS, {"": raw.work_of(WORK_MS)} | _lists(reads, asked | sorted_))
    of_machine = percentile(took.pop(""), 0.99)
    took_counted = by_turns(TOTALS, _lists(reads, counted))
    pages, middles = (_shares(took, share) for share in (0.99, 0.5))
    totals, of_totals = (_shares(took_counted, share) for share in (0.99, 0.5))
    report.details |= {
        "pages of the list, p99 in ms": pages,
        "pages of the list, median in ms": middles,
        "pages with their exact totals, p99 in ms": totals,
        "pages with their exact totals, median in ms": of_totals,
    }
    for what, times, bar in (
        ("a page of the list", pages, PAGE_BAR_MS),
        ("a page with its exact total", totals, TOTAL_BAR_MS),
    ):
        worst = max(times, key=lambda each: times[each])
        report.figures += [
            Figure(
                f"{what} of {clients:,} clients, p99, median of {len(times)}",
                percentile(list(times.values()), 0.5),
                "ms",
                of_machine,
                WITHOUT,
            ),
            at_most(f"the same, worst: {worst}", times[worst], "ms", of_machine, WITHOUT, bar),
        ]
    report.figures += _inspected(reads)


def _shares(taken: Mapping[str, Sequence[float]], share: float) -> dict[str, float]:
    return {name: percentile(times, share) for name, times in taken.items()}


def _lists(reads: Reads, queries: Mapping[str, Mapping[str, str]]) -> dict[str, Callable[[], object]]:
    return {name: reads.asking("/admin/v1/clients", **query) for name, query in queries.items()}


def _inspected(reads: Reads) -> list[Figure]:
    """The first page of a client with many grants, and a late one."""
    path = f"/admin/v1/clients/{quote(GIANT)}/grants"
    first = {"status": "any", "sort": "-issued_at", "limit": str(INSPECT_LIMIT)}
    page, number, late = reads.get(path, **first), 1, first
    while number < INSPECT_PAGES and "next_cursor" in page:
        late = first | {"cursor": page["next_cursor"]}
        page, number = reads.get(path, **late), number + 1
    pages = {1: reads.asking(path, **first), number: reads.asking(path, **late)}
    times = by_turns(ROUNDS, {0: raw.work_of(WORK_MS)} | pages)
    of_machine = percentile(times[0], 0.99)
    one, other = (percentile(times[each], 0.99) for each in (1, number))
    middle, of_late = (percentile(times[each], 0.5) for each in (1, number))
    what = f"of a client with many grants, {INSPECT_LIMIT} a page"
    return [
        at_most(f"page 1 {what}, p99", one, "ms", of_machine, WITHOUT, INSPECT_BAR_MS),
        at_most(f"page {number:,} {what}, p99", other, "ms", of_machine, WITHOUT, INSPECT_BAR_MS),
        at_most(f"page {number:,} by page 1, medians", of_late / middle, "x", 1.0, "page 1", INSPECT_RATIO),
    ]


def memory_now() -> dict[str, float]:
    """Resident memory of what runs, in megabytes, of several of a kind the largest; of Postgres, what is not shared."""
    found: dict[str, float] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            line = " ".join(process.cmdline())
            postgres = "postgres" in line and "-m " not in line
            memory = process.memory_full_info().uss if postgres else process.memory_info().rss
        except psutil.Error:
            continue
        for name, part in (
            ("registry serve", "-m registry serve"),
            ("projector serve", "-m projector serve"),
            ("projector project", "-m projector project"),
            ("projector rebuild", "-m projector rebuild"),
            ("a loader", "-m projector.loader"),
            ("nats-server", "nats-server"),
        ):
            if part in line:
                found[name] = max(found.get(name, 0.0), memory / MEGABYTE)
        if postgres:
            found["Postgres, unshared"] = found.get("Postgres, unshared", 0.0) + memory / MEGABYTE
    return found


def _until_registered_after_a_crash(servers: processes.Product, port: int) -> float:
    """Seconds from the start of a server that was killed until it has taken a registration."""
    (server,) = servers.nats
    server.kill()
    started = time.perf_counter()
    server.start(CRASH_SECONDS)
    one = http_load.request("POST", registrations.PATH, registrations.BODY)
    while time.perf_counter() - started < CRASH_SECONDS:
        if uvloop.run(http_load.ask(port, one)) == HTTPStatus.CREATED:
            return time.perf_counter() - started
        time.sleep(POLL_SECONDS)
    message = f"no registration was taken within {CRASH_SECONDS:.0f} s"
    raise RuntimeError(message)


@contextmanager
def memory_watched() -> Iterator[dict[str, float]]:
    """The most that each came to while this was open."""
    most: dict[str, float] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_SECONDS):
            for name, memory in memory_now().items():
                most[name] = max(most.get(name, 0.0), memory)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


async def _with_nats(servers: processes.Product, work: Callable[[Client], Awaitable[T]]) -> T:
    connection = await nats.connect(servers.nats_url)
    try:
        return await work(connection)
    finally:
        await connection.close()


async def _streams(connection: Client) -> dict[str, float]:
    sizes: dict[str, float] = {}
    for stream in (subjects.LOG, subjects.REVOCATIONS):
        answer = await connection.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=ANSWER_SECONDS)
        state = json.loads(answer.data)["state"]
        sizes |= {
            f"{stream}: messages": state["messages"],
            f"{stream}: bytes": state["bytes"],
            f"{stream}: subjects": state["num_subjects"],
        }
    return sizes


def _bytes(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


async def _sizes(servers: processes.Product) -> dict[str, float]:
    """Bytes on disk, and rows: of the streams, and of each table with its indexes."""
    sizes = await _with_nats(servers, _streams)
    sizes["nats: bytes on disk"] = _bytes(servers.folder / "nats")
    database = await asyncpg.connect(servers.database_url)
    try:
        for row in await database.fetch(
            """
            SELECT relname, reltuples, pg_table_size(c.oid) AS rows, pg_indexes_size(c.oid) AS indexes
            FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
            WHERE relkind = 'r' AND nspname LIKE 'grantbook\\_%' AND nspname <> 'grantbook_meta'
            """
        ):
            sizes[f"{row['relname']}: rows"] = max(0.0, row["reltuples"])
            sizes[f"{row['relname']}: bytes of rows"] = row["rows"]
            sizes[f"{row['relname']}: bytes of indexes"] = row["indexes"]
    finally:
        await database.close()
    return sizes
