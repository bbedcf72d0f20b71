"""Events as CSV (RFC 4180), for people with a spreadsheet, which runs what looks like a formula.

So a cell that a spreadsheet might take for one gets an apostrophe in front: it shows the rest as text. And no cell has
a semicolon: where that is what parts cells, the rest of a cell would be one of its own.
"""

import csv
import io
import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from grantbook.admin import AuditEvent

COLUMNS: Final = (
    "position",
    "recorded_at",
    "type",
    "actor_kind",
    "actor_id",
    "client_id",
    "grant_id",
    "user_id",
    "data",
)
SEMICOLON: Final = "\\u003b"
_FORMULA: Final = re.compile(r"[\s\ufeff\"']*[=+\-@\uff1d\uff0b\uff0d\uff20|%]|[\t\r\n]")
"""What begins so is a formula in some spreadsheet, also behind blanks or quotes, and in full-width letters."""


def safe_cell(text: str) -> str:
    """The text as a cell that nothing runs. Semicolons, which part cells in half of the world, are as JSON has them."""
    text = text.replace(";", SEMICOLON)
    return f"'{text}" if _FORMULA.match(text) else text


def row(cells: Sequence[str]) -> bytes:
    """One line, with CRLF, every cell made safe."""
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\r\n", quoting=csv.QUOTE_ALL).writerow([safe_cell(each) for each in cells])
    return line.getvalue().encode()


def cells(event: AuditEvent) -> list[str]:
    """An event as the columns have it."""
    data: dict[str, Any] = event.data
    return [
        event.position,
        event.recorded_at.isoformat(),
        event.type,
        event.actor.get("kind", ""),
        event.actor.get("id", ""),
        *(str(data.get(name, "") or "") for name in ("client_id", "grant_id", "user_id")),
        msgspec.json.encode(data).decode(),
    ]
