"""What the benchmarks are made of: a history that can be had again, and a report that says what was measured."""

import itertools
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from benchmarks import figures
from benchmarks.figures import Figure, Report
from benchmarks.seed import GIANT, History
from grantbook.events import ClientDeleted, ClientRegistered, GrantIssued, GrantRevoked

AT: Final = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(("clients", "grants"), [(1, 0), (1, 10), (2, 7), (10, 100), (997, 12_345)])
def test_a_history_has_exactly_what_it_was_asked_for(clients: int, grants: int) -> None:
    """Whoever compares two runs: they were of the same register."""
    history = History(clients, grants, AT)
    given = Counter(history.grants_of(each) for each in range(clients))
    events = [event for share in range(3) for event in history.events(share, 3)]
    kinds = Counter(type(each) for each in events)
    issued = sum(number * times for number, times in given.items())
    assert (kinds[ClientRegistered], kinds[GrantIssued]) == (clients, issued)
    assert issued == (grants if clients > 1 else grants // 10), "a register of one client has the giant alone"
    assert events == [event for share in range(3) for event in history.events(share, 3)]


def test_a_history_can_happen() -> None:
    """Readers of figures: no event is about what is not there, and no grant outlives its client."""
    open_grants: dict[str, set[str]] = {}
    deleted: set[str] = set()
    for event in History(500, 5_000, AT).events():
        match event:
            case ClientRegistered():
                open_grants[event.client_id] = set()
            case GrantIssued():
                assert event.client_id not in deleted
                open_grants[event.client_id].add(event.grant_id)
            case GrantRevoked():
                open_grants[event.client_id].remove(event.grant_id)
            case ClientDeleted():
                deleted.add(event.client_id)
            case _:
                raise AssertionError(event)
    assert deleted
    assert GIANT not in deleted
    assert not any(open_grants[each] for each in deleted)


def test_a_report_is_read_as_it_was_written_and_drawn_the_same_again(tmp_path: Path) -> None:
    """Readers of the record: plots change where figures do, and nowhere else."""
    from benchmarks import plots  # noqa: PLC0415  it takes a second, which only the process that runs this shall pay

    report = Report(
        "2 cores",
        0.1,
        [figures.at_least("one", 3.0, "/s", 2.0, "two", ratio=1.2), Figure("other", 1.0, "ms", 0.0, "nothing")],
        {"pages of the list, p99 in ms": {"no filter": 1.5, "<script>": 200.0}},
    )
    figures.write(report, tmp_path / "figures.json")
    assert figures.read(tmp_path / "figures.json") == report
    drawn = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        plots.draw(report, tmp_path / name)
        drawn.append({each.name: each.read_bytes() for each in (tmp_path / name).iterdir()})
    assert drawn[0] == drawn[1]
    assert sorted(drawn[0]) == ["pages.svg", "ratios.svg"]
    assert b"<script>" not in b"".join(drawn[0].values())


def test_the_page_of_a_record_says_which_bars_were_missed() -> None:
    """Readers of the record: a bar that was missed is seen without arithmetic."""
    report = Report(
        "2 cores, disk sync 0.1 ms",
        0.1,
        [
            figures.at_least("one", 3.0, "/s", 2.0, "two", ratio=1.2),
            figures.at_most("three", 9.0, "ms", 1.0, "nothing", 5.0),
        ],
    )
    page = figures.page(report, ["ratios.svg"])
    assert report.machine in page
    assert "| one | 3 /s | 2 (two) | 1.50 | >= 1.2 x  met |" in page
    assert "| three | 9.0 ms | 1.0 (nothing) | 9.00 | <= 5 ms  MISSED |" in page
    assert "(ratios.svg)" in page


def test_no_two_clients_of_a_history_have_one_id() -> None:
    """Readers of figures: a million clients are a million."""
    events = History(300, 600, AT).events()
    registered = [each.client_id for each in events if isinstance(each, ClientRegistered)]
    assert all(one != other for one, other in itertools.pairwise(sorted(registered)))
