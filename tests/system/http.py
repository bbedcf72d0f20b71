"""The product as its users call it: JSON over HTTP, with the token of a role."""

import json
import urllib.error
import urllib.request
from typing import Any, Final

from msgspec import Struct

CALL_SECONDS: Final = 30


class Answer(Struct, frozen=True):
    """Status, headers in lower case, and the JSON body or nothing."""

    status: int
    headers: dict[str, str]
    body: Any

    @property
    def position(self) -> str:
        """Where in the log this stands."""
        return self.headers["grantbook-position"]


class Caller:
    """Calls one base URL as one role."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url
        self._token = token

    def __call__(self, method: str, path: str, body: object = None) -> Answer:
        """Send a request; any status is an answer."""
        headers = {"Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=CALL_SECONDS) as answer:
                return _answer(answer.status, answer)
        except urllib.error.HTTPError as error:
            with error:
                return _answer(error.code, error)


def _answer(status: int, answer: Any) -> Answer:
    content = answer.read()
    headers = {name.lower(): value for name, value in answer.headers.items()}
    return Answer(status, headers, json.loads(content) if content else None)
