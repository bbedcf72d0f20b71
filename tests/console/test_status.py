"""The status at the console: what happened over time, and what each service says of itself."""

from datetime import UTC, datetime, timedelta
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console import plots
from grantbook.admin import Trend, Trends
from tests.console.conftest import Console, House

pytestmark = pytest.mark.browser


async def test_what_happened_is_plotted_and_told_in_numbers(console: Console, house: House) -> None:
    """Operators who see a flood, and those who cannot see: the same numbers stand in words and in a table."""
    for _ in range(3):
        client = await house.register()
    await house.grant(client)
    await house.ask("DELETE", f"/admin/v1/clients/{client}")
    await house.settled()
    page = unescape((await console.get("/console/status?days=7")).text)
    assert "<figcaption>Registrations <b>3</b></figcaption>" in page
    assert 'aria-label="Registrations: 3 from ' in page
    assert "highest: 3 a day" in page
    table = page.partition("What happened, by day")[2].partition("</table>")[0]
    assert table.count('<th scope="row">') == 7
    assert f'<th scope="row">{datetime.now(UTC):%Y-%m-%d}</th><td class="count">3</td><td class="count">1</td>' in table
    for days in ("30", "365", "8"):
        await console.get(f"/console/status?days={days}")


async def test_services_say_how_they_are(console: Console, house: House) -> None:
    """Operators: the reasons of `/readyz` stand where they look."""
    page = unescape((await console.get("/console/status")).text)
    assert "<dt>Register and read API</dt>" in page
    assert '<span class="status ready">ready</span>' in page


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=400))
def test_a_plot_has_a_bar_for_each_number_and_stays_in_its_frame(values: list[int]) -> None:
    """Whoever looks: a day on which something happened is never invisible, and none sticks out."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    items = [
        Trend(
            since=start + number * timedelta(days=1),
            registered=value,
            granted=0,
            revoked=0,
            users_cut_off=0,
            suspended=0,
            deleted=0,
        )
        for number, value in enumerate(values)
    ]
    registered, granted, *_ = plots.plots(Trends(by="day", items=items))
    drawn = registered.path.split("M")[1:]
    assert len(drawn) == sum(value > 0 for value in values)
    heights = [int(each.partition("v-")[2]) for each in drawn]
    assert all(1 <= each <= plots.PLOT_HEIGHT for each in heights)
    assert max(heights, default=plots.PLOT_HEIGHT) == plots.PLOT_HEIGHT
    assert all(0 < float(each.partition(" ")[0]) < plots.PLOT_WIDTH for each in drawn)
    assert registered.total == sum(values)
    assert (granted.path, granted.total, granted.most_at) == ("", 0, None)
