"""`python -m benchmarks.partitions`: a register of so many grants, cut into partitions by a hash of its clients.

Every subject is made as the register makes it, and finds its slot by the client in it; nothing is sampled. Then the
partitions, each a range of slots, are weighed with what a subject, an event and a row were measured to take. Nothing is
written anywhere. Docs: docs/scaling.md.
"""

import hashlib
import itertools
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

import click
import msgspec
from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks import figures
from benchmarks.seed import WEIGHTS
from grantbook import subjects

SLOTS: Final = 4_096
"""Clients are hashed into so many; a partition is a range of them, so that a range can be cut or moved."""
CLIENTS_AT_ONCE: Final = 20_000
"""What a process makes before it says so."""
GRANTS_AT_ONCE: Final = 100_000
"""The same of the giant."""
MAX_PARTITIONS: Final = 1_024
GIANT: Final = 2**32 - 1
"""Number of the client that has many grants: beyond all others."""
GIB: Final = 2**30
MEGABYTE: Final = 1e6
MEMORY_SHARE: Final = 0.75
"""Of a machine's memory for the streams' subjects: the rest is for writes that are under way, and for the system."""
FIGURES: Final = Path(__file__).parents[1] / "docs" / "benchmarks" / "figures.json"


class Sizes(Struct, frozen=True):
    """What was measured, and where that stands. In bytes."""

    log: float
    """On disk, for an event: the log and the feed, of one node."""
    postgres: float
    """On disk, for an event: all tables and indexes of the read models."""
    events_a_grant: float
    """Issued, extended and revoked."""
    source: str


MEMORY_LOW: Final = 292.0
MEMORY_HIGH: Final = 450.0
"""Bytes that nats-server 2.15 holds for a subject of a stream, its name among them, at a million of them."""
MEASURED: Final = Sizes(
    log=766,
    postgres=1218,
    events_a_grant=1.244,
    source="constants, measured in a register of 20,000 clients, 200,000 grants and 268,892 events",
)


class Counts(Struct):
    """By slot: clients, grants, subjects, and the characters of these."""

    clients: list[int]
    grants: list[int]
    subjects: list[int]
    characters: list[int]

    def add(self, other: "Counts") -> None:
        """Add what another has counted."""
        for mine, others in zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True):
            for slot, number in enumerate(others):
                mine[slot] += number


class Part(Struct, frozen=True):
    """A part of the register: clients with these numbers, or, of the giant, grants with these."""

    first: int
    end: int
    giant: bool

    @property
    def grants(self) -> int:
        """How many it has."""
        return self.end - self.first if self.giant else sum(grants_of(each) for each in range(self.first, self.end))


class Partition(Struct, frozen=True):
    """What one partition holds."""

    clients: int
    grants: int
    subjects: int


def no_counts() -> Counts:
    """Nothing in any slot."""
    return Counts([0] * SLOTS, [0] * SLOTS, [0] * SLOTS, [0] * SLOTS)


@lru_cache(maxsize=1)
def slot_of(client: str) -> int:
    """The slot of a client's token: the first 12 bits of its SHA-256."""
    return int.from_bytes(hashlib.sha256(client.encode()).digest()[:2], "big") >> 4


def partition_of(slot: int, partitions: int) -> int:
    """Which of so many partitions has the slot, when all are of one size."""
    return slot * partitions // SLOTS


def grants_of(client: int) -> int:
    """How many grants the client with this number has: as in the register that is seeded, five in the mean."""
    return WEIGHTS[client % len(WEIGHTS)]


def client_id_of(client: int) -> str:
    """An id as the registry mints it."""
    return f"019593{client >> 24 & 0xFF:02x}-{client >> 8 & 0xFFFF:04x}-7{client & 0xFF:03x}-8000-{client:012x}"


