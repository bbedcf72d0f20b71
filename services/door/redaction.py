"""Secrets out of log lines: by the name of their key, at any depth, and bearer tokens inside of texts."""

import re
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

SECRET_KEYS: Final = frozenset(
    {
        "token",
        "secret",
        "authorization",
        "password",
        "client_secret",
        "registration_access_token",
        "username",
        "cookie",
        "private_key",
    }
)
"""Words that a key ends with when its value is secret: `token`, and so `access_token` and `x-api-token`."""
REDACTED: Final = "[redacted]"
MAX_DEPTH: Final = 6
"""Values nested deeper than this are left out of the line."""
MAX_VALUE_CHARACTERS: Final = 8_192
"""Longer texts are cut, but for traces: nobody outside decides how large a line is."""

_BEARER: Final = re.compile(r"(bearer\s+)[A-Za-z0-9._~+/=-]+", re.IGNORECASE)
_MINTED: Final = re.compile(r"gb_[a-z]+_[A-Za-z0-9_-]{20,}")
_USER_IN_URL: Final = re.compile(r"(://)[^/?#\s]{1,512}@")
"""A password, or with NATS a token that stands alone; also with an `@` of its own in it."""
_SECRET_ENDINGS: Final = tuple(SECRET_KEYS)
_STRUCTLOG_KEYS: Final = frozenset({"exc_info", "_record", "_from_structlog"})


def redact(_: object, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor that takes secrets out of a line."""
    for key, value in line.items():
        if _is_secret(key):
            line[key] = REDACTED
        elif isinstance(value, str):
            line[key] = text(value, limit=key != "exception")
        elif isinstance(value, Mapping | list | tuple | set | frozenset | bytes):
            line[key] = _redacted(value, MAX_DEPTH)
        elif not isinstance(value, int | float | None):
            line[key] = text(repr(value)) if key not in _STRUCTLOG_KEYS else value
    return line


def _is_secret(key: str) -> bool:
    return key.lower().endswith(_SECRET_ENDINGS)


def _redacted(value: object, depth: int) -> object:
    if isinstance(value, str):
        return text(value)
    if isinstance(value, int | float | None):
        return value
    if depth == 0:
        return "..."
    if isinstance(value, Mapping):
        return {
            str(key): REDACTED if _is_secret(str(key)) else _redacted(each, depth - 1) for key, each in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted(each, depth - 1) for each in value]
    return text(repr(value))


def text(value: str, *, limit: bool = True) -> str:
    """A text without secrets, cut where it is longer than a line's value may be."""
    if limit and len(value) > MAX_VALUE_CHARACTERS:
        value = value[:MAX_VALUE_CHARACTERS] + "..."
    if "earer" in value or "EARER" in value:
        value = _BEARER.sub(rf"\1{REDACTED}", value)
    if "gb_" in value:
        value = _MINTED.sub(REDACTED, value)
    if "://" in value:
        value = _USER_IN_URL.sub(rf"\1{REDACTED}@", value)
    return value
