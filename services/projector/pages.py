"""Pages of a list, found by key: a row that did not change is never skipped or repeated."""

import asyncpg
from msgspec import UNSET, Struct, UnsetType

from projector import cursors
from projector.cursors import Place

Row = asyncpg.Record


class Sort(Struct, frozen=True):
    """What a list is sorted by: an expression without NULLs, and its type."""

    expression: str
    type: str


class Paging(Struct, frozen=True):
    """Which page of a list: `sort` is a name, with `-` in front for descending."""

    sort: str
    limit: int
    cursor: str | None
    count: bool
    key: bytes


class Cursors(Struct, frozen=True):
    """Those of a page: of the next one and of the one before, where there is one."""

    next_cursor: str | UnsetType
    previous_cursor: str | UnsetType


class Where:
    """Conditions and the parameters that they need."""

    def __init__(self, parameters: list[object] | None = None) -> None:
        self.parameters: list[object] = [] if parameters is None else parameters
        self._conditions: list[str] = []

    def add(self, condition: str, *values: object) -> None:
        """A condition in which each `{}` stands for a value."""
        self._conditions.append(condition.format(*(self.parameter(each) for each in values)))

    def parameter(self, value: object) -> str:
        """The place of a value."""
        self.parameters.append(value)
        return f"${len(self.parameters)}"

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._conditions)

    def __str__(self) -> str:
        return " AND ".join(f"({each})" for each in self._conditions) or "true"


class Walk(Struct, frozen=True):
    """Which way a page goes, and from where: behind the cursor of one, or before it."""

    place: Place | None
    descending: bool

    @property
    def backward(self) -> bool:
        """Whether its rows come in the other order than they are shown in."""
        return self.place is not None and self.place.backward

    @property
    def direction(self) -> str:
        """As `ORDER BY` has it."""
        return "DESC" if self.descending else "ASC"

    def begin(self, where: Where, sort: Sort, tie: str, tie_type: str) -> None:
        """Only what lies behind the cursor. Sorted values travel as text: exact for every type here."""
        if self.place is not None:
            compare = "<" if self.descending else ">"
            where.add(
                f"({sort.expression}, {tie}) {compare} ({{}}::text::{sort.type}, {{}}::text::{tie_type})",
                self.place.value,
                self.place.tie,
            )

    def turned(self, rows: list[Row], order: str, paging: Paging, since: str) -> tuple[list[Row], Cursors]:
        """Rows as they are shown, without the one too many, and their cursors."""
        more, rows = len(rows) > paging.limit, rows[: paging.limit]
        if self.backward:
            rows.reverse()

        def at(row: Row, *, backward: bool) -> str:
            return cursors.encode(Place(order, row["sorted_value"], row["sorted_tie"], since, backward), paging.key)

        # On the side that this page was come to from there was a page.
        has_next, has_previous = (True, more) if self.backward else (more, self.place is not None)
        return rows, Cursors(
            at(rows[-1], backward=False) if rows and has_next else UNSET,
            at(rows[0], backward=True) if rows and has_previous else UNSET,
        )


def walk(paging: Paging, order: str) -> Walk:
    """The way of a page. Raises `cursors.InvalidCursor`."""
    place = None if paging.cursor is None else cursors.decode(paging.cursor, paging.key, order=order)
    backward = place is not None and place.backward
    return Walk(place, paging.sort.startswith("-") != backward)
