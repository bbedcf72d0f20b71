"""`make bench`: the figures that Grantbook promises, each beside the raw limit of this machine, in one run."""

import asyncio
import json
import os
import platform
import tempfile
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import click
import msgspec
import nats
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from benchmarks import http_load, raw
from benchmarks.seed import seed
from deploy.dev import processes
from grantbook import subjects
from grantbook.sdk.log import LogReader
from grantbook.sdk.revocations import RevocationFeed

CONNECTIONS: Final = 64
GRANTS_IN_REPORTS: Final = 1_000
REPORT_ENTRIES: Final = 1_000
POLL_SECONDS: Final = 0.02
LOOK_SECONDS: Final = 0.000_5
"""How often a token service looks whether it denies yet; spinning would take one of the machine's cores away."""
PROJECTION_SECONDS: Final = 300.0
LIFETIME: Final = timedelta(hours=1)

console: Final = Console(stderr=True)


class Figure(Struct, frozen=True):
    """One line: what was measured, the raw limit beside it, and the bar."""

    what: str
    measured: float
    unit: str
    limit: float
    limit_is: str
    bar: str
    met: bool | None

    @property
    def ratio(self) -> float:
        """Measured by limit; for times, how many raw ones it takes."""
        return self.measured / self.limit


@click.command()
@click.option("--seconds", default=8.0, show_default=True, help="Length of each load.")
@click.option("--events", default=100_000, show_default=True, help="Mixed events to project and rebuild.")
@click.option("--rounds", default=300, show_default=True, help="Revocations to time until they are denied.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here too."
)
def main(seconds: float, events: int, rounds: int, json_file: Path | None) -> None:
    """Measure Grantbook beside the raw limits of NATS and Postgres on this machine.

    Every acknowledged write is on disk. Services run as processes of their own; the load shares the machine with them.
    """
    with tempfile.TemporaryDirectory(prefix="grantbook-bench-") as folder:
        place = Path(folder)
        sync = raw.disk_sync_milliseconds(place)
        with processes.servers(place) as servers:
            servers.environment["GRANTBOOK_REGISTRATION_LIMIT"] = "off"  # what is measured is not how we refuse
            servers.environment["GRANTBOOK_REGISTRATION_LIMIT_PER_SOURCE"] = "off"
            figures = asyncio.run(measure(servers, seconds, events, rounds))
    machine = (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, disk sync {sync:.2f} ms"
    )
    table = Table(title=f"Grantbook on {machine}")
    for column, justify in (
        ("what", "left"),
        ("measured", "right"),
        ("raw limit", "right"),
        ("ratio", "right"),
        ("bar", "left"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for each in figures:
        mark = "" if each.met is None else "  met" if each.met else "  MISSED"
        table.add_row(
            each.what,
            f"{each.measured:,.1f} {each.unit}" if each.unit == "ms" else f"{each.measured:,.0f} {each.unit}",
            f"{each.limit:,.1f} ({each.limit_is})" if each.unit == "ms" else f"{each.limit:,.0f} ({each.limit_is})",
            f"{each.ratio:.2f}",
            each.bar + mark,
        )
    Console(width=140).print(table)
    if json_file is not None:
        report = {
            "machine": machine,
            "disk_sync_ms": sync,
            "figures": [msgspec.to_builtins(each) | {"ratio": each.ratio} for each in figures],
        }
        json_file.write_text(json.dumps(report, indent=2) + "\n")


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
            figures += await revocations(servers, port, rounds, deliveries)
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


async def revocations(servers: processes.Product, port: int, rounds: int, deliveries: list[float]) -> list[Figure]:
    """From sending an admin's revocation to the moment at which a token service denies."""
    client = post(port, "/auth/connect/register", {"redirect_uris": ["http://localhost/callback"]}, None)["client_id"]
    expires_at = (datetime.now(UTC) + LIFETIME).isoformat()
    times = []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with RevocationFeed(servers.nats_url, LIFETIME) as feed:
        for number in range(rounds):
            grant = {
                "grant_id": f"r{number}",
                "user_id": "ada",
                "username": "ada",
                "scopes": [],
                "expires_at": expires_at,
            }
            path = f"/idp/v1/clients/{client}/grants"
            writer.write(http_load.request("POST", path, json.dumps(grant).encode(), servers.tokens["idp"]))
            assert await http_load.answer(reader) == 201
            issued_at = datetime.now(UTC)
            assert not feed.is_revoked(client, f"r{number}", "ada", issued_at)
            path = f"/admin/v1/clients/{client}/grants/r{number}/revoke"
            started = time.perf_counter()
            writer.write(http_load.request("POST", path, b"{}", servers.tokens["admin"]))
            answered = asyncio.create_task(http_load.answer(reader))
            while not feed.is_revoked(client, f"r{number}", "ada", issued_at):
                await asyncio.sleep(LOOK_SECONDS)
            times.append((time.perf_counter() - started) * 1_000)
            assert await answered == 204
    writer.close()
    times.sort()
    half, most = len(times) // 2, int(len(times) * 0.99)
    return [
        Figure("revoke to denied, p50", times[half], "ms", deliveries[half], "publish to push consumer", "", None),
        Figure(
            "revoke to denied, p99",
            times[most],
            "ms",
            deliveries[most],
            "publish to push consumer",
            "<= 25 ms",
            times[most] <= 25,
        ),
    ]


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
