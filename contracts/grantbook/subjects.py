"""Ids to subject tokens, events to subjects, and the filters that readers use. Nothing else builds a subject.

grantbook.client.<client>.record                  what the client is
grantbook.client.<client>.gate                    whether it is let in
grantbook.client.<client>.grant.<grant>.record    what was granted
grantbook.client.<client>.grant.<grant>.gate      whether it still stands
grantbook.user.<user>.gate                        all grants up to here end
grantbook.activity.<reporter>                     use of grants
"""

import base64
import hashlib
import re
from functools import lru_cache
from typing import Final

LOG: Final = "GRANTBOOK"
"""Stream of every decision, for ever."""
ACTIVITY: Final = "GRANTBOOK_ACTIVITY"
"""Stream of the use of grants, in windows."""
REVOCATIONS: Final = "GRANTBOOK_REVOCATIONS"
"""Stream sourced from the gates of `LOG`: all that a token service needs, and nothing personal."""

LOG_SUBJECTS: Final = ("grantbook.client.>", "grantbook.user.>")
ACTIVITY_SUBJECTS: Final = ("grantbook.activity.>",)
CLIENT_GATES: Final = "grantbook.client.*.gate"
GRANT_GATES: Final = "grantbook.client.*.grant.*.gate"
USER_GATES: Final = "grantbook.user.*.gate"
GATES: Final = (CLIENT_GATES, GRANT_GATES, USER_GATES)

CREDENTIALS: Final = "grantbook_credentials"
"""Bucket of hashes of client secrets and registration access tokens. Only the registry may touch it."""
USER_KEYS: Final = "grantbook_user_keys"
"""Bucket of data keys, one a person, that seal the personal data in events."""
FANOUT: Final = "grantbook_fanout"
"""Bucket of the fan-out: the lease of the one registry that does it, and how far it got."""
SUBSCRIBERS: Final = "grantbook_subscribers"
"""Bucket of how far each token service has applied the feed."""
SSF: Final = "grantbook_ssf"
"""Bucket of the streams that receivers of Shared Signals set up, made by the transmitter."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_KEY: Final = re.compile(r"~[A-Za-z0-9_-]{43}\Z")
_REMEMBERED_IDS: Final = 65_536


@lru_cache(maxsize=_REMEMBERED_IDS)
def token(id_: str) -> str:
    """The subject-safe token of an id: itself where it is `[A-Za-z0-9_-]{1,64}`, else `~` and its base64url SHA-256.

    The same token is an id's *key* in paths of the HTTP API (`client_key`). Ids that are URLs (client ID metadata
    documents) and ids made to break subjects (`*`, `>`, dots, spaces, newlines) end up as hashes.
    """
    if _PLAIN.match(id_):
        return id_
    digest = hashlib.sha256(id_.encode("utf-8", "surrogatepass")).digest()
    return "~" + base64.urlsafe_b64encode(digest).decode().rstrip("=")


def token_in_path(segment: str) -> str:
    """The token that a path segment names: a key is taken as it stands, anything else is an id."""
    return segment if _KEY.match(segment) else token(segment)


def is_key(token_: str) -> bool:
    """Whether a token is the hash of an id, and so not the id itself."""
    return token_.startswith("~")


def client_record(client: str) -> str:
    """Where `client.registered` and `client.metadata_changed` of the client token stand."""
    return f"grantbook.client.{client}.record"


def client_gate(client: str) -> str:
    """Where `client.suspended`, `client.resumed` and `client.deleted` of the client token stand."""
    return f"grantbook.client.{client}.gate"


def grant_record(client: str, grant: str) -> str:
    """Where `grant.issued` and `grant.extended` of the grant token stand."""
    return f"grantbook.client.{client}.grant.{grant}.record"


def grant_gate(client: str, grant: str) -> str:
    """Where `grant.revoked` of the grant token stands."""
    return f"grantbook.client.{client}.grant.{grant}.gate"


def user_gate(user: str) -> str:
    """Where `user.grants_revoked` of the user token stands."""
    return f"grantbook.user.{user}.gate"


def activity(reporter: str) -> str:
    """Where `activity.recorded` of a reporter stands."""
    return f"grantbook.activity.{token(reporter)}"


def everything_of_client(client: str) -> str:
    """Filter: the client, and all of its grants."""
    return f"grantbook.client.{client}.>"


def everything_of_holding(client: str, grant: str) -> str:
    """Filter: one grant of one client."""
    return f"grantbook.client.{client}.grant.{grant}.*"


def is_gate(subject: str) -> bool:
    """Whether what stands on a subject of the log decides who is let in."""
    return subject.endswith(".gate")


def everything_of_grant(grant: str) -> str:
    """Filter: one grant, under whichever client."""
    return f"grantbook.client.*.grant.{grant}.*"


def grant_token_of(subject: str) -> str | None:
    """The grant token in a subject of the log, or nothing where the subject is of no grant."""
    parts = subject.split(".")
    return parts[4] if len(parts) == 6 and parts[3] == "grant" else None


def client_token_of(subject: str) -> str | None:
    """The client token in a subject of the log, or nothing where the subject is of no client."""
    parts = subject.split(".")
    return parts[2] if len(parts) >= 4 and parts[1] == "client" else None


def user_token_of(subject: str) -> str | None:
    """The user token in a subject of the log, or nothing where the subject is of no user."""
    parts = subject.split(".")
    return parts[2] if len(parts) >= 4 and parts[1] == "user" else None


def bucket_stream(bucket: str) -> str:
    """The stream behind a key-value bucket (NATS ADR-8)."""
    return f"KV_{bucket}"


def bucket_subjects(bucket: str) -> str:
    """Filter: every key of a bucket."""
    return f"$KV.{bucket}.>"


def bucket_key(bucket: str, key: str) -> str:
    """Where a key of a bucket stands. `~` of tokens becomes `=`: NATS clients refuse it in keys."""
    return f"$KV.{bucket}.{key.replace('~', '=')}"
