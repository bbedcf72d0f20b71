"""`python -m transmitter`: serve the transmitter, and make its keys."""

import sys
from pathlib import Path

import click

from door import logs, roles, serving
from transmitter import app, keys


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The transmitter: tells receivers of revocations, as OpenID Shared Signals (SSF 1.0, CAEP) has it.

    Optional, and one is enough. It reads the revocation feed and writes nothing but what receivers configure. It needs
    nats-server 2.14. Settings come from the environment:

    \b
    GRANTBOOK_NATS_URL               the NATS server, with its user and password
    GRANTBOOK_TOKENS_FILE            bearer tokens by role, hashed; receivers have the role `feed`:
                                     see `python -m door mint --help`
    GRANTBOOK_SSF_ISSUER             the transmitter's issuer, an https URL; its endpoints are on
                                     the same host under /ssf/v1
    GRANTBOOK_SSF_SUBJECT_ISSUER     the identity provider's issuer, whose users events are about
    GRANTBOOK_SSF_SIGNING_KEYS_FILE  keys that sign events, a JWK Set: see `keys --help`
    GRANTBOOK_SSF_SEALING_KEY_FILE   key that seals receivers' secrets: see `keys --help`

    Where events are pushed to is limited:

    \b
    GRANTBOOK_SSF_ALLOWED_HOSTS      hosts that may be pushed to, with commas between; `.example.com`
                                     stands for all below it; default any
    GRANTBOOK_SSF_ALLOWED_NETWORKS   networks that may be pushed to although they are not public;
                                     default none
    GRANTBOOK_SSF_DEVELOPMENT        `on`, for one's own machine alone: keys are made when there are
                                     none, and loopback addresses need no TLS; default off
    """


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8083, show_default=True, help="Port to listen on.")
def serve(host: str, port: int) -> None:
    """Serve discovery, the management of streams and polls, and push to receivers."""
    logs.configure()
    try:
        application = app.create_app()
    except KeyError as error:
        raise click.ClickException(f"set {error.args[0]}; see --help") from error
    except (ValueError, OSError, roles.TokensRefused, keys.KeysRefused) as error:
        raise click.ClickException(str(error)) from error
    if not serving.serve(application, host=host, port=port, on_exit=lambda: app.end_polls(application)):
        sys.exit(1)


@main.command("keys")
@click.option(
    "--signing",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Put a new signing key in front of this file; the older ones keep their public half.",
)
@click.option(
    "--sealing",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Make this file, with a new key. What it seals opens with no other.",
)
def keys_command(signing: Path | None, sealing: Path | None) -> None:
    """Make keys. A transmitter that runs takes a new signing key when it is started anew.

    Receivers find the new key at `jwks_uri` as soon as they meet its `kid`. Any P-256 or RSA key will do: whoever has
    one as a JWK puts it first into the file's `keys`.
    """
    if signing is None and sealing is None:
        raise click.UsageError("name a file: --signing or --sealing")
    try:
        if signing is not None:
            app.make_signing_key(signing)
            click.echo(f"a new key signs from the next start on: {signing}")
        if sealing is not None:
            app.make_sealing_key(sealing)
            click.echo(f"made {sealing}")
    except (keys.KeysRefused, OSError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
