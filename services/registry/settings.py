"""The registry's settings: what an operator may choose, with the defaults. Read from the environment in `app.py`."""

from pathlib import Path

from msgspec import Struct

from door.limits import Rate
from door.sources import Proxies
from registry.fanout import PACE_PER_SECOND
from registry.unused import MAX_UNUSED_CLIENTS


class Policy(Struct, frozen=True, kw_only=True):
    """What an operator decides about registration."""

    everyone: Rate | None = Rate(20, 100_000)
    """Requests to registration by all, together."""
    source: Rate | None = Rate(1, 20_000)
    """Requests to registration by one source: an IPv4 address, or an IPv6 /64."""
    proxies: Proxies = Proxies()
    """Whose `X-Forwarded-For` is believed."""
    max_unused_clients: int | None = MAX_UNUSED_CLIENTS
    """Above it the oldest clients that were never used are expired. None: never."""
    idempotent_registration: bool = False
    """Whether identical public clients are one client."""
    rotate_client_secrets: bool = True
    """Whether an update gives a new secret, or keeps the one that is there, which then nobody can be shown."""
    software_statement_issuers: Path | None = None
    """File of the issuers whose software statements are believed."""


class Settings(Struct, frozen=True, kw_only=True):
    """How a registry runs."""

    nats_url: str
    tokens_file: Path
    base_url: str
    """Where agents reach the registry from outside, for the URLs it hands out; no trailing slash."""
    nats_monitor_url: str | None = None
    """The NATS server's monitoring endpoint. With it, a server without `sync_interval: always` is refused."""
    allow_development_tokens: bool = False
    policy: Policy = Policy()
    fanout: bool = True
    fanout_pace_per_second: int = PACE_PER_SECOND
