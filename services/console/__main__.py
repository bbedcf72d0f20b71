"""`python -m console`: serve the admin pages."""

import sys

import click

from console import app
from door import logs, roles, serving


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The console: pages for admins, on top of the registry and the read API.

    People sign in with an OpenID provider. Settings come from the environment:

    \b
    GRANTBOOK_CONSOLE_URL         where browsers reach it, https, without /console
    GRANTBOOK_REGISTRY_URL        the registry
    GRANTBOOK_PROJECTOR_URL       the read API
    GRANTBOOK_CONSOLE_TOKEN       token of the role `console`: see `python -m door mint --help`
    GRANTBOOK_OIDC_ISSUER         the OpenID provider
    GRANTBOOK_OIDC_CLIENT_ID      the console there; its redirect URI is
                                  <GRANTBOOK_CONSOLE_URL>/console/sign-in/callback
    GRANTBOOK_OIDC_CLIENT_SECRET  its secret, if it has one
    GRANTBOOK_OIDC_ADMIN_CLAIM    claim of the ID token that says who is an admin, like `groups`
    GRANTBOOK_OIDC_ADMIN_VALUES   its values that do, with commas between
    GRANTBOOK_TOKENS_FILE         optional: tokens of the role `ops`, for /metrics
    """


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8084, show_default=True, help="Port to listen on.")
def serve(host: str, port: int) -> None:
    """Serve the pages. Sessions live in this process: of several, a browser must come to the same one."""
    logs.configure()
    try:
        application = app.create_app()
    except KeyError as error:
        raise click.ClickException(f"set {error.args[0]}; see --help") from error
    except (ValueError, roles.TokensRefused) as error:
        raise click.ClickException(str(error)) from error
    if not serving.serve(application, host=host, port=port):
        sys.exit(1)


if __name__ == "__main__":
    main()
