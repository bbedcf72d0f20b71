"""A figure of a report, and the report: what was measured, beside what limits it."""

import os
import platform
from collections.abc import Sequence

from msgspec import Struct
from rich.console import Console
from rich.table import Table


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


def machine(disk_sync_milliseconds: float) -> str:
    """What the figures were measured on."""
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"disk sync {disk_sync_milliseconds:.2f} ms"
    )


def show(title: str, figures: Sequence[Figure]) -> None:
    """Print a table of them."""
    table = Table(title=title)
    table.add_column("what")
    table.add_column("measured", justify="right")
    table.add_column("beside it", justify="right")
    table.add_column("ratio", justify="right")
    table.add_column("bar")
    for each in figures:
        mark = "" if each.met is None else "  met" if each.met else "  MISSED"
        digits = 1 if each.unit in {"ms", "s"} else 0
        table.add_row(
            each.what,
            f"{each.measured:,.{digits}f} {each.unit}",
            f"{each.limit:,.{digits}f} ({each.limit_is})",
            f"{each.ratio:.2f}",
            each.bar + mark,
        )
    Console(width=150).print(table)
