"""`python -m benchmarks.plots`: the record's plots and its page, made from its figures."""

from pathlib import Path
from typing import Final

import click
import matplotlib as mpl
from matplotlib.figure import Figure as Drawing
from msgspec import Struct

from benchmarks import figures
from benchmarks.figures import Report
from benchmarks.scale import PAGE_BAR_MS, TOTAL_BAR_MS

OURS: Final = "#2f5d8a"
OTHERS: Final = "#b9c4cf"
MARK: Final = "#b23b3b"
ROW_INCHES: Final = 0.3
WIDTH_INCHES: Final = 8.0
EXACT: Final = 100.0
"""Smaller values are written with their decimals."""
PLOTTED: Final = (
    ("registrations a second", "registrations.svg", None),
    ("pages of the list, p99 in ms", "pages.svg", PAGE_BAR_MS),
    ("pages with their exact totals, p99 in ms", "totals.svg", TOTAL_BAR_MS),
)
"""Of the report's details: which, where to, and the mark that they should stay below."""


def draw(report: Report, folder: Path) -> list[str]:
    """Draw what the run has, as SVG: the same figures give the same bytes. Names of the files."""
    # Text stays text, and ids do not change with each run.
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "grantbook", "font.family": "sans-serif"}
    with_bars = [each for each in report.figures if each.bar.endswith(" x") and each.unit != "x"]
    _plot(
        folder / "ratios.svg",
        f"Rates, in times what stands beside them; red is the bar\n{report.machine}",
        [Row(f"{each.what} / {each.limit_is}", each.ratio, float(each.bar.split()[1])) for each in with_bars],
    )
    drawn = ["ratios.svg"]
    for name, file, bar in PLOTTED:
        values = report.details.get(name, {})
        rows = [Row(each, values[each], bar, ours="Grantbook" in each or bar is not None) for each in values]
        if rows:
            _plot(folder / file, f"{name[0].upper()}{name[1:]}\n{report.machine}", rows)
            drawn.append(file)
    return drawn


class Row(Struct, frozen=True):
    """A bar of a plot, and the mark that it should reach, or stay below."""

    name: str
    value: float
    mark: float | None
    ours: bool = True


def _plot(file: Path, title: str, rows: list[Row]) -> None:
    drawing = Drawing(figsize=(WIDTH_INCHES, ROW_INCHES * len(rows) + 1.0), layout="constrained")
    axes = drawing.add_subplot()
    drawn = axes.barh(
        range(len(rows)), [each.value for each in rows], color=[OURS if each.ours else OTHERS for each in rows]
    )
    labels = [f"{each.value:,.2f}" if each.value < EXACT else f"{each.value:,.0f}" for each in rows]
    axes.bar_label(drawn, labels=labels, padding=4, fontsize=8)
    for place, each in enumerate(rows):
        if each.mark is not None:
            axes.plot([each.mark] * 2, [place - 0.45, place + 0.45], color=MARK, linewidth=1.5)
    axes.set_yticks(range(len(rows)), [each.name for each in rows])
    axes.invert_yaxis()
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    drawing.savefig(file, metadata={"Date": None})


@click.command()
@click.argument(
    "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path("docs/benchmarks")
)
def main(folder: Path) -> None:
    """Draw the plots of FOLDER anew, and write its page, from its figures.json."""
    report = figures.read(folder / "figures.json")
    (folder / "README.md").write_text(figures.page(report, draw(report, folder)))


if __name__ == "__main__":
    main()
