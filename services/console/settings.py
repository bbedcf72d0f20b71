"""The console's settings: what an operator may choose. Read from the environment in `app.py`."""

from pathlib import Path

from msgspec import Struct

from console.oidc import OidcSettings


class Settings(Struct, frozen=True, kw_only=True):
    """How a console runs. People sign in by `oidc`, or by links made with `link_key`, or by either."""

    url: str
    """Where browsers reach the console, without `/console`; https, but for one's own machine."""
    registry_url: str
    projector_url: str
    token: str
    """Bearer token of the role `console`. It stays here: a browser never holds one."""
    oidc: OidcSettings | None = None
    link_key: bytes | None = None
    """Key of one-time links (see `links`), 256 bits."""
    tokens_file: Path | None = None
    """For `/metrics`, of a console that runs by itself."""
