"""The projector's settings: what an operator may choose. Read from the environment in `app.py`."""

from pathlib import Path

from msgspec import Struct


class Settings(Struct, frozen=True, kw_only=True):
    """How a projector runs. Without a tokens file it can project, but not serve."""

    nats_url: str
    database_url: str
    read_database_url: str | None = None
    """Where `serve` reads: the database itself, or a streaming replica of it. None: from `database_url`."""
    tokens_file: Path | None = None
    allow_development_tokens: bool = False
