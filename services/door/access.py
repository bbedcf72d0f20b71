"""Access lines as JSON: there is one for each request, so they do without the chain that other lines go through.

They say the same, but for what is bound to structlog's context, which is nothing here; what callers chose of them is
redacted alike. They are written once the loop has come round, those of all requests that ended meanwhile together. So a
process that is killed may have answered a few requests that no line tells of: no access line is a record, events are.
"""

import asyncio
import contextlib
import sys
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec import Struct

from door import redaction

MAX_WRITTEN_CHARACTERS: Final = 4_096
"""At once, but for a line that is longer: a pipe takes so much whole (`PIPE_BUF` of Linux), and workers that write into
one do not cut into each other's lines. Lines are ASCII."""

_encode: Final = msgspec.json.Encoder().encode


class _Line(Struct, frozen=True, omit_defaults=True):
    """The members of a line, in the order in which `door.logs` has them."""

    at: datetime
    level: str
    event: str
    method: str
    path: str
    status: int
    ms: float
    logger: str
    request_id: str
    caller: str | None = None


class Lines:
    """The lines that wait to be written."""

    def __init__(self) -> None:
        self.are_json = False
        """Whether they are written here. `door.logs` says so; otherwise its chain writes them."""
        self._waiting: list[str] = []
        self._loop: asyncio.AbstractEventLoop
        """Which writes them, where some wait."""

    def add(
        self, method: str, template: str, status: int, milliseconds: float, request_id: str, caller: str | None
    ) -> None:
        """The line of a request that has just ended. For use where an event loop runs."""
        if not self._waiting or self._loop.is_closed():
            self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self._write)
        line = _Line(
            datetime.now(UTC),  # noqa: TID251  the time of a line, which structlog takes itself in other lines
            "info",
            "request",
            redaction.text(method),
            template,
            status,
            milliseconds,
            "door",
            redaction.text(request_id),
            None if caller is None else redaction.text(caller),
        )
        self._waiting.append(_encode(line).decode())

    def _write(self) -> None:
        lines, self._waiting = self._waiting, []
        together: list[str] = []
        size = 0
        for line in lines:
            if together and size + len(line) >= MAX_WRITTEN_CHARACTERS:
                _write(together)
                together, size = [], 0
            together.append(line)
            size += len(line) + 1
        _write(together)


def _write(together: list[str]) -> None:
    with contextlib.suppress(OSError, ValueError):  # as every line: one that cannot be written breaks no work
        sys.stderr.write("\n".join([*together, ""]))


lines: Final = Lines()
"""Those of this process, as its logs are."""
