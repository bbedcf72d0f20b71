"""Numbers as small pictures: the path of an inline SVG, and the words for those who cannot see it.

Bars are strokes of one path, so that a picture is a few bytes a number. Colours are the style sheet's.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from msgspec import Struct

from grantbook.admin import Trends

STEP: Final = 4
"""From one bar to the next, in units of the picture; a bar is three wide."""
SPARK_HEIGHT: Final = 16
PLOT_HEIGHT: Final = 60
PLOT_WIDTH: Final = 600
TRENDS: Final[Mapping[str, str]] = {
    "registered": "Registrations",
    "granted": "Grants",
    "revoked": "Revoked grants",
    "deleted": "Deleted clients",
}
"""What is plotted, by the member of `Trend`. What is rare stands in the table alone."""


class Plot(Struct, frozen=True):
    """A picture of one number over time. Widths and heights are in units of its `viewBox`."""

    name: str
    path: str
    bar_width: float
    total: int
    most: int
    most_at: datetime | None
    first: datetime
    last: datetime


def bars(values: Sequence[int], height: int, step: float = STEP) -> str:
    """The path of bars of these heights, of which the highest is `height`. Where nothing was there is no bar."""
    most = max(values, default=0)
    if most <= 0:
        return ""
    heights = (max(1, round(height * value / most)) if value > 0 else 0 for value in values)
    return "".join(f"M{_short(step * (place + 0.5))} {height}v-{bar}" for place, bar in enumerate(heights) if bar)


def spark(values: Sequence[int]) -> str:
    """The path of a client's use by day."""
    return bars(values, SPARK_HEIGHT)


def plots(trends: Trends) -> list[Plot]:
    """A picture for each of `TRENDS`."""
    moments = [each.since for each in trends.items]
    found = []
    for member, name in TRENDS.items():
        values = [int(getattr(each, member)) for each in trends.items]
        most = max(values)
        step = PLOT_WIDTH / len(values)
        found.append(
            Plot(
                name,
                bars(values, PLOT_HEIGHT, step),
                round(step * 0.8, 2),
                sum(values),
                most,
                moments[values.index(most)] if most else None,
                moments[0],
                moments[-1],
            )
        )
    return found


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")
