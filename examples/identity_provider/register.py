"""What the identity provider asks Grantbook, and tells it: all of `/idp/v1` that it needs, in one place.

Every answer is from the log, never stale. While Grantbook is away nothing can be decided: `RegisterAway`.
"""

import logging
import threading
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

import httpx

ASK_SECONDS: Final = 5.0
MAX_UNREPORTED: Final = 1_000
"""Refreshes that wait to be reported; of more, the latest."""
_log: Final = logging.getLogger(__name__)


class RegisterAway(Exception):
    """Grantbook does not answer, or not as it should."""


class Register:
    """Grantbook, as an identity provider sees it."""

    def __init__(self, url: str, idp_token: str) -> None:
        self._http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {idp_token}"}, timeout=ASK_SECONDS, follow_redirects=False
        )
        self._lock = threading.Lock()
        self._unreported: dict[str, dict[str, str]] = {}

    def client(self, client_id: str) -> dict[str, Any] | None:
        """The registration, with its `status` and `flags`; None where there is none, or it was deleted."""
        return self._ask("GET", f"/idp/v1/clients/{_segment(client_id)}", none={404, 410})

    def is_secret(self, client_id: str, secret: str) -> bool:
        """Whether it is the client's secret."""
        path = f"/idp/v1/clients/{_segment(client_id)}/authenticate"
        return self._ask("POST", path, {"client_secret": secret}, none={400, 401, 403, 404, 410}) is not None

    def grant(
        self, client_id: str, *, user_id: str, username: str, scopes: list[str], expires_at: datetime
    ) -> str | None:
        """Put the user's consent on the register: the grant's id. None where the client may not be granted anything."""
        body = {"user_id": user_id, "username": username, "scopes": scopes, "expires_at": expires_at.isoformat()}
        made = self._ask("POST", f"/idp/v1/clients/{_segment(client_id)}/grants", body, none={403, 404, 410})
        return None if made is None else str(made["grant_id"])

    def stands(self, client_id: str, grant_id: str) -> bool:
        """Whether the grant stands, at this moment."""
        state = self._ask("GET", f"/idp/v1/clients/{_segment(client_id)}/grants/{_segment(grant_id)}", none={404, 410})
        return state is not None and bool(state["active"])

    def revoke(self, client_id: str, grant_id: str, reason: str) -> None:
        """End the grant."""
        path = f"/idp/v1/clients/{_segment(client_id)}/grants/{_segment(grant_id)}/revoke"
        self._ask("POST", path, {"reason": reason}, none={404, 410})

    def refreshed(self, client_id: str, grant_id: str, expires_at: datetime) -> None:
        """A refresh moved the grant's expiry. Where that cannot be told now, it is told with the next; never raises.

        The client has its answer to get: its old token is used up.
        """
        entry = {
            "client_id": client_id,
            "grant_id": grant_id,
            "kind": "refresh",
            "at": datetime.now(UTC).isoformat(),
            "expires_at": expires_at.isoformat(),
        }
        with self._lock:
            waiting, self._unreported = self._unreported | {grant_id: entry}, {}
        try:
            self._ask("POST", "/idp/v1/activity", {"activity": list(waiting.values())}, none=set())
        except RegisterAway as error:
            _log.warning("Grantbook: %s; %d refreshes wait to be reported", error, len(waiting))
            with self._lock:
                self._unreported = dict(list((waiting | self._unreported).items())[-MAX_UNREPORTED:])

    def _ask(self, method: str, path: str, body: object = None, *, none: set[int]) -> dict[str, Any] | None:
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise RegisterAway(type(error).__name__) from error
        if answer.status_code in none:
            return None
        if not answer.is_success:
            message = f"{method} {path}: {answer.status_code}"
            raise RegisterAway(message)
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found


def _segment(id_: str) -> str:
    return quote(id_, safe="")
