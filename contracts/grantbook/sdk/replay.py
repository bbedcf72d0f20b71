"""`grantbook replay`: the log for auditors, as JSON Lines or in columns, filtered, followed, or folded to a moment.

Its policy for events of types that it does not know: they are printed raw. What is no event at all is printed as such,
counted, and told by the exit status.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import msgspec
from msgspec import Struct
from nats.aio.client import Client
from nats.errors import Error as NatsError

from grantbook import as_of, positions, subjects, wire
from grantbook.admin import ClientAsOf
from grantbook.events import EVENT_TYPES, ActivityRecorded
from grantbook.sdk.connection import close, connect, without_password
from grantbook.sdk.lines import COLUMNS, as_columns, as_json, event_line, malformed_line, position_of, shown
from grantbook.sdk.log import Gap, LogReader, Raw, StreamState, Unavailable, assert_dense
from grantbook.sdk.reading import before, client_as_of, stretch
from grantbook.sdk.tasks import heed
from grantbook.sdk.unsealing import Opened, Unsealer

try:
    import click
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table
    from rich.text import Text
except ImportError:
    sys.exit("The command line needs more than the library: pip install 'grantbook[cli]'")

CONNECT_SECONDS: Final = 3.0
FOLLOW_SECONDS: Final = 1.0
SAME_LOG_SECONDS: Final = 10.0
"""How often `--follow` makes sure that the log is still the same."""
UNREADABLE: Final = 1
"""Exit status where the log could not be read to the end."""
MALFORMED: Final = 3
"""Exit status where something in what was read is no event."""
INTERRUPTED: Final = 130

EXAMPLES: Final = """
\b
Examples:
  Everything, as JSON Lines:
    grantbook replay > log.jsonl
  All that happened to one client, readable:
    grantbook replay --client 0195934e --table
  Deletions and suspensions since March, and then as they happen:
    grantbook replay --type client.deleted --type client.suspended --from 2026-03-01 --follow
  What a user's agents were allowed at noon:
    grantbook replay --user u-42 --to 2026-03-14T12:00:00Z
  A client and its grants as they were then:
    grantbook replay --as-of 2026-03-14T12:00:00Z --client 0195934e

\b
Exit status: 0 all is well; 1 the log could not be read; 2 wrong usage;
3 something in the log is no event (it is printed, with "malformed").
"""


class Wanted(Struct, frozen=True, kw_only=True):
    """What to replay. Ids are subject tokens; `since` is inclusive, `to` exclusive, both the log's own time."""

    activity: bool = False
    client: str | None = None
    grant: str | None = None
    user: str | None = None
    types: frozenset[str] = frozenset()
    since: datetime | None = None
    to: datetime | None = None
    after: positions.Position | None = None
    until: positions.Position | None = None
    follow: bool = False
    limit: int | None = None
    unseal: bool = False

    @property
    def stream(self) -> str:
        """The stream that has it."""
        return subjects.ACTIVITY if self.activity else subjects.LOG

    @property
    def kind(self) -> positions.Kind:
        """The kind of its positions."""
        return "activity" if self.activity else "log"

    @property
    def filters(self) -> tuple[str, ...]:
        """What the server can filter by: everything of a client, or of a grant. Nothing: an unfiltered read."""
        if self.activity:
            return ()
        if self.client is not None and self.grant is not None:
            return (subjects.everything_of_holding(self.client, self.grant),)
        if self.client is not None:
            return (subjects.everything_of_client(self.client),)
        return () if self.grant is None else (subjects.everything_of_grant(self.grant),)

    def wants(self, recorded: wire.Recorded) -> bool:
        """Whether a record passes the filters that the server cannot apply."""
        if self.types and recorded.type not in self.types:
            return False
        event = recorded.event
        if isinstance(event, ActivityRecorded):
            return any(
                (self.client is None or subjects.token(each.client_id) == self.client)
                and (self.grant is None or subjects.token(each.grant_id) == self.grant)
                for each in event.windows
            )
        return self.user is None or self.user in _users(recorded)


class Refused(Exception):
    """What was asked for makes no sense for this log. Says why."""


