"""A figure of a report, and the report: what was measured, beside what limits it, as a table and as JSON."""

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

_console: Final = Console(stderr=True)


class Figure(Struct, frozen=True):
    """One line: what was measured, the raw limit beside it, and the bar."""

    what: str
    measured: float
    unit: str
    limit: float
    limit_is: str
    bar: str = ""
    met: bool | None = None

    @property
    def ratio(self) -> float:
        """Measured by limit; for times, how many raw ones it takes."""
        return self.measured / self.limit if self.limit else 0.0


class Report(Struct):
    """A run: on what, its figures, and what its plots are drawn from."""

    machine: str
    disk_sync_ms: float
    figures: list[Figure] = []
    details: dict[str, dict[str, float]] = {}
    """By table, values by what they are of: in the unit that the table's name says."""


def at_least(what: str, measured: float, unit: str, limit: float, limit_is: str, *, ratio: float) -> Figure:
    """A rate that should be so many times the limit beside it."""
    return Figure(what, measured, unit, limit, limit_is, f">= {ratio:g} x", measured >= ratio * limit)


def at_most(what: str, measured: float, unit: str, limit: float, limit_is: str, bar: float) -> Figure:
    """A figure that should not be above the bar."""
    return Figure(what, measured, unit, limit, limit_is, f"<= {bar:g} {unit}".rstrip(), measured <= bar)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of them is not above."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def machine(disk_sync_milliseconds: float) -> str:
    """What the figures were measured on."""
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"disk sync {disk_sync_milliseconds:.2f} ms"
    )


def write(report: Report, file: Path) -> None:
    """Write a run as JSON, each figure with its ratio."""
    plain: dict[str, Any] = msgspec.to_builtins(report)
    plain["figures"] = [msgspec.to_builtins(each) | {"ratio": round(each.ratio, 4)} for each in report.figures]
    file.write_text(json.dumps(plain, indent=1) + "\n")


def read(file: Path) -> Report:
    """A run that was written."""
    return msgspec.json.decode(file.read_bytes(), type=Report)


def show(title: str, figures: Sequence[Figure]) -> None:
    """Print a table of them."""
    table = Table(title=title)
    table.add_column("what")
    table.add_column("measured", justify="right")
    table.add_column("beside it", justify="right")
    table.add_column("ratio", justify="right")
    table.add_column("bar")
    for each in figures:
        table.add_row(*_cells(each))
    Console(width=150).print(table)


def page(report: Report, plots: Sequence[str]) -> str:
    """A run as a page of Markdown: its table, and the pictures that stand beside it."""
    rows = ["| what | measured | beside it | ratio | bar |", "|---|---|---|---|---|"]
    rows += [f"| {' | '.join(_cells(each))} |" for each in report.figures]
    pictures = [f"![{each.removesuffix('.svg')}]({each})" for each in plots]
    return "\n".join(
        [
            "# The record",
            "",
            f"Written by `make bench` on {report.machine}. Each rate and time stands beside what limits it.",
            "",
            *rows,
            "",
            *pictures,
            "",
        ]
    )


def _cells(each: Figure) -> tuple[str, str, str, str, str]:
    mark = "" if each.met is None else "  met" if each.met else "  MISSED"
    digits = 1 if each.unit in {"ms", "s"} else 2 if each.unit == "x" else 0
    return (
        each.what,
        f"{each.measured:,.{digits}f} {each.unit}",
        f"{each.limit:,.{digits}f} ({each.limit_is})",
        f"{each.ratio:.2f}",
        each.bar + mark,
    )


def say(what: str) -> None:
    """Progress, for whoever waits."""
    _console.print(f"[dim]{what} ...[/dim]")
