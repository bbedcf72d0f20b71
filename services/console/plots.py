"""Plots as inline SVG: no script, no style of their own, and a sentence for those who do not see them."""

from collections.abc import Sequence
from typing import Final

from markupsafe import Markup

SPARK_WIDTH: Final = 84
SPARK_HEIGHT: Final = 22
_SPARK: Final = Markup(
    '<svg class="spark" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
    'aria-label="{label}">{bars}</svg>'
)
_BAR: Final = Markup('<rect x="{x}" y="{y}" width="{width}" height="{height}"></rect>')


def sparkline(counts: Sequence[int]) -> Markup:
    """Activity by day, oldest first, as bars; a day with any use is always seen."""
    highest = max(counts, default=0)
    total = sum(counts)
    label = f"{total:,} uses in {len(counts)} days" if total else f"no use in {len(counts)} days"
    step = SPARK_WIDTH / max(1, len(counts))
    bars = Markup("").join(
        _BAR.format(
            x=f"{index * step:.1f}",
            y=f"{SPARK_HEIGHT - _height(count, highest):.1f}",
            width=f"{step - 1:.1f}",
            height=f"{_height(count, highest):.1f}",
        )
        for index, count in enumerate(counts)
    )
    return _SPARK.format(width=SPARK_WIDTH, height=SPARK_HEIGHT, label=label, bars=bars)


def _height(count: int, highest: int) -> float:
    return 1.0 if count == 0 else max(3.0, SPARK_HEIGHT * count / highest)
