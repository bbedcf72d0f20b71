"""The simulation of partitions: every subject is counted, once, where the register would look for it."""

from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner

from benchmarks import partitions
from benchmarks.figures import Report, write
from benchmarks.partitions import Counts, Need, Part, Partition, Sizes
from benchmarks.seed import WEIGHTS
from grantbook import subjects

GRANTS: Final = 30_000
GIANTS: Final = 5_000


@pytest.fixture(scope="module")
def simulated() -> tuple[Counts, Counts]:
    return partitions.simulate(GRANTS, GIANTS, 2)


def test_nothing_is_sampled_and_nothing_counted_twice(simulated: tuple[Counts, Counts]) -> None:
    """Readers of the figures: so many grants are so many, each with two subjects, as each client has."""
    rest, giant = simulated
    assert (sum(giant.grants), sum(giant.clients)) == (GIANTS, 1)
    assert sum(rest.grants) == GRANTS - GIANTS
    assert sum(rest.clients) == partitions.clients_for(GRANTS - GIANTS) == 5_000
    for each in simulated:
        assert sum(each.subjects) == 2 * (sum(each.grants) + sum(each.clients))


@pytest.mark.parametrize("number", [1, 2, 3, 7, 16, 1_000])
def test_every_partition_is_a_range_and_all_together_are_the_register(
    simulated: tuple[Counts, Counts], number: int
) -> None:
    """Operators who cut a range in two: no client is in both, or in none."""
    of = [partitions.partition_of(slot, number) for slot in range(partitions.SLOTS)]
    assert of == sorted(of)
    assert set(of) == set(range(number))
    found = partitions.partitioned(simulated, number)
    assert len(found) == number
    assert sum(each.grants for each in found) == GRANTS
    assert sum(each.subjects for each in found) == sum(sum(each.subjects) for each in simulated)


def test_all_subjects_of_a_client_are_in_one_slot_and_are_the_registers_own() -> None:
    """Users: a grant stands in the log that its client's deletion stands in, or the one would not end the other."""
    client = partitions.client_id_of(3)
    made = list(partitions.subjects_of(client, range(2)))
    assert made[:2] == [f"grantbook.client.{client}.record", f"grantbook.client.{client}.gate"]
    assert len(set(made)) == 6
    assert {subjects.client_token_of(each) for each in made} == {client}
    _, counts = partitions.counted(Part(3, 4, giant=False))
    assert [slot for slot, number in enumerate(counts.subjects) if number] == [partitions.slot_of(client)]
    _, later = partitions.counted(Part(100, 200, giant=True))
    assert later.clients == [0] * partitions.SLOTS, "the giant counts as a client once, whatever part comes first"
    assert later.subjects[partitions.slot_of(partitions.client_id_of(partitions.GIANT))] == 200


def test_no_two_clients_of_the_simulation_have_one_id() -> None:
    """Readers of the figures: a client counted under another's id would balance nothing."""
    assert len({partitions.client_id_of(each) for each in range(0, 40_000_000, 997)}) == len(range(0, 40_000_000, 997))
    assert subjects.token(partitions.client_id_of(20_000_000)) == partitions.client_id_of(20_000_000)


@pytest.mark.parametrize("grants", [0, 1, 29, 30, 31, 49, 50, 51, 12_345])
def test_as_many_clients_as_the_grants_need(grants: int) -> None:
    """Readers of the figures: at most one client's grants more than was asked for."""
    clients = partitions.clients_for(grants)
    having = sum(map(partitions.grants_of, range(clients)))
    assert having >= grants
    assert having - grants < max(WEIGHTS)


def test_needs_follow_from_what_was_measured() -> None:
    """Operators who buy memory by it: gates are in the log and in the feed."""
    of = Sizes(log=1_000, postgres=3_000, events_a_grant=1.5, source="a test")
    needs = partitions.need(Partition(clients=10, grants=100, subjects=220), of)
    low, high = partitions.MEMORY_LOW, partitions.MEMORY_HIGH
    assert needs == Need(memory_low=330 * low, memory_high=330 * high, log=160_000, postgres=480_000)
    assert partitions.carried(1.0, Need(0, 0.25 * partitions.GIB, 0, 0)) == 3
    assert partitions.carried(1.0, Need(0, 2.0 * partitions.GIB, 0, 0)) == 0


def test_sizes_are_those_of_the_record_where_there_is_one(tmp_path: Path) -> None:
    """Readers of the figures: what was measured last counts, and it is said which that was."""
    file = tmp_path / "figures.json"
    assert partitions.sizes(file) == partitions.MEASURED
    size = {
        "events": 130.0,
        "nats: bytes on disk": 130_000.0,
        "clients: rows": 10.0,
        "clients: bytes of rows": 6_500.0,
        "clients: bytes of indexes": 6_500.0,
        "grants: rows": 100.0,
        "grants: bytes of rows": 13_000.0,
    }
    write(Report("2 cores", 0.1, [], {"size": size}), file)
    of = partitions.sizes(file)
    assert (of.log, of.postgres, of.events_a_grant) == (1_000, 200, 1.2)
    assert "figures.json" in of.source
    write(Report("2 cores", 0.1, [], {"size": {}}), file)
    assert partitions.sizes(file) == partitions.MEASURED


def test_the_command_says_what_came_of_it() -> None:
    """Operators: the same command with their own numbers is their plan."""
    said = CliRunner().invoke(
        partitions.main, ["--grants", "2000", "--giant", "500", "--partitions", "4", "--processes", "1"]
    )
    assert said.exit_code == 0, said.output
    assert "2,000 grants" in said.output
    assert "with a client of 500 grants" in said.output