def parts(clients: int, giant: int) -> Iterator[Part]:
    """A register with so many clients, and a giant with so many grants, in parts that are made one at a time."""
    for first in range(0, giant, GRANTS_AT_ONCE):
        yield Part(first, min(first + GRANTS_AT_ONCE, giant), giant=True)
    for first in range(0, clients, CLIENTS_AT_ONCE):
        yield Part(first, min(first + CLIENTS_AT_ONCE, clients), giant=False)


def clients_for(grants: int) -> int:
    """How many clients have so many grants together, or just more."""
    turns, rest = divmod(grants, sum(WEIGHTS))
    if not rest:
        return turns * len(WEIGHTS)
    return turns * len(WEIGHTS) + 1 + sum(each < rest for each in itertools.accumulate(WEIGHTS))


def subjects_of(client_id: str, grants: range) -> Iterator[str]:
    """Every subject of a client that was let in, each time it was, and cut off in the end: none can have more."""
    client = subjects.token(client_id)
    if grants.start == 0:
        yield subjects.client_record(client)
        yield subjects.client_gate(client)
    token = subjects.token.__wrapped__  # itself, without its memory: no grant comes twice
    of_client = client_id[:24]
    for number in grants:
        grant = token(f"{of_client}{number:012x}")
        yield subjects.grant_record(client, grant)
        yield subjects.grant_gate(client, grant)


def counted(part: Part) -> tuple[Part, Counts]:
    """Make every subject of a part, and count where each belongs."""
    counts = no_counts()
    if part.giant:
        _count(counts, client_id_of(GIANT), range(part.first, part.end))
    else:
        for client in range(part.first, part.end):
            _count(counts, client_id_of(client), range(grants_of(client)))
    return part, counts


def _count(counts: Counts, client_id: str, grants: range) -> None:
    in_subjects, in_characters = counts.subjects, counts.characters
    for subject in subjects_of(client_id, grants):
        client = subjects.client_token_of(subject)
        assert client is not None
        slot = slot_of(client)
        in_subjects[slot] += 1
        in_characters[slot] += len(subject)
    slot = slot_of(subjects.token(client_id))
    counts.clients[slot] += grants.start == 0
    counts.grants[slot] += len(grants)


