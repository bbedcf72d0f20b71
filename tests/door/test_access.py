"""Access lines that are written without the chain of other lines say what the chain would."""

import asyncio
import io
import json
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar import Litestar

from door import access, logs
from door.access import MAX_WRITTEN_CHARACTERS, Lines
from tests.door.conftest import TOKENS, ask, bearer

pytestmark = pytest.mark.usefixtures("restored_logging")


async def lines_of(app: Litestar, capsys: pytest.CaptureFixture[str], *, directly: bool, **asked: Any) -> list[Any]:
    """The lines of one request, by one of the two ways."""
    logs.configure(as_json=True)
    assert access.lines.are_json
    access.lines.are_json = directly
    capsys.readouterr()
    await ask(app, **asked)
    await asyncio.sleep(0)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    for line in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z", line["at"])
        assert isinstance(line["ms"], float)
    return [list((line | {"at": "", "ms": 0.0}).items()) for line in lines]


@pytest.mark.parametrize(
    "asked",
    [
        {"path": "/admin/v1/things/alice", "query": b"limit=1"},
        {"path": "/for/idp", "headers": [*bearer("idp"), (b"x-request-id", b"r1")]},
        {"path": "/for/idp", "headers": [(b"x-request-id", TOKENS["admin"].encode())]},
        {"path": "/nowhere", "method": "DELETE"},
        {"path": "/nowhere", "method": "BEARER " + "x" * 10_000},
        {"path": "/healthz"},
    ],
)
async def test_it_is_the_line_of_the_chain(
    app: Litestar, capsys: pytest.CaptureFixture[str], asked: dict[str, Any]
) -> None:
    """A collector of logs sees no difference: members, their order, and what is redacted or cut."""
    chain = await lines_of(app, capsys, directly=False, **asked)
    assert await lines_of(app, capsys, directly=True, **asked) == chain
    assert TOKENS["admin"] not in str(chain)


@pytest.mark.parametrize(("level", "as_json", "directly"), [("info", True, True), ("info", False, False)])
def test_only_json_is_written_so(level: str, as_json: bool, directly: bool) -> None:
    """An operator at a terminal reads lines, and not JSON among them."""
    logs.configure(as_json=as_json, level=level)
    assert access.lines.are_json is directly


async def test_at_a_higher_level_there_is_none(app: Litestar, capsys: pytest.CaptureFixture[str]) -> None:
    """An operator who wants warnings alone gets no line for each request."""
    logs.configure(as_json=True, level="warning")
    await ask(app, "/nowhere")
    await asyncio.sleep(0)
    assert capsys.readouterr().err == ""


class _Writes(io.StringIO):
    """A stream that knows what was written to it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def write(self, text: str) -> int:
        self.written.append(text)
        return len(text)


@given(callers=st.lists(st.integers(0, 2 * MAX_WRITTEN_CHARACTERS) | st.integers(0, 60), min_size=1, max_size=80))
def test_lines_are_written_whole_and_as_many_at_once_as_a_pipe_takes(callers: list[int]) -> None:
    """Workers write into one pipe, and a collector parses every line: none is cut by another's."""
    stderr = _Writes()

    async def end_together() -> None:
        lines = Lines()
        for number, length in enumerate(callers):
            lines.add("GET", "/p", 200, 1.0, str(number), "c" * length)
        assert not stderr.written
        await asyncio.sleep(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", stderr)
        asyncio.run(end_together())
    whole = "".join(stderr.written)
    assert [json.loads(line)["request_id"] for line in whole.splitlines()] == [
        str(each) for each in range(len(callers))
    ]
    assert all(text.endswith("\n") for text in stderr.written)
    for text in stderr.written:
        assert len(text) <= MAX_WRITTEN_CHARACTERS or text.count("\n") == 1
    # No more often than needed: two that follow each other would not have gone at once.
    for one, next_ in pairwise(stderr.written):
        assert len(one) + len(next_.partition("\n")[0]) + 1 > MAX_WRITTEN_CHARACTERS


class _Full(io.StringIO):
    """A stream that takes nothing."""

    def write(self, _: str) -> int:
        raise BlockingIOError


def test_lines_that_could_not_be_written_hold_up_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators whose collector was away for a moment, or whose loop ended: later lines are written, none is kept."""
    lines = Lines()

    def end(request_id: str) -> None:
        lines.add("GET", "/p", 200, 1.0, request_id, None)

    async def end_and_come_round(request_id: str) -> None:
        end(request_id)
        await asyncio.sleep(0)

    def end_and_never_come_round() -> None:
        loop = asyncio.new_event_loop()
        loop.call_soon(end, "late")
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()

    with pytest.raises(RuntimeError):
        end("nowhere")
    monkeypatch.setattr("sys.stderr", _Full())
    asyncio.run(end_and_come_round("refused"))
    stderr = _Writes()
    monkeypatch.setattr("sys.stderr", stderr)
    end_and_never_come_round()
    assert not stderr.written
    asyncio.run(end_and_come_round("in time"))
    written = [json.loads(line)["request_id"] for line in "".join(stderr.written).splitlines()]
    assert written == ["late", "in time"]
