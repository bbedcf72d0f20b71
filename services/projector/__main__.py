"""`python -m projector`: keep the read models, serve them, make them anew, and check them against the log."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

import asyncpg
import click
import msgspec
import uvloop
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from door import logs, roles, serving
from grantbook.sdk.log import Unavailable
from projector import app, bulk, db, verify
from projector.api.revocations import end_streams
from projector.settings import Settings

DIFFERENT: Final = 1
"""Exit status of `verify` when the read models are not what the log says."""

INTERRUPTED: Final = 130
FAILURES: Final = (
    verify.Halt,
    verify.Busy,
    bulk.LoaderFailed,
    Unavailable,
    asyncpg.PostgresError,
    db.NotReached,
)

MAX_LOADERS: Final = 16
"""Each takes up to 100 MB, and a statement of Postgres 256 MB."""

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The projector: keeps the read models in Postgres up with the log, and serves what is read from them.

    Settings come from the environment, or from options:

    \b
    GRANTBOOK_NATS_URL           the NATS server, with its user and password
    GRANTBOOK_DATABASE_URL       the Postgres database, with its user and password
    GRANTBOOK_READ_DATABASE_URL  where `serve` reads, if not there: a streaming replica of it
    GRANTBOOK_TOKENS_FILE        bearer tokens by role, hashed: see `python -m door mint --help`
                                 (for `serve` alone)
    """


def servers(command: F) -> F:
    """Options that say which servers."""
    nats = click.option(
        "--nats-url", envvar="GRANTBOOK_NATS_URL", required=True, show_envvar=True, help="The NATS server."
    )
    database = click.option(
        "--database-url", envvar="GRANTBOOK_DATABASE_URL", required=True, show_envvar=True, help="The database."
    )
    return nats(database(command))


def loaders(command: F) -> F:
    """How many processes read the log."""
    option = click.option(
        "--loaders",
        type=click.IntRange(1, MAX_LOADERS),
        default=min(MAX_LOADERS, os.cpu_count() or 1),
        show_default="the number of cores",
        help=f"Processes that read a log of {bulk.BULK_EVENTS} events or more, and statements side by side after it.",
    )
    return option(command)


async def _until_stopped(work: Coroutine[Any, Any, None]) -> None:
    """Run until SIGTERM or SIGINT, then let what is open be closed."""
    task = asyncio.create_task(work)
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


@main.command()
@servers
def project(nats_url: str, database_url: str) -> None:
    """Apply the log to the read models, until stopped.

    One is active at a time; any other waits, and takes over when the first ends. It waits for servers that are away,
    and halts, saying why, where going on would make the read models wrong.
    """
    logs.configure()

    async def forever() -> None:
        async with app.running_projector(Settings(nats_url=nats_url, database_url=database_url)):
            await asyncio.Event().wait()

    serving.collect_garbage_rarely()
    try:
        uvloop.run(_until_stopped(forever()))
    except db.NotReached as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8082, show_default=True, help="Port to listen on.")
def serve(host: str, port: int) -> None:
    """Serve the reading half of /admin/v1, /audit/v1 and /revocations/v1. Any number may run.

    With GRANTBOOK_READ_DATABASE_URL it answers from a streaming replica (a hot standby), as far as that has come:
    nothing is written there, and the projector makes the tables on the primary. `at_least` waits for the replica.
    """
    logs.configure()
    try:
        application = app.create_app()
    except KeyError as error:
        raise click.ClickException(f"set {error.args[0]}; see --help") from error
    except roles.TokensRefused as error:
        raise click.ClickException(str(error)) from error
    if not serving.serve(application, host=host, port=port, on_exit=lambda: end_streams(application)):
        sys.exit(1)


@main.command()
@servers
@loaders
def rebuild(nats_url: str, database_url: str, loaders: int) -> None:
    """Make the read models anew from the log, beside the live ones, and put them in their place.

    A projector may run meanwhile. It is held up for a moment at the end, and goes on with the new ones. Activity that
    has aged out of its stream is not in them.
    """
    reached = _with_means(nats_url, database_url, loaders, "rebuilding", verify.rebuild)
    click.echo(f"the read models were made anew, up to position {reached.sequence}")


@main.command("verify")
@servers
@loaders
def verify_command(nats_url: str, database_url: str, loaders: int) -> None:
    """Compare the read models with what the log says, without changing them.

    Exit status 0 and `no differences`, or 1 and the first differences of each table.
    """
    verdict = _with_means(nats_url, database_url, loaders, "verifying", verify.verify)
    if verdict.activity_since is not None:
        click.echo(f"activity before {verdict.activity_since.isoformat()} has aged out, and was not compared")
    for each in verdict.differences:
        where = "in the read models, not in the log" if each.side == "live" else "in the log, not in the read models"
        click.echo(f"{each.table}: {each.count} {where}")
        for row in each.rows:
            click.echo("  " + msgspec.json.encode(row).decode())
    if verdict.differences:
        sys.exit(DIFFERENT)
    click.echo(f"no differences, up to position {verdict.log.sequence}")


def _with_means(
    nats_url: str, database_url: str, loaders: int, doing: str, work: Callable[[verify.Means, bulk.Told], Awaitable[T]]
) -> T:
    """Run `work` with a connection to NATS, showing progress at a terminal. Failures end in a message."""
    logs.configure(level="WARNING")
    serving.collect_garbage_rarely()

    async def connected() -> T:
        settings = Settings(nats_url=nats_url, database_url="")
        async with app.connected(settings, name=f"grantbook {doing}") as client, app.opened_sources(client) as sources:
            with _progress(doing) as told:
                children = [bulk.children(nats_url, database_url)] * loaders
                return await work(verify.Means(database_url, sources, children), told)

    try:
        return uvloop.run(connected())
    except (*FAILURES, *db.UNREACHABLE) as error:
        raise click.ClickException(str(error) or type(error).__name__) from error
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@contextmanager
def _progress(doing: str) -> Iterator[bulk.Told]:
    columns = (
        TextColumn(doing),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    # Measured over a minute: a rate that jumps with each batch tells nothing.
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, speed_estimate_period=60, disable=not console.is_terminal
    ) as shown:
        tasks: dict[bulk.Unit, TaskID] = {}

        def told(done: int, total: int, unit: bulk.Unit) -> None:
            if unit not in tasks:
                # What comes after the first is another kind of work, at another rate.
                for each in tasks.values():
                    shown.stop_task(each)
                tasks[unit] = shown.add_task(unit, total=total)
            shown.update(tasks[unit], completed=done, total=total)

        yield told


class _RateColumn(ProgressColumn):
    """Events a second."""

    def render(self, task: Task) -> Text:
        """The rate, once there is one."""
        return Text("" if task.speed is None else f"{task.speed:,.0f}/s")


if __name__ == "__main__":
    main()
