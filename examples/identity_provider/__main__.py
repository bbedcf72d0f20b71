"""`python -m examples.identity_provider`."""

import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

import click
import waitress

from examples.identity_provider.app import Settings, create_app
from examples.identity_provider.grants import LOOPBACK

THREADS = 8


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--port", type=click.IntRange(1, 65_535), default=8090, show_default=True)
@click.option("--issuer", help="Where it is reached. Default: http://127.0.0.1:<port>")
@click.option("--grantbook", envvar="GRANTBOOK_URL", required=True, help="Base URL of Grantbook ($GRANTBOOK_URL).")
@click.option(
    "--resource", "resources", multiple=True, required=True, help="A protected resource that tokens may be for."
)
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), default=Path(".grantbook/demo-idp"))
def main(port: int, issuer: str | None, grantbook: str, resources: tuple[str, ...], data: Path) -> None:
    """An OAuth authorization server whose clients and grants are on Grantbook's register.

    $GRANTBOOK_IDP_TOKEN is the bearer token of the role idp.
    """
    token = os.environ.get("GRANTBOOK_IDP_TOKEN")
    if not token:
        sys.exit("Set GRANTBOOK_IDP_TOKEN: `. .grantbook/dev.env` and export it")
    issuer = issuer or f"http://127.0.0.1:{port}"
    if urlsplit(issuer).scheme == "http" and urlsplit(issuer).hostname in LOOPBACK:
        os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "true"  # this machine talks to itself
    app = create_app(Settings(issuer, grantbook.rstrip("/"), token, data, resources))
    waitress.serve(app, host="127.0.0.1", port=port, threads=THREADS, ident=None)


if __name__ == "__main__":
    main()
