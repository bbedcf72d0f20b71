"""The registry's settings: what an operator may choose, with the defaults. Read from the environment in `app.py`."""

from pathlib import Path

from msgspec import Struct

from registry.fanout import PACE_PER_SECOND


class Settings(Struct, frozen=True, kw_only=True):
    """How a registry runs."""

    nats_url: str
    tokens_file: Path
    base_url: str
    """Where agents reach the registry from outside, for the URLs it hands out; no trailing slash."""
    nats_monitor_url: str | None = None
    """The NATS server's monitoring endpoint. With it, a server without `sync_interval: always` is refused."""
    allow_development_tokens: bool = False
    fanout: bool = True
    fanout_pace_per_second: int = PACE_PER_SECOND
