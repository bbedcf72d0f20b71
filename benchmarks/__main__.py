"""`make bench`: the figures that Grantbook promises, each beside the raw limit of this machine, in one run."""

import json
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import asyncpg
import click
import nats
import uvloop
from msgspec.structs import replace
from nats.aio.client import Client

from benchmarks import fanout, figures, http_load, plots, raw, registrations, revocations
from benchmarks.figures import Figure, Report, at_least, at_most, percentile, say
from benchmarks.scale import LOG_BYTES, MEMORY_BAR_MB, memory_watched, scale
from benchmarks.seed import History, append, write_keys
from deploy.dev import processes
from grantbook import subjects
from grantbook.sdk.log import LogReader
from registry import streams

GRANTS_IN_REPORTS: Final = 1_000
REPORT_ENTRIES: Final = 1_000
POLL_SECONDS: Final = 0.1
PROJECTION_SECONDS: Final = 600.0
LIFETIME: Final = timedelta(hours=1)
GRANTS_A_CLIENT: Final = 8
ACTIVITY_BAR: Final = 0.6
PROJECTION_BAR: Final = 0.75
REBUILD_BAR: Final = 1.5
TURNS: Final = 3
"""In which events are projected."""


@click.command()
@click.option("--seconds", default=8.0, show_default=True, help="Length of each load.")
@click.option("--events", default=500_000, show_default=True, help="Mixed events to project and rebuild, about.")
@click.option("--rounds", default=300, show_default=True, help="Revocations to time until they are denied.")
@click.option("--deleted", default=1_000_000, show_default=True, help="Grants of the client that is deleted; 0: none.")
@click.option("--clients", default=1_000_000, show_default=True, help="Of the register that is asked; 0: none.")
@click.option("--grants", default=10_000_000, show_default=True, help="Of the register that is asked.")
@click.option(
    "--record",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write figures (JSON), plots (SVG) and a page of both into this folder.",
)
def main(
    seconds: float, events: int, rounds: int, deleted: int, clients: int, grants: int, record: Path | None
) -> None:
    """Measure Grantbook beside the raw limits of NATS and Postgres on this machine, and beside other registrars.

    Every acknowledged write is on disk. Services run as processes of their own; the load shares the machine with them.
    The register that is asked takes the longest, and 3 KB of disk for each event: a third more events than grants.
    """
    with tempfile.TemporaryDirectory(prefix="grantbook-bench-") as folder:
        place = Path(folder)
        sync = raw.disk_sync_milliseconds(place)
        report = Report(figures.machine(sync), sync)
        say("a million revocations in memory")
        memory = revocations.in_memory()  # first, while this process has freed nothing yet
        with limitless(place / "one") as servers:
            uvloop.run(measure(servers, report, seconds, events, rounds))
        report.figures += memory
        with limitless(place / "nodes", nodes=3) as servers:
            report.figures += uvloop.run(through_a_loss(servers, rounds))
        if deleted:
            say(f"deleting a client with {deleted:,} grants")
            with limitless(place / "fanout") as servers:
                report.figures += uvloop.run(fanout.fanout(servers, grants=deleted))
        try:
            if clients:
                say(f"a register of {clients:,} clients and {grants:,} grants")
                with (
                    limitless(place / "scale", log_max_bytes=LOG_BYTES) as servers,
                    limitless(place / "few") as few,
                ):
                    scale(servers, few, report, clients=clients, grants=grants, seconds=seconds)
        finally:  # it takes the longest: what is there by now is not lost with it
            figures.show(f"Grantbook on {report.machine}", report.figures)
            keep(report, record)


def keep(report: Report, record: Path | None) -> None:
    """Write figures, plots and a page of both, if they are to be kept."""
    if record is not None:
        record.mkdir(parents=True, exist_ok=True)
        figures.write(report, record / "figures.json")
        (record / "README.md").write_text(figures.page(report, plots.draw(report, record)))


@contextmanager
def limitless(
    folder: Path, *, nodes: int = 1, log_max_bytes: int = streams.LOG_MAX_BYTES
) -> Iterator[processes.Product]:
    """Servers whose registries refuse no registration for coming too fast: that is not what is measured."""
    folder.mkdir()
    with processes.servers(folder, nodes=nodes, log_max_bytes=log_max_bytes) as servers:
        servers.environment["GRANTBOOK_REGISTRATION_LIMIT"] = "off"
        servers.environment["GRANTBOOK_REGISTRATION_LIMIT_PER_SOURCE"] = "off"
        yield servers


async def through_a_loss(servers: processes.Product, rounds: int) -> list[Figure]:
    """Revocations on three nodes, and through the loss of the one that leads the log."""
    connection = await nats.connect(servers.environment["GRANTBOOK_NATS_URL"].split(","))
    try:
        deliveries = await raw.deliveries(connection, rounds, replicas=len(servers.nats))
    finally:
        await connection.close()
    with processes.service(servers, "registry", "serve") as port:
        say("revocations until they are denied, on three nodes")
        found = await revocations.delays(servers, port, rounds, deliveries)
        say("the same through the loss of a node")
        return found + await revocations.loss(servers, port)


