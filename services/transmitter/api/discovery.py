"""Where receivers begin: the transmitter's configuration (SSF 1.0 section 7), and the keys that verify its SETs."""

from typing import Any, Final

import msgspec
from litestar import MediaType, Response, get
from litestar.handlers import HTTPRouteHandler

from transmitter.settings import Settings
from transmitter.streams import METHODS

WELL_KNOWN: Final = "/.well-known/ssf-configuration"
JWKS_PATH: Final = "/ssf/v1/jwks.json"
CACHE: Final = {"Cache-Control": "public, max-age=300"}
"""A new signing key is to be published so long before it signs; `python -m transmitter keys` says how."""
_TAGS: Final = ["shared signals: discovery"]


def configuration(settings: Settings) -> dict[str, Any]:
    """Transmitter Configuration Metadata (SSF 1.0 section 7.1)."""
    base = f"{settings.base_url}/ssf/v1"
    return {
        "spec_version": "1_0",
        "issuer": settings.issuer,
        "jwks_uri": f"{settings.base_url}{JWKS_PATH}",
        "delivery_methods_supported": METHODS,
        "configuration_endpoint": f"{base}/streams",
        "status_endpoint": f"{base}/status",
        "add_subject_endpoint": f"{base}/subjects/add",
        "remove_subject_endpoint": f"{base}/subjects/remove",
        "verification_endpoint": f"{base}/verify",
        "authorization_schemes": [{"spec_urn": "urn:ietf:rfc:6750"}],
        "default_subjects": "ALL",
    }


def routes(settings: Settings, jwks: bytes) -> list[HTTPRouteHandler]:
    """The two routes. The first stands where the issuer's path says (section 7.2), and nowhere else."""
    said = msgspec.json.encode(configuration(settings))

    @get(f"{WELL_KNOWN}{settings.issuer_path}", sync_to_thread=False, tags=_TAGS)
    def ssf_configuration() -> Response[bytes]:
        """Where everything is, and what this transmitter can."""
        return Response(said, media_type=MediaType.JSON, headers=CACHE)

    @get(JWKS_PATH, sync_to_thread=False, tags=_TAGS)
    def jwks_json() -> Response[bytes]:
        """The keys that verify SETs (RFC 7517), the one that signs first."""
        return Response(jwks, media_type=MediaType.JSON, headers=CACHE)

    return [ssf_configuration, jwks_json]