class Replay:
    """Reads what is wanted and hands it out as lines. `malformed` counts what was no event."""

    def __init__(self, connection: Client, wanted: Wanted, note: Callable[[str], None]) -> None:
        self.malformed = 0
        self.printed = 0
        self._connection = connection
        self._wanted = wanted
        self._note = note
        self._unsealer = Unsealer(connection) if wanted.unseal else None

    async def lines(
        self, render: Callable[[Any, wire.Recorded | None], str], progress: Callable[[int, int], None]
    ) -> AsyncGenerator[list[str], None]:
        """Batches of lines. `progress` hears of how many of how many messages were read."""
        wanted = self._wanted
        reader = LogReader(self._connection, wanted.stream)
        state = await reader.state()
        after, until = await self._range(reader, state)
        total = until - after
        async for messages in stretch(reader, after, until, wanted.filters):
            yield await self._render(messages, state.identity, render)
            if self._is_enough:
                return
            progress(messages[-1].sequence - after if messages else total, total)
        progress(total, total)
        if wanted.follow:
            async for messages in self._followed(reader, state, max(after, until)):
                yield await self._render(messages, state.identity, render)
                if self._is_enough:
                    return

    @property
    def _is_enough(self) -> bool:
        return self._wanted.limit is not None and self.printed >= self._wanted.limit

    async def _range(self, reader: LogReader, state: StreamState) -> tuple[int, int]:
        wanted = self._wanted
        after, until = 0, state.last
        for position in (wanted.after, wanted.until):
            if position is not None and (position.kind != wanted.kind or position.identity != state.identity):
                example = positions.Position(wanted.kind, state.identity, state.last)
                raise Refused(f"{position} is no position of this log; they are like {example}")
        if wanted.after is not None:
            after = wanted.after.sequence
        if wanted.since is not None:
            after = max(after, await before(reader, state, wanted.since))
        if wanted.until is not None:
            until = min(until, wanted.until.sequence)
        if wanted.to is not None:
            until = min(until, await before(reader, state, wanted.to))
        # Activity ages out. The log does not: there a first sequence that is not 1 is a loss, and is found as a gap.
        if wanted.activity and after < state.first - 1:
            after = state.first - 1
            self._note(f"activity up to {positions.Position('activity', state.identity, after)} has aged out")
        return after, max(after, until)

    async def _followed(self, reader: LogReader, state: StreamState, after: int) -> AsyncIterator[Sequence[Raw]]:
        loop = asyncio.get_running_loop()
        look_at, trouble = loop.time() + SAME_LOG_SECONDS, None
        async with reader.follow(after, self._wanted.filters) as follower:
            while True:
                messages = await follower.next(FOLLOW_SECONDS)
                if messages:
                    if not self._wanted.filters:
                        assert_dense(messages, after)
                    after = messages[-1].sequence
                    yield messages
                if follower.trouble != trouble:
                    trouble = follower.trouble
                    self._note(trouble or "following again")
                if loop.time() >= look_at:
                    look_at = loop.time() + SAME_LOG_SECONDS
                    with contextlib.suppress(Unavailable):
                        now = await reader.state()
                        if now.identity != state.identity or now.last < after:
                            raise Gap("the log was replaced by another, or by an earlier copy of itself")
                    heed()  # Ctrl-C

    async def _render(
        self, messages: Sequence[Raw], identity: str, render: Callable[[Any, wire.Recorded | None], str]
    ) -> list[str]:
        read: list[tuple[Raw, wire.Recorded | wire.Malformed]] = []
        for raw in messages:
            try:
                recorded = raw.recorded()
            except wire.Malformed as error:
                # Whatever the filters: nobody can tell what it would have been.
                read.append((raw, error))
            else:
                if self._wanted.wants(recorded):
                    read.append((raw, recorded))
        if self._wanted.limit is not None:
            read = read[: self._wanted.limit - self.printed]
        self.printed += len(read)
        if self._unsealer is not None:
            await self._unsealer.fetch(each for _, each in read if isinstance(each, wire.Recorded))
        lines = []
        for raw, each in read:
            position = position_of(raw, self._wanted.kind, identity)
            if isinstance(each, wire.Malformed):
                self.malformed += 1
                lines.append(render(malformed_line(raw, position, each), None))
                continue
            opened = Opened({}, []) if self._unsealer is None else self._unsealer.open(each)
            line = event_line(each, position, opened.values, opened.erased)
            lines.append(render(line, each))
        return lines


