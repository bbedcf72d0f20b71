"""`python -m registry`: serve the registry, and make its streams."""

import asyncio
import os
import sys
import tempfile
from typing import Final

import click
from litestar import Litestar

from door import logs, roles, serving
from grantbook.sdk import connection
from grantbook.sdk.log import Unavailable
from registry import app, streams

MAX_WORKERS: Final = 64


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The registry: the only writer of Grantbook's log.

    It takes registrations of agents, grants and their use from the identity provider, and revocations from admins.
    Any number may run. Settings come from the environment:

    \b
    GRANTBOOK_NATS_URL          the NATS server, with its user and password
    GRANTBOOK_URL               where agents reach the registry from outside
    GRANTBOOK_TOKENS_FILE       bearer tokens by role, hashed: see `python -m door mint --help`
    GRANTBOOK_NATS_MONITOR_URL  the NATS server's monitoring address; with it, a server that
                                acknowledges before its data is on disk is refused
    GRANTBOOK_FANOUT            `off`: leave the fan-out after deletions, and the expiry of unused
                                clients, to other registries

    What anybody may do is limited. A rate is <per second>/<burst>, or `off`:

    \b
    GRANTBOOK_REGISTRATION_LIMIT             of all together; default 20/100000
    GRANTBOOK_REGISTRATION_LIMIT_PER_SOURCE  of an IPv4 address or IPv6 /64; default 1/20000
    GRANTBOOK_TRUSTED_PROXIES                networks whose X-Forwarded-For is believed; default none
    GRANTBOOK_MAX_UNUSED_CLIENTS             above it the oldest clients that were never used are
                                             expired; default 500000, or `off`
    GRANTBOOK_IDEMPOTENT_REGISTRATION        `on`: identical public clients are one; default off
    GRANTBOOK_ROTATE_CLIENT_SECRETS          `off`: an update (RFC 7592) keeps the client's secret
    GRANTBOOK_SOFTWARE_STATEMENT_ISSUERS     file of the issuers whose statements are believed
    """


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8081, show_default=True, help="Port to listen on.")
@click.option(
    "--workers",
    type=click.IntRange(1, MAX_WORKERS),
    default=1,
    show_default=True,
    help="Processes that serve the port together: about as many as cores that nothing else needs.",
)
def serve(host: str, port: int, workers: int) -> None:
    """Serve registration, /idp/v1 and the acting half of /admin/v1."""
    logs.configure()
    os.environ[app.WORKERS] = str(workers)
    try:
        application = app.create_app()
    except (KeyError, ValueError, roles.TokensRefused) as error:
        raise click.ClickException(_explained(error)) from error
    if workers == 1:
        started = serving.serve(application, host=host, port=port)
    else:
        with tempfile.TemporaryDirectory(prefix="grantbook-metrics-") as folder:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # whichever worker is asked tells of all
            started = serving.serve_together("registry.__main__:worker", host=host, port=port, workers=workers)
    if not started:
        sys.exit(1)


def worker() -> Litestar:
    """The application of one of several workers."""
    serving.be_a_worker()
    return app.create_app()


@main.command("ensure-streams")
@click.option(
    "--replicas", type=click.Choice(["1", "3"]), default="1", show_default=True, help="Copies of each stream."
)
@click.option(
    "--log-max-bytes",
    type=click.IntRange(min=1_048_576),
    default=streams.LOG_MAX_BYTES,
    show_default=True,
    help="Size of the log; from 90 % of it nothing but revocations is recorded.",
)
@click.option("--rebuild-feed", is_flag=True, help="Make the revocation feed anew, after a restore of the log.")
def ensure_streams(replicas: str, log_max_bytes: int, rebuild_feed: bool) -> None:  # noqa: FBT001  click hands it so
    """Create the streams and buckets that are missing, and check those that are there."""

    async def ensure() -> list[str]:
        nats = await connection.connect(os.environ["GRANTBOOK_NATS_URL"], name="grantbook ensure-streams")
        try:
            if rebuild_feed:
                await streams.rebuild_feed(nats, replicas=int(replicas))
                click.echo("made the revocation feed anew")
            return await streams.ensure(nats, replicas=int(replicas), log_max_bytes=log_max_bytes)
        finally:
            await connection.close(nats)

    try:
        made = asyncio.run(ensure())
    except (KeyError, streams.UnsafeStreams, Unavailable, OSError) as error:
        raise click.ClickException(_explained(error)) from error
    click.echo(f"created {', '.join(made)}" if made else "all streams are there, and as they must be")


def _explained(error: Exception) -> str:
    return f"set {error.args[0]}; see --help" if isinstance(error, KeyError) else str(error)


if __name__ == "__main__":
    main()
