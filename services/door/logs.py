"""Logs: one JSON object a line on stderr, readable lines on a terminal, and no secret in either.

Lines of libraries that use the standard `logging` come out the same way. Secrets are taken out of every line by
`door.redaction`; nobody needs to remember it.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import msgspec
import structlog
from structlog.typing import Processor

from door import access, requests
from door.redaction import redact

_SERVERS: Final = ("uvicorn", "uvicorn.error", "granian", "_granian", "litestar")
_ACCESS_LOGS: Final = ("uvicorn.access", "granian.access")
"""Servers' own access lines hold paths and queries: `door.requests` writes ours instead."""

_encode: Final = msgspec.json.Encoder(enc_hook=repr).encode


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
    access.lines.are_json = as_json and number <= logging.INFO
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