def _users(recorded: wire.Recorded) -> set[str]:
    """The user that a record is about, by subject token; of an unknown type too, where it says so in our way."""
    event: Any = recorded.event
    if isinstance(event, wire.Unknown):
        try:
            event = msgspec.json.decode(recorded.body, type=_AboutUser)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return {subjects.user_token_of(recorded.subject) or ""}
    found = {getattr(event, "user_key", None), subjects.user_token_of(recorded.subject)}
    user_id = getattr(event, "user_id", None)
    return {each for each in found if each} | ({subjects.token(user_id)} if user_id else set())


class _AboutUser(Struct):
    user_id: str | None = None
    user_key: str | None = None


# The command line.


class _Time(click.ParamType[datetime]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """A time in ISO 8601. Without an offset it is UTC; a date alone is its midnight."""
        if isinstance(value, datetime):
            return value
        try:
            time = datetime.fromisoformat(value)
            return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time like 2026-03-14T12:00:00Z or 2026-03-14", param, ctx)


class _Position(click.ParamType[positions.Position]):
    name = "position"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> positions.Position:
        """A position token."""
        if isinstance(value, positions.Position):
            return value
        try:
            return positions.parse(value)
        except positions.InvalidPosition as error:
            self.fail(f"{value!r}: {error}", param, ctx)


class _Moment(click.ParamType[datetime | positions.Position]):
    name = "time|position"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime | positions.Position:
        """A time or a position token."""
        if isinstance(value, str) and value.startswith("log-"):
            return _Position().convert(value, param, ctx)
        return _Time().convert(value, param, ctx)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="grantbook")
def main() -> None:
    """Grantbook's tools for those who audit the register, and for those who operate it."""


@main.command(epilog=EXAMPLES)
@click.option(
    "--nats-url",
    envvar="GRANTBOOK_NATS_URL",
    show_envvar=True,
    required=True,
    help="Where the log is, with user and password, like nats://auditor:secret@host:4222.",
)
@click.option("--client", metavar="ID", help="Only this client and its grants. An id, or its key (~...).")
@click.option("--grant", metavar="ID", help="Only this grant.")
@click.option("--user", metavar="ID", help="Only grants of this user, and cut-offs of the user.")
@click.option("--type", "types", metavar="TYPE", multiple=True, help="Only events of this type. May be repeated.")
@click.option("--from", "since", type=_Time(), help="Only what was recorded at this time or later.")
@click.option("--to", type=_Time(), help="Only what was recorded before this time.")
@click.option("--after", type=_Position(), help="Only what stands behind this position.")
@click.option("--until", type=_Position(), help="Only what stands up to and with this position.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Stop after so many.")
@click.option("--follow", is_flag=True, help="Go on with what is recorded from now on, until interrupted.")
@click.option("--activity", is_flag=True, help="The use of grants instead of the decisions about them.")
@click.option("--unseal", is_flag=True, help="Open names and notes with the keys of their people. Needs to read those.")
@click.option("--as-of", "moment", type=_Moment(), help="Print --client and its grants as they were then, and end.")
@click.option(
    "--table/--json",
    "table",
    default=None,
    help="In columns for people, or as JSON Lines. Default: columns at a terminal, else JSON Lines.",
)
def replay(
    *,
    nats_url: str,
    client: str | None,
    grant: str | None,
    user: str | None,
    types: tuple[str, ...],
    since: datetime | None,
    to: datetime | None,
    after: positions.Position | None,
    until: positions.Position | None,
    limit: int | None,
    follow: bool,
    activity: bool,
    unseal: bool,
    moment: datetime | positions.Position | None,
    table: bool | None,
) -> None:
    """Print the register's log: every decision, in order, from the first.

    A line has position, id, type, recorded_at, subject, actor and data. Names of users are sealed in the log, and stay
    so without --unseal.
    """
    if follow and (until is not None or to is not None):
        raise click.UsageError("--follow goes on for ever, so it takes no --until and no --to.")
    if activity and user is not None:
        raise click.UsageError("Activity says which grants were used, not whose they are: --activity takes no --user.")
    if moment is not None and client is None:
        raise click.UsageError("--as-of needs --client.")
    unknown = [each for each in types if each not in EVENT_TYPES]
    if unknown:
        _note(f"not a type of this version: {', '.join(unknown)}; known are {', '.join(EVENT_TYPES)}")
    wanted = Wanted(
        activity=activity,
        client=None if client is None else subjects.token_in_path(client),
        grant=None if grant is None else subjects.token_in_path(grant),
        user=None if user is None else subjects.token_in_path(user),
        types=frozenset(types),
        since=since,
        to=to,
        after=after,
        until=until,
        follow=follow,
        limit=limit,
        unseal=unseal,
    )
    in_columns = sys.stdout.isatty() if table is None else table
    try:
        if moment is None:
            _leave(asyncio.run(_replay(nats_url, wanted, in_columns=in_columns)))
        _leave(asyncio.run(_as_of(nats_url, wanted.client or "", moment, in_columns=in_columns)))
    except KeyboardInterrupt:
        _leave(INTERRUPTED)
    except BrokenPipeError:
        # `grantbook replay | head` has read enough. Nothing is left to be flushed into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(0)
    except Refused as error:
        raise click.UsageError(str(error)) from error
    except (Unavailable, Gap, NatsError, OSError, as_of.CannotTell, wire.Malformed) as error:
        _note(str(error) or type(error).__name__)
        _leave(UNREADABLE)


