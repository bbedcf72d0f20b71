"""What filters ask of clients, as bits of one column: counting a list then reads a small table, and no client.

`clients.traits` is made of the other columns by Postgres itself, so the two cannot differ; `listed.traits` is the same.
Of expressions Postgres takes it that hardly any row equals a value, so nothing here is written as an equality.
"""

from collections.abc import Mapping
from typing import Final

from appraisal import flags

STORED_FLAGS: Final = ("new_redirect_host", "many_registrations")
"""Flags that are columns: the log before a client tells them, and not its metadata."""
TIMELY_FLAG: Final = "never_used"
"""The one that time tells."""
GRANT_TYPES: Final = ("authorization_code", "refresh_token")
"""Those that nearly all have. Others are rare, and are found by an index of their own."""


def _conditions() -> dict[str, str]:
    told = [each for each in flags.ALL if each not in {*STORED_FLAGS, TIMELY_FLAG}]
    return {
        "suspended": "suspended_position IS NOT NULL",
        "deleted": "deleted_position IS NOT NULL",
        "source:cimd": "source = 'cimd'",
        "source:manual": "source = 'manual'",
        **{each: f"'{each}' = ANY(flags)" for each in told},
        **{each: each for each in STORED_FLAGS},
        **{f"grant:{each}": f"'{each}' = ANY(grant_types)" for each in GRANT_TYPES},
    }


CONDITIONS: Final[Mapping[str, str]] = _conditions()
"""Each trait by its name, as it is told from the columns. Its place here is its bit."""
COLUMN: Final = " | ".join(f"(({said})::int << {bit})" for bit, said in enumerate(CONDITIONS.values()))
"""The column."""
CLOSED: Final = ("suspended", "deleted")
"""No grant of a client that has one of these is active."""


def mask(*names: str) -> int:
    """The bits of these traits."""
    places = list(CONDITIONS)
    return sum(1 << places.index(each) for each in set(names))


def has(*names: str) -> str:
    """Of a row `l` of `listed`, or of `tallies`: all of these."""
    return f"(~l.traits & {mask(*names)}) < 1"


def has_any(*names: str) -> str:
    """At least one of these."""
    return f"(l.traits & {mask(*names)}) > 0"


def is_closed() -> str:
    """Of a row that goes by no name, as indexes have it: that it has one of `CLOSED`."""
    return f"(traits & {mask(*CLOSED)}) > 0"


def lacks(*names: str) -> str:
    """None of these."""
    return f"(l.traits & {mask(*names)}) < 1"