def simulate(grants: int, giant: int, processes: int) -> tuple[Counts, Counts]:
    """The register without its giant, and the giant."""
    clients = clients_for(grants - giant)
    rest, alone = no_counts(), no_counts()
    console = Console(stderr=True)
    columns = (TextColumn("grants"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    context = multiprocessing.get_context("spawn")
    with (
        context.Pool(processes) as pool,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown,
    ):
        task = shown.add_task("grants", total=grants)
        for part, counts in pool.imap_unordered(counted, parts(clients, giant)):
            (alone if part.giant else rest).add(counts)
            shown.advance(task, part.grants)
    return rest, alone


def partitioned(counts: Sequence[Counts], partitions: int) -> list[Partition]:
    """What each of so many partitions holds of them all."""
    found = [[0, 0, 0] for _ in range(partitions)]
    for each in counts:
        for slot in range(SLOTS):
            of = found[partition_of(slot, partitions)]
            of[0] += each.clients[slot]
            of[1] += each.grants[slot]
            of[2] += each.subjects[slot]
    return [Partition(*each) for each in found]


def sizes(file: Path = FIGURES) -> Sizes:
    """What the record of `make bench` says that things take on disk, or the constants where there is none."""
    size = figures.read(file).details.get("size", {}) if file.exists() else {}
    if "events" not in size:
        return MEASURED
    tables = sum(number for what, number in size.items() if what.endswith((": bytes of rows", ": bytes of indexes")))
    return Sizes(
        log=size["nats: bytes on disk"] / size["events"],
        postgres=tables / size["events"],
        events_a_grant=(size["events"] - size["clients: rows"]) / size["grants: rows"],
        source=f"{file.name} of `make bench`, a register of {size['events']:,.0f} events",
    )


class Need(Struct, frozen=True):
    """What one partition takes on each node of its cluster, and in Postgres, in bytes."""

    memory_low: float
    memory_high: float
    log: float
    postgres: float


def need(partition: Partition, of: Sizes) -> Need:
    """Of a partition. Gates are subjects of the log and of the feed, so half of its subjects count twice."""
    held = partition.subjects + partition.clients + partition.grants
    events = partition.clients + partition.grants * of.events_a_grant
    return Need(held * MEMORY_LOW, held * MEMORY_HIGH, events * of.log, events * of.postgres)


def carried(memory_gib: float, of: Need) -> int:
    """How many such partitions a node with so much memory carries."""
    return int(memory_gib * GIB * MEMORY_SHARE // of.memory_high)


def show(rest: Counts, giant: Counts, partitions: Sequence[int], memory_gib: float, of: Sizes) -> None:
    """Print what came of it."""
    console = Console(width=150)
    total = partitioned([rest, giant], 1)[0]
    names = sum(rest.characters) + sum(giant.characters)
    console.print(
        f"{total.clients:,} clients, {total.grants:,} grants, {total.subjects:,} subjects of "
        f"{names / total.subjects:.0f} characters in the mean."
    )
    console.print(
        f"Memory of a subject: {MEMORY_LOW:.0f} to {MEMORY_HIGH:.0f} bytes. Disk: {of.source}: {of.log:,.0f} bytes an "
        f"event in the log and feed of a node, {of.postgres:,.0f} in Postgres, {of.events_a_grant:.2f} events a grant."
    )
    for title, counts in (
        ("without the giant", [rest]),
        (f"with a client of {sum(giant.grants):,} grants", [rest, giant]),
    ):
        if not any(sum(each.subjects) for each in counts):
            continue
        table = Table(title=f"subjects and needs of a partition, {title}")
        for name in ("partitions", "min", "median", "max", "max / median", "memory of the largest, GiB"):
            table.add_column(name, justify="right")
        for name in ("log, GiB", "Postgres, GiB", f"carried by {memory_gib:g} GiB"):
            table.add_column(name, justify="right")
        for number in partitions:
            found = sorted(partitioned(counts, number), key=lambda each: each.subjects)
            middle, largest = found[len(found) // 2], found[-1]
            takes = need(largest, of)
            table.add_row(
                str(number),
                f"{found[0].subjects:,}",
                f"{middle.subjects:,}",
                f"{largest.subjects:,}",
                f"{largest.subjects / max(1, middle.subjects):.3f}",
                f"{takes.memory_low / GIB:.1f} to {takes.memory_high / GIB:.1f}",
                f"{takes.log / GIB:.1f}",
                f"{takes.postgres / GIB:.1f}",
                str(carried(memory_gib, takes)),
            )
        console.print(table)


@click.command()
@click.option(
    "--grants", type=click.IntRange(1), default=100_000_000, show_default=True, help="Grants, of all clients."
)
@click.option(
    "--partitions",
    type=click.IntRange(1, MAX_PARTITIONS),
    multiple=True,
    default=(1, 4, 8, 16, 32, 64),
    show_default=True,
    help="Partitions to weigh; may be repeated.",
)
@click.option("--giant", type=click.IntRange(0), default=1_000_000, show_default=True, help="Of these, one client's.")
@click.option("--memory-gib", default=64.0, show_default=True, help="Memory of a machine that carries partitions.")
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=os.cpu_count() or 1,
    show_default="the number of cores",
    help="Processes that make subjects.",
)
def main(grants: int, partitions: tuple[int, ...], giant: int, memory_gib: float, processes: int) -> None:
    """Make all subjects of a register with so many grants, and say what its partitions hold and need.

    Grants are spread over clients as `python -m benchmarks.seed` does: a few have many. Each grant counts with both of
    its subjects, as if all had been revoked: a partition never has more.
    """
    giant = min(giant, grants)
    started = time.perf_counter()
    rest, alone = simulate(grants, giant, processes)
    show(rest, alone, sorted(set(partitions)), memory_gib, sizes())
    click.echo(f"{time.perf_counter() - started:,.0f} s with {processes} processes")


if __name__ == "__main__":
    main()