@contextlib.asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Client]:
    told: list[str] = []
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            connection = await connect(url, name="grantbook-replay", on_trouble=told.append)
    except (TimeoutError, NatsError, OSError) as error:
        why = next((each for each in told if "disconnected" not in each), str(error) or "no answer")
        raise Unavailable(f"cannot reach NATS at {without_password(url)}: {why}") from error
    try:
        yield connection
    finally:
        await close(connection)


async def _replay(url: str, wanted: Wanted, *, in_columns: bool) -> int:
    def render(line: Any, recorded: wire.Recorded | None) -> str:
        return as_columns(line, recorded) if in_columns else as_json(line)

    async with _connected(url) as connection:
        running = Replay(connection, wanted, _note)
        if in_columns:
            _print([COLUMNS])
        with _progress() as progress:
            async with contextlib.aclosing(running.lines(render, progress)) as batches:
                async for lines in batches:
                    _print(lines)
    if running.malformed:
        _note(f"{running.malformed} of {running.printed} lines are no events")
    return MALFORMED if running.malformed else 0


async def _as_of(url: str, client: str, moment: datetime | positions.Position, *, in_columns: bool) -> int:
    async with _connected(url) as connection:
        try:
            found = await client_as_of(LogReader(connection, subjects.LOG), client, moment)
        except ValueError as error:
            if isinstance(error, wire.Malformed):
                raise
            raise Refused(str(error)) from error
    if found is None:
        _note("no such client was registered then")
        return UNREADABLE
    if in_columns:
        _print_client(found)
    else:
        _print([as_json(found)])
    return 0


def _print_client(client: ClientAsOf) -> None:
    facts = {
        "client": client.client_id,
        "name": client.metadata.get("client_name", ""),
        "status": client.status,
        "source": client.source,
        "created at": wire.rfc3339(client.created_at),
        "redirects to": ", ".join(client.metadata.get("redirect_uris", [])),
        "as of": client.as_of,
    }
    _print([f"{name + ':':<13} {shown(text, 300)}" for name, text in facts.items()])
    table = Table("grant", "user", "status", "scopes", "issued at", "expires at", "ended at", "reason")
    for grant in client.grants:
        ended_at = grant.ended_at if isinstance(grant.ended_at, datetime) else None
        cells = (
            grant.grant_id,
            grant.user_id,
            grant.status,
            " ".join(grant.scopes),
            wire.rfc3339(grant.issued_at),
            wire.rfc3339(grant.expires_at),
            "" if ended_at is None else wire.rfc3339(ended_at),
            grant.ended_reason if isinstance(grant.ended_reason, str) else "",
        )
        table.add_row(*(Text(shown(each)) for each in cells))
    console = Console(file=sys.stdout)
    console.print(table if client.grants else "no grants")


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    # At a terminal that shows the lines themselves, they are the progress.
    if not sys.stderr.isatty() or sys.stdout.isatty():
        yield lambda _done, _total: None
        return
    columns = (TextColumn("reading the log"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown_progress:
        task = shown_progress.add_task("", total=None)
        yield lambda done, total: shown_progress.update(task, completed=done, total=total)


def _print(lines: Sequence[str]) -> None:
    if lines:
        sys.stdout.buffer.write("".join(f"{each}\n" for each in lines).encode("utf-8", "backslashreplace"))
        sys.stdout.buffer.flush()


def _note(text: str) -> None:
    click.echo(f"grantbook: {shown(text, 500)}", err=True)


def _leave(status: int) -> NoReturn:
    raise SystemExit(status)


if __name__ == "__main__":
    replay(prog_name="python -m grantbook.sdk.replay")
