"""Short names for what a registration says, the same wherever they are computed."""

import hashlib

import msgspec

from grantbook.events import ClientMetadata


def metadata_sha256(metadata: ClientMetadata) -> str:
    """SHA-256 in hex of the metadata as JSON with sorted names and without defaults.

    A member that a later version adds is not in it until a client sets it, so older fingerprints stay what they were.
    """
    return hashlib.sha256(msgspec.json.encode(metadata, order="sorted")).hexdigest()
