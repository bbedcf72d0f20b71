"""`python -m deploy.dev`: the whole product on this machine."""

import sys
from pathlib import Path

import click

from deploy.dev import demo as all_three
from deploy.dev import up as all_in_one
from deploy.dev.servers import ServerFailed

# The same for all that start it, or look for it.
_host = click.option(
    "--host", default="127.0.0.1", show_default=True, envvar="GRANTBOOK_HOST", help="Address that Grantbook listens on."
)
_port = click.option(
    "--port",
    type=click.IntRange(1, 65_535),
    default=8080,
    show_default=True,
    envvar="GRANTBOOK_PORT",
    help="Port that Grantbook listens on.",
)
_data = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".grantbook"),
    show_default=True,
    help="Where everything is kept between runs.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Grantbook on one machine: real servers from their wheels, one Python process, one port."""


@main.command()
@_host
@_port
@_data
@click.option("--quiet", is_flag=True, help="Do not print what to try next.")
def up(host: str, port: int, data: Path, quiet: bool) -> None:  # noqa: FBT001  click hands it so
    """Start everything; Ctrl-C stops all of it.

    With GRANTBOOK_NATS_URL or GRANTBOOK_DATABASE_URL set, that server of yours is used instead of an embedded one.
    """
    try:
        sys.exit(all_in_one.run(host=host, port=port, data=data, quiet=quiet))
    except (ServerFailed, all_in_one.CannotStart) as error:
        click.secho(f"grantbook: {error}", err=True, fg="red")
        sys.exit(1)


@main.command()
@_host
@_port
@_data
def link(host: str, port: int, data: Path) -> None:
    """Print a link that signs in to the console of `up`: good once, for ten minutes."""
    try:
        click.echo(all_in_one.sign_in_link(data, f"http://{host}:{port}"))
    except all_in_one.CannotStart as error:
        raise click.ClickException(str(error)) from error


@main.command()
@_port
@click.option("--idp-port", type=click.IntRange(1, 65_535), default=8090, show_default=True, help="The provider's.")
@click.option("--mcp-port", type=click.IntRange(1, 65_535), default=8095, show_default=True, help="The MCP server's.")
@_data
@click.option("--quiet", is_flag=True, help="Do not print what to try next.")
def demo(port: int, idp_port: int, mcp_port: int, data: Path, quiet: bool) -> None:  # noqa: FBT001  click hands it so
    """Start everything, and beside it an identity provider and an MCP server that use it; Ctrl-C stops all."""
    try:
        all_three.run(data.resolve(), all_three.Ports(port, idp_port, mcp_port), quiet=quiet)
    except all_three.DemoFailed as error:
        click.secho(f"grantbook: {error}", err=True, fg="red")
        sys.exit(1)


if __name__ == "__main__":
    main()
