"""What every handler of the registry works with: its parts, handed in by the composition root."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from litestar import Request
from msgspec import Struct

from door.limits import Limits
from grantbook import positions
from grantbook.sdk.log import LogReader
from registry.activity import ActivityLog
from registry.ahead import Ahead
from registry.buckets import Bucket
from registry.keys import Seals
from registry.settings import Policy
from registry.statements import Statements
from registry.store import Log


class Register(Struct, frozen=True):
    """The registry, assembled. `now` gives UTC, `new_id` a UUIDv7, `random` that many random bytes."""

    log: Log
    log_identity: str
    activity: ActivityLog
    activity_identity: str
    activity_reader: LogReader
    credentials: Bucket
    ahead: Ahead
    """Credentials for those that register."""
    subscribers: Bucket
    """Receipts of the token services."""
    seals: Seals
    now: Callable[[], datetime]
    new_id: Callable[[], str]
    random: Callable[[int], bytes]
    limits: Limits
    """In front of what anybody may do."""
    statements: Statements
    policy: Policy
    base_url: str
    """Where agents reach us from outside, without a trailing slash. Configuration, never a request's `Host`."""

    def log_position(self, sequence: int) -> dict[str, str]:
        """The answer's header for a position of the log."""
        return {"Grantbook-Position": str(positions.Position("log", self.log_identity, sequence))}

    def activity_position(self, sequence: int) -> dict[str, str]:
        """The answer's header for a position of the activity log."""
        return {"Grantbook-Position": str(positions.Position("activity", self.activity_identity, sequence))}


def register_of(request: Request[Any, Any, Any]) -> Register:
    """What others are handed as `register`. Handing it over takes a tenth of the time that a registration does."""
    register: Register = request.app.state.registry.register
    return register