async def measure(servers: processes.Product, report: Report, seconds: float, events: int, rounds: int) -> None:
    """All figures of one node, in an order that leaves each load the machine to itself."""
    connection = await nats.connect(servers.nats_url)
    try:
        say("raw limits: appends, inserts, deliveries")
        appends = await raw.appends(connection, seconds / 2)
        inserts = await raw.inserts(servers.database_url)
        deliveries = await raw.deliveries(connection, rounds)
        with processes.service(servers, "registry", "serve") as port:
            say("registrations over HTTP, by turns with other registrars")
            found, rates = await registrations.measured(port, seconds, appends, servers.database_url)
            report.details["registrations a second"] = rates
            say("revocations until they are denied")
            found += await revocations.delays(servers, port, rounds, deliveries)
        say(f"seeding {events:,} events")
        async with LogReader(connection, subjects.LOG) as log:
            clients = events // (GRANTS_A_CLIENT + 1)
            history = History(clients, clients * GRANTS_A_CLIENT, datetime.now(UTC))
            await write_keys(connection, history)
            await append(connection, history.events(), "bench")
            head = (await log.state()).last
        found += await projection(servers, connection, head, inserts)
        # Last: a projector applies what it finds of it beside the log.
        say("activity over HTTP")
        with processes.service(servers, "registry", "serve") as port:
            found += await activity(servers, port, seconds, appends)
        report.figures += found
    finally:
        await connection.close()


async def activity(servers: processes.Product, port: int, seconds: float, appends: float) -> list[Figure]:
    """Entries of activity reports, a thousand different grants in each."""
    token = servers.tokens["idp"]
    client = post(port, "/auth/connect/register", {"redirect_uris": ["http://localhost/callback"]}, None)["client_id"]
    expires_at = (datetime.now(UTC) + LIFETIME).isoformat()
    for number in range(GRANTS_IN_REPORTS):
        grant = {
            "grant_id": f"g{number}",
            "user_id": f"u{number % 10}",
            "username": f"user{number % 10}@example.com",
            "scopes": ["read"],
            "expires_at": expires_at,
        }
        post(port, f"/idp/v1/clients/{client}/grants", grant, token)
    at = datetime.now(UTC).isoformat()
    report = {
        "activity": [
            {"client_id": client, "grant_id": f"g{number % GRANTS_IN_REPORTS}", "kind": "tool_call", "at": at}
            for number in range(REPORT_ENTRIES)
        ]
    }
    one = http_load.request("POST", "/idp/v1/activity", json.dumps(report).encode(), token)
    load = await http_load.load(port, lambda _: one, wanted=202, connections=8, seconds=seconds)
    assert not load.failed, f"reports failed: {dict(load.refused)}"
    entries = load.rate * REPORT_ENTRIES
    return [
        at_least("activity over HTTP, entries", entries, "/s", appends, "atomic batches of 100", ratio=ACTIVITY_BAR)
    ]


async def projection(servers: processes.Product, connection: Client, head: int, inserts: float) -> list[Figure]:
    """Mixed events from the log into Postgres: followed from the first batch on, and made anew by the command.

    Medians of some turns, in each of which the log is pulled, projected into a database of its own, and that made anew.
    """
    pulls, followed, made = [], [], []
    used = 0.0
    for turn in range(1, TURNS + 1):
        say(f"pulling {head:,} events, turn {turn} of {TURNS}")
        pulls.append(await raw.pulls(connection, subjects.LOG, head))
        its = await another_database(servers, f"turn_{turn}")
        say(f"projecting {head:,} events")
        with memory_watched() as memory:
            followed.append(project(its, head))
        used = max(used, memory.get("projector project", 0.0))
        say(f"rebuilding {head:,} events")
        started = time.perf_counter()
        processes.run("projector", "rebuild", environment=its.environment)
        made.append(head / (time.perf_counter() - started))
    limit, limit_is = min((percentile(pulls, 0.5), "pulls"), (inserts, "unnest inserts"))
    live, rebuilt = percentile(followed, 0.5), percentile(made, 0.5)
    what, memory_is = "rebuilt events, start of the command included", "memory of `projector project` meanwhile"
    return [
        at_least("projected events", live, "/s", limit, limit_is, ratio=PROJECTION_BAR),
        at_least(what, rebuilt, "/s", live, "projected", ratio=REBUILD_BAR),
        at_most(memory_is, used, "MB", MEMORY_BAR_MB, "bar", MEMORY_BAR_MB),
    ]


async def another_database(servers: processes.Product, name: str) -> processes.Product:
    """The same servers, with an empty database of that name."""
    connection = await asyncpg.connect(servers.database_url)
    try:
        await connection.execute(f"create database {name}")
    finally:
        await connection.close()
    url = urlsplit(servers.database_url)._replace(path=f"/{name}").geturl()
    return replace(servers, database_url=url, environment=servers.environment | {"GRANTBOOK_DATABASE_URL": url})


def project(servers: processes.Product, head: int) -> float:
    """Events a second that `projector project` applies, from its first batch on."""
    with (
        processes.service(servers, "projector", "serve", until="/healthz") as port,
        processes.service(servers, "projector", "project", serves=False),
    ):
        first = applied(port, servers.tokens["admin"], 1)
        started = time.perf_counter()
        last = applied(port, servers.tokens["admin"], head)
        return (last - first) / (time.perf_counter() - started)


def applied(port: int, token: str, wanted: int) -> int:
    """Wait until the read model of the log is so far; how far it is then."""
    until = time.perf_counter() + PROJECTION_SECONDS
    while (position := log_position(port, token)) < wanted:
        assert time.perf_counter() < until, f"projected only {position} of {wanted}"
        time.sleep(POLL_SECONDS)
    return position


def log_position(port: int, token: str) -> int:
    """How far the read model of the log is."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/admin/v1/status", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return int(json.load(answer)["read_models"]["log"]["position"].rpartition("-")[2])


def post(port: int, path: str, body: object, token: str | None) -> dict[str, str]:
    """Send JSON, get JSON."""
    headers = {"Content-Type": "application/json"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, str] = json.load(answer)
        return found


if __name__ == "__main__":
    main()
