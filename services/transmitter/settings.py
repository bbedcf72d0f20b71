"""The transmitter's settings: what an operator may choose, with the defaults. Read from the environment in `app.py`."""

from pathlib import Path

from msgspec import Struct

MIN_VERIFICATION_INTERVAL_SECONDS = 30
"""Default of how long a receiver waits between two requests for a verification event of one stream."""


class Settings(Struct, frozen=True, kw_only=True):
    """How a transmitter runs."""

    nats_url: str
    tokens_file: Path
    issuer: str
    """`iss` of every SET, and where discovery begins (SSF 1.0 section 7): an https URL; no trailing slash."""
    subject_issuer: str
    """The identity provider: `iss` of the users that SETs are about (RFC 9493 section 3.2.4)."""
    signing_keys_file: Path
    sealing_key_file: Path
    allowed_hosts: tuple[str, ...] = ()
    """Hosts that may be pushed to; `.example.com` stands for those below it. None named: any host."""
    allowed_networks: tuple[str, ...] = ()
    """Networks that may be pushed to although they are not public."""
    min_verification_interval_seconds: int = MIN_VERIFICATION_INTERVAL_SECONDS
    development: bool = False
    """For one's own machine: keys are made when there are none, and loopback addresses are fine without TLS."""

    @property
    def base_url(self) -> str:
        """Where receivers reach the endpoints: the issuer without its path."""
        scheme, _, rest = self.issuer.partition("://")
        return f"{scheme}://{rest.partition('/')[0]}"

    @property
    def issuer_path(self) -> str:
        """The path of the issuer, with its leading slash; empty where it has none."""
        return self.issuer.removeprefix(self.base_url)
