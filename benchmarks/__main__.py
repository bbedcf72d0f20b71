"""`make bench`: the figures that Grantbook promises, each beside the raw limit of this machine, in one run."""

import asyncio
import json
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import click
import msgspec
import nats
from rich.console import Console

from benchmarks import fanout, http_load, raw, revocations
from benchmarks.figures import Figure, machine, show
from benchmarks.seed import seed
from deploy.dev import processes
from grantbook import subjects
from grantbook.sdk.log import LogReader

CONNECTIONS: Final = 64
GRANTS_IN_REPORTS: Final = 1_000
REPORT_ENTRIES: Final = 1_000
POLL_SECONDS: Final = 0.02
PROJECTION_SECONDS: Final = 300.0
LIFETIME: Final = timedelta(hours=1)

console: Final = Console(stderr=True)


@click.command()
@click.option("--seconds", default=8.0, show_default=True, help="Length of each load.")
@click.option("--events", default=100_000, show_default=True, help="Mixed events to project and rebuild.")
@click.option("--rounds", default=300, show_default=True, help="Revocations to time until they are denied.")
@click.option("--grants", default=1_000_000, show_default=True, help="Of the client that is deleted; 0 leaves it out.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here too."
)
def main(seconds: float, events: int, rounds: int, grants: int, json_file: Path | None) -> None:
    """Measure Grantbook beside the raw limits of NATS and Postgres on this machine.

    Every acknowledged write is on disk. Services run as processes of their own; the load shares the machine with them.
    """
    with tempfile.TemporaryDirectory(prefix="grantbook-bench-") as folder:
        place = Path(folder)
        sync = raw.disk_sync_milliseconds(place)
        say("a million revocations in memory")
        memory = revocations.in_memory()  # first, while this process has freed nothing yet
        with limitless(place / "one") as servers:
            figures = asyncio.run(measure(servers, seconds, events, rounds)) + memory
        with limitless(place / "nodes", nodes=3) as servers:
            figures += asyncio.run(through_a_loss(servers, rounds))
        if grants:
            say(f"deleting a client with {grants} grants")
            with limitless(place / "fanout") as servers:
                figures += asyncio.run(fanout.fanout(servers, grants=grants))
    machine_ = machine(sync)
    show(f"Grantbook on {machine_}", figures)
    if json_file is not None:
        report = {
            "machine": machine_,
            "disk_sync_ms": sync,
            "figures": [msgspec.to_builtins(each) | {"ratio": each.ratio} for each in figures],
        }
        json_file.write_text(json.dumps(report, indent=2) + "\n")


@contextmanager
def limitless(folder: Path, *, nodes: int = 1) -> Iterator[processes.Product]:
    """Servers whose registries refuse no registration for coming too fast: that is not what is measured."""
    folder.mkdir()
    with processes.servers(folder, nodes=nodes) as servers:
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
        figures = await revocations.delays(servers, port, rounds, deliveries)
        say("the same through the loss of a node")
        return figures + await revocations.loss(servers, port)


async def measure(servers: processes.Product, seconds: float, events: int, rounds: int) -> list[Figure]:
    """All figures, in an order that leaves each load the machine to itself."""
    connection = await nats.connect(servers.nats_url)
    try:
        say("raw limits: appends, inserts, deliveries")
        appends = await raw.appends(connection, seconds / 2)
        inserts = await raw.inserts(servers.database_url)
        deliveries = await raw.deliveries(connection, rounds)
        figures = []
        with processes.service(servers, "registry", "serve") as port:
            say("registrations over HTTP")
            figures += await registrations(port, seconds, appends)
            say("activity over HTTP")
            figures += await activity(servers, port, seconds, appends)
            say("revocations until they are denied")
            figures += await revocations.delays(servers, port, rounds, deliveries)
        say(f"seeding {events} events")
        async with LogReader(connection, subjects.LOG) as log:
            await seed(connection, events=events)
            head = (await log.state()).last
        say("raw pulls")
        pulls = await raw.pulls(connection, subjects.LOG, head)
        figures += projection(servers, head, pulls, inserts)
        return figures
    finally:
        await connection.close()


async def registrations(port: int, seconds: float, appends: float) -> list[Figure]:
    """Durable registrations: an agent's request to its 201."""
    body = json.dumps(
        {
            "client_name": "Claude",
            "redirect_uris": ["https://claude.ai/api/mcp/auth_callback"],
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": "none",
        }
    ).encode()
    one = http_load.request("POST", "/auth/connect/register", body)
    await http_load.load(port, lambda _: one, wanted=201, connections=CONNECTIONS, seconds=1)
    load = await http_load.load(port, lambda _: one, wanted=201, connections=CONNECTIONS, seconds=seconds)
    assert not load.failed, f"{load.failed} registrations failed"
    return [
        Figure(
            "durable registrations over HTTP",
            load.rate,
            "/s",
            appends,
            "atomic batches of 100",
            ">= 1,500/s",
            load.rate >= 1_500,
        ),
    ]


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
    assert not load.failed, f"{load.failed} reports failed"
    entries = load.rate * REPORT_ENTRIES
    return [Figure("activity over HTTP, entries", entries, "/s", appends, "atomic batches of 100", "", None)]


def projection(servers: processes.Product, head: int, pulls: float, inserts: float) -> list[Figure]:
    """Mixed events from the log into Postgres, live and as a rebuild."""
    limit, limit_is = min((pulls, "pulls"), (inserts, "unnest inserts"))
    with processes.service(servers, "projector", "serve", until="/healthz") as port:
        say(f"projecting {head} events")
        started = time.perf_counter()
        with processes.service(servers, "projector", "project", serves=False):
            while (position := log_position(port, servers.tokens["admin"])) < head:
                assert time.perf_counter() - started < PROJECTION_SECONDS, f"projected only {position} of {head}"
                time.sleep(POLL_SECONDS)
            live = head / (time.perf_counter() - started)
        say(f"rebuilding {head} events")
        started = time.perf_counter()
        processes.run("projector", "rebuild", environment=servers.environment)
        rebuilt = head / (time.perf_counter() - started)
    return [
        Figure(
            "projected events, start of the process included",
            live,
            "/s",
            limit,
            limit_is,
            ">= 10,000/s",
            live >= 10_000,
        ),
        Figure("rebuilt events, start of the process included", rebuilt, "/s", limit, limit_is, "", None),
    ]


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


def say(what: str) -> None:
    """Progress, for whoever waits."""
    console.print(f"[dim]{what} ...[/dim]")


if __name__ == "__main__":
    main()
