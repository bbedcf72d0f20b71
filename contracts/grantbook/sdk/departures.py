"""Headers of what is sent, as the wire has them (NATS ADR-4). Writers of the log send them by the ten thousand.

The client of NATS looks at each name and value of each message anew: half of what sending an event costs.
"""

import re
from collections.abc import Mapping
from typing import Final

MOST_NAMES: Final = 256
"""Names of headers that are remembered as good ones."""

_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""A token (RFC 9110 section 5.6.2)."""
_names: Final[set[str]] = set()


def block(headers: Mapping[str, str]) -> bytes | None:
    """The headers' block. None where it needs a closer look: a name that is none, or a value with a line break."""
    if not headers.keys() <= _names and not _are_names(headers):
        return None
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        return None  # a header of somebody else's making is none
    return f"NATS/1.0\r\n{lines}\r\n".encode()


def _are_names(headers: Mapping[str, str]) -> bool:
    if not all(_NAME.fullmatch(each) for each in headers):
        return False
    if len(_names) + len(headers) <= MOST_NAMES:
        _names.update(headers)
    return True
