"""Client ID metadata documents (draft-ietf-oauth-client-id-metadata-document): clients whose id is the URL of their
metadata. The identity provider fetches a document when it meets one, and hands it in; nothing is fetched here. Pure.
"""

import re
from typing import Final

from appraisal import uris
from appraisal.uris import UriRefused
from grantbook.events import ClientMetadata
from registry import metadata
from registry.metadata import Claims, MetadataRefused

MAX_DOCUMENT_BYTES: Final = 5 * 1024
"""Of the document as it was handed in: what the draft recommends as the limit of a response (section 6.6)."""
DEFAULT_AUTH_METHOD: Final = "none"
"""Not RFC 7591's default: a secret cannot be agreed on in a public document (section 4.1)."""

_PATH: Final = re.compile(r"[^:]+://[^/?#]*(/[^?#]*)")
_DOT: Final = r"(?:\.|%2[eE])"
_DOT_SEGMENT: Final = re.compile(rf"(?:^|/){_DOT}{{1,2}}(?:/|$)")
_SECRETS: Final = ("client_secret", "client_secret_expires_at")


def check(client_id: str, document: bytes, *, claims: Claims) -> ClientMetadata:
    """The metadata of a document that was found under `client_id`. Raises `MetadataRefused`."""
    _check_id(client_id)
    if len(document) > MAX_DOCUMENT_BYTES:
        raise _refused(f"metadata: larger than {MAX_DOCUMENT_BYTES} bytes")
    members = metadata.members_of(document)
    if members.get("client_id") != client_id:
        # Compared as strings (section 4.1): a document speaks for the one URL that it stands under.
        raise _refused("metadata: its client_id is not the URL that it was found under")
    for name in _SECRETS:
        if name in members:
            raise _refused(f"{name}: a public document has no secret")
    found = metadata.check(members, claims=claims, default_auth_method=DEFAULT_AUTH_METHOD)
    if metadata.needs_secret(found):
        raise _refused("token_endpoint_auth_method: a public document has no secret; none or private_key_jwt")
    return found


def _check_id(client_id: str) -> None:
    try:
        uri = uris.parse(client_id)
    except UriRefused as refusal:
        raise _refused(f"client_id: it is {refusal}") from None
    path = _PATH.match(client_id)
    if uri.scheme != "https" or not client_id.startswith("https://") or uri.has_fragment or path is None:
        raise _refused("client_id: an https URL with a path and without a fragment was expected")
    if _DOT_SEGMENT.search(path[1]):
        raise _refused("client_id: with a dot segment in its path")


def _refused(description: str) -> MetadataRefused:
    return MetadataRefused("invalid_client_metadata", description)
