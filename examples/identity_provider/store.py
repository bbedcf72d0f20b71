"""What the identity provider keeps for itself, in SQLite: authorization codes and refresh tokens, as hashes.

Which clients there are and which grants stand is not here: Grantbook knows. Whatever may be used once is used in one
statement, so that of two requests at once one comes too late.
"""

import hashlib
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CODE_SECONDS: Final = 60
KEPT_SECONDS: Final = 30 * 86_400
"""How long a refresh token can be used, and is remembered as used."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS credentials (
    hash TEXT PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('code', 'refresh')),
    client_id TEXT NOT NULL,
    grant_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    scope TEXT NOT NULL,
    resource TEXT NOT NULL,
    redirect_uri TEXT NOT NULL,
    code_challenge TEXT NOT NULL,
    expires_at REAL NOT NULL,
    used INTEGER NOT NULL DEFAULT 0
) STRICT;
"""


@dataclass(frozen=True)
class Credential:
    """An authorization code or a refresh token, as Authlib asks of them: whose it is, and what it is good for."""

    hash: str
    client_id: str
    grant_id: str
    user_id: str
    scope: str
    resource: str
    redirect_uri: str
    code_challenge: str
    expires_at: float
    used: bool
    code_challenge_method: str = "S256"

    def get_redirect_uri(self) -> str:
        """RFC 6749 section 4.1.3: the token request must name it again."""
        return self.redirect_uri

    def get_scope(self) -> str:
        """What the user agreed to."""
        return self.scope

    def check_client(self, client: object) -> bool:
        """Whether it was given to this client."""
        return getattr(client, "client_id", None) == self.client_id


class Store:
    """Opened once; used from the threads of the server."""

    def __init__(self, file: Path) -> None:
        self._lock = threading.Lock()
        self._database = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.executescript(_SCHEMA)

    def put(
        self,
        kind: str,
        secret: str,
        *,
        client_id: str,
        grant_id: str,
        user_id: str,
        scope: str,
        resource: str,
        redirect_uri: str = "",
        code_challenge: str = "",
    ) -> None:
        """Keep a code or a refresh token; and forget those that nobody may use any more."""
        now = time.time()
        expires_at = now + (CODE_SECONDS if kind == "code" else KEPT_SECONDS)
        row = (_hash(secret), kind, client_id, grant_id, user_id, scope, resource, redirect_uri, code_challenge)
        with self._lock:
            self._database.execute("INSERT INTO credentials VALUES (?,?,?,?,?,?,?,?,?,?,0)", (*row, expires_at))
            self._database.execute("DELETE FROM credentials WHERE expires_at < ?", (now - KEPT_SECONDS,))

    def find(self, kind: str, secret: str) -> Credential | None:
        """What was kept, used or not; None where it never was, or its time is over."""
        with self._lock:
            row = self._database.execute(
                "SELECT hash, client_id, grant_id, user_id, scope, resource, redirect_uri, code_challenge, expires_at,"
                " used FROM credentials WHERE hash = ? AND kind = ?",
                (_hash(secret), kind),
            ).fetchone()
        if row is None:
            return None
        found = Credential(*row)
        # One that was used is known for longer: its second use is what gives a thief away.
        return found if found.used or found.expires_at > time.time() else None

    def owner(self, kind: str, secret: str) -> str | None:
        """The client that it was given to, whether it is still good or not; None where nobody remembers it."""
        with self._lock:
            row = self._database.execute(
                "SELECT client_id FROM credentials WHERE hash = ? AND kind = ?", (_hash(secret), kind)
            ).fetchone()
        return None if row is None else str(row[0])

    def use(self, credential: Credential) -> bool:
        """Use it up: whether it was still to be had. Of two at once, one gets it."""
        with self._lock:
            done = self._database.execute(
                "UPDATE credentials SET used = 1 WHERE hash = ? AND used = 0", (credential.hash,)
            )
            return done.rowcount == 1


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
