"""Logs: one JSON object a line on stderr, readable lines on a terminal, and no secret in either.

Lines of libraries that use the standard `logging` come out the same way. Secrets are redacted by the name of their key,
at any depth, and bearer tokens inside of texts; nobody needs to remember it.
"""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

import msgspec
import structlog
from structlog.typing import Processor

from door import requests

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
_SERVERS: Final = ("uvicorn", "uvicorn.error", "granian", "_granian", "litestar")
_ACCESS_LOGS: Final = ("uvicorn.access", "granian.access")
"""Servers' own access lines hold paths and queries: `door.requests` writes ours instead."""

_encode: Final = msgspec.json.Encoder(enc_hook=repr).encode


def redact(_: object, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor that takes secrets out of a line."""
    for key, value in line.items():
        if _is_secret(key):
            line[key] = REDACTED
        elif isinstance(value, str):
            line[key] = _text(value, limit=key != "exception")
        elif isinstance(value, Mapping | list | tuple | set | frozenset | bytes):
            line[key] = _redacted(value, MAX_DEPTH)
        elif not isinstance(value, int | float | None):
            line[key] = _text(repr(value)) if key not in _STRUCTLOG_KEYS else value
    return line


def _is_secret(key: str) -> bool:
    return key.lower().endswith(_SECRET_ENDINGS)


_STRUCTLOG_KEYS: Final = frozenset({"exc_info", "_record", "_from_structlog"})


def _redacted(value: object, depth: int) -> object:
    if isinstance(value, str):
        return _text(value)
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
    return _text(repr(value))


def _text(text: str, *, limit: bool = True) -> str:
    if limit and len(text) > MAX_VALUE_CHARACTERS:
        text = text[:MAX_VALUE_CHARACTERS] + "..."
    if "earer" in text or "EARER" in text:
        text = _BEARER.sub(rf"\1{REDACTED}", text)
    if "gb_" in text:
        text = _MINTED.sub(REDACTED, text)
    if "://" in text:
        text = _USER_IN_URL.sub(rf"\1{REDACTED}@", text)
    return text


def _with_request(_: object, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    request_id = requests.current_request_id()
    if request_id is not None:
        line["request_id"] = request_id
        caller = requests.current_caller()
        if caller is not None:
            line["caller"] = caller
    return line


def _printable(_: object, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # A terminal obeys escape sequences; JSON escapes them itself. Line breaks are meant in traces alone.
    for key, value in line.items():
        if isinstance(value, str) and not value.isprintable():
            allowed = "\n\t" if key in {"exception", "stack"} else ""
            line[key] = "".join(each if each.isprintable() or each in allowed else ascii(each)[1:-1] for each in value)
    return line


class _Logger(structlog.WriteLogger):
    """structlog's logger for a stream, knowing its name."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(sys.stderr)
        self.name = name


class _ToStderr(logging.Handler):
    """Writes to stderr as it stands when the line is written: it may be replaced while we run."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
        except Exception:  # noqa: BLE001  as every handler of the standard library: a log line breaks no work
            self.handleError(record)


def _named(logger: object, _: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    record = line.get("_record")
    name = record.name if isinstance(record, logging.LogRecord) else getattr(logger, "name", None)
    if name:
        line["logger"] = name
    return line


def _json_line(_: object, __: str, line: MutableMapping[str, Any]) -> str:
    ordered = {name: line.pop(name, None) for name in ("at", "level", "event")}
    return _encode({**ordered, **line}).decode()


def _readable_lines() -> structlog.dev.ConsoleRenderer:
    return structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback, timestamp_key="at"
    )


def configure(*, as_json: bool | None = None, level: str = "INFO") -> None:
    """Send all logs to stderr: as JSON, or readable when stderr is a terminal (or as `as_json` says).

    Start servers without a log configuration of their own (uvicorn: `log_config=None`), since theirs would replace this
    one. `level` is a name of the standard `logging`. Raises ValueError for another.
    """
    if as_json is None:
        as_json = not sys.stderr.isatty()
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"the log level is one of {', '.join(logging.getLevelNamesMapping())}")
    gathered: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _named,
        _with_request,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.StackInfoRenderer(),
        # The exception becomes text before redaction, which then sees it. The pretty traces of rich print local
        # variables, secrets among them: these are the plain ones.
        structlog.processors.format_exc_info,
        redact,
    ]
    shown: list[Processor] = [_json_line] if as_json else [_printable, _readable_lines()]
    structlog.configure(
        processors=[*gathered, *shown],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=_Logger,
        cache_logger_on_first_use=False,
    )
    # It says a line for every request, with the whole URL.
    logging.getLogger("httpx").setLevel(max(number, logging.WARNING))
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=gathered,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *shown],
        keep_exc_info=False,
    )
    handler = _ToStderr()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.INFO))  # debugging is of our own lines: libraries' would drown them
    for name in _SERVERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in _ACCESS_LOGS:
        logging.getLogger(name).disabled = True
    logging.captureWarnings(capture=True)
