"""No secret reaches a log, by whatever way."""

import json
import logging
import warnings

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from door import logs, redaction
from tests.door.conftest import TOKENS, make_app

SECRET = "hunter2-hunter2"
pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("key", sorted(redaction.SECRET_KEYS))
def test_values_of_secret_keys_are_redacted_at_any_depth(
    key: str, as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """A developer who logs a whole request logs no secret."""
    logs.configure(as_json=as_json)
    log = structlog.get_logger()
    log.info("flat", **{key: SECRET})
    log.info("cased", **{key.upper(): SECRET})
    log.info("of something", **{f"nats_{key}": SECRET})
    log.info("nested", request={"a": [{key: SECRET}], key: {"x": SECRET}})
    log.bind(**{key: SECRET}).warning("bound")
    written = capsys.readouterr().err
    assert written.count(redaction.REDACTED) == 6
    assert SECRET not in written


@pytest.mark.parametrize("as_json", [True, False])
def test_tokens_inside_of_texts_are_redacted(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Messages, addresses and traces of libraries hold what nobody chose to log."""
    logs.configure(as_json=as_json)
    structlog.get_logger().info(
        f"got Authorization: Bearer {SECRET}", url=f"nats://user:{SECRET}@host", t=TOKENS["idp"]
    )
    logging.getLogger("library").warning("connect to %s failed", f"postgresql://u:{SECRET}@h/db")
    logging.getLogger("library").warning("connect to %s failed", f"nats://{SECRET}@h:4222")
    logging.getLogger("library").warning("connect to %s failed", f"nats://u:{SECRET}@{SECRET}@h:4222")
    try:
        int(f"bearer {SECRET}")
    except ValueError:
        structlog.get_logger().exception("failed")
        logging.getLogger("library").exception("failed too")
    written = capsys.readouterr().err
    assert SECRET not in written
    assert TOKENS["idp"] not in written
    assert written.count("ValueError") == 2


def test_lines_of_libraries_and_warnings_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    """A collector of logs parses every line."""
    logs.configure(as_json=True)
    logging.getLogger("uvicorn.error").warning("of a server")
    logging.getLogger("asyncpg").error("of a library")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("of Python", stacklevel=1)
    structlog.get_logger("registry").info("of ours")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["logger"], line["level"]) for line in lines] == [
        ("uvicorn.error", "warning"),
        ("asyncpg", "error"),
        ("py.warnings", "warning"),
        ("registry", "info"),
    ]
    assert all(line["at"].endswith("Z") for line in lines)


def test_access_lines_of_servers_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    """They hold paths and queries."""
    logs.configure(as_json=True)
    logging.getLogger("uvicorn.access").info("GET /users/alice?token=x")
    assert capsys.readouterr().err == ""


def test_a_terminal_is_not_driven_by_what_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """An operator who reads logs on a terminal obeys no agent's escape sequence."""
    logs.configure(as_json=False)
    structlog.get_logger().info("a\x1b]0;owned\x07b", name="x\ny\u202e", nested={"k": "\x1b[2J"})
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    assert "\x1b" not in written
    assert "\u202e" not in written


def test_the_level_is_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Operators turn debugging on for our lines; a typing error is told."""
    logs.configure(as_json=True, level="warning")
    structlog.get_logger().info("not this")
    structlog.get_logger().warning("this")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["this"]
    with pytest.raises(ValueError, match="the log level is one of"):
        logs.configure(level="loud")


def test_an_application_never_logs_in_structlogs_own_way(capsys: pytest.CaptureFixture[str]) -> None:
    """Where a start-up forgot to configure logs, traces still hold no local variables, and secrets are redacted."""
    structlog.reset_defaults()
    make_app()
    structlog.get_logger().info("x", token=SECRET)
    assert json.loads(capsys.readouterr().err)["token"] == redaction.REDACTED


def test_a_line_has_a_limit_in_length_and_depth() -> None:
    """Nobody outside decides how large a line of ours is."""
    deep: object = SECRET
    for _ in range(50):
        deep = [deep]
    line = dict(redaction.redact(None, "info", {"event": "x" * 100_000, "deep": deep, "long": ["y" * 100_000]}))
    assert len(logs._json_line(None, "info", line)) < 3 * redaction.MAX_VALUE_CHARACTERS
    assert SECRET not in str(line)


JSONISH = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.binary() | st.integers(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner) | st.just(object())
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.text(min_size=1), JSONISH))
def test_anything_can_be_logged(line: dict[str, object]) -> None:
    """A log line never breaks the work that it tells of."""
    redacted = redaction.redact(None, "info", {"event": "x", **line})
    assert isinstance(json.loads(logs._json_line(None, "info", redacted)), dict)
