"""Counts and times of requests, for Prometheus: by method, path template and status, so never by what a caller chose.

Written where the access line is, and not by the framework's middleware, which looks up four metrics by their labels for
each request: a tenth of what a registration costs. Its route, `/metrics`, shows them.
"""

from functools import lru_cache
from typing import Final

from litestar.enums import HttpMethod
from prometheus_client import Counter, Histogram

MAX_REMEMBERED: Final = 4_096
"""Of method, template and status: more than there are."""
OTHER: Final = "other"
"""Every method that is none of HTTP's own."""

_LABELS: Final = ("app_name", "method", "path", "status_code")
_METHODS: Final = frozenset(str(each.value) for each in HttpMethod)
_requests: Final = Counter("grantbook_requests_total", "Total requests", _LABELS)
_errors: Final = Counter("grantbook_requests_error_total", "Total errors in requests", _LABELS)
_seconds: Final = Histogram("grantbook_request_duration_seconds", "Request duration, in seconds", _LABELS)


def note(app: str, method: str, template: str, status: int, seconds: float) -> None:
    """A request was answered with this status, or with none (0), after so long."""
    counted, failed, timed = _of(app, method if method in _METHODS else OTHER, template, status)
    counted.inc()
    if failed is not None:
        failed.inc()
    timed.observe(seconds)


@lru_cache(maxsize=MAX_REMEMBERED)
def _of(app: str, method: str, template: str, status: int) -> tuple[Counter, Counter | None, Histogram]:
    labels = (app, method, template, str(status))
    failed = _errors.labels(*labels) if status >= 500 else None  # 5xx, RFC 9110 section 15.6
    return _requests.labels(*labels), failed, _seconds.labels(*labels)
