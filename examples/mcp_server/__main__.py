"""`python -m examples.mcp_server`: the official MCP SDK, and Grantbook's for who may call."""

import asyncio
import os
import sys
from datetime import timedelta
from typing import Final
from urllib.parse import urlsplit

import click
import uvicorn
from mcp.server import MCPServer
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.settings import AuthSettings

from grantbook.sdk.activity import ActivityReporter
from grantbook.sdk.mcp import GrantbookTokenVerifier
from grantbook.sdk.revocations import RevocationFeed
from grantbook.sdk.tokens import JwtVerifier

LIFETIME: Final = timedelta(minutes=6)
"""Of the longest-lived access token: the identity provider's live for five minutes."""
LETTERS: Final = ["Minutes of Tuesday's meeting", "Your invoice", "Lunch?"]


def mail_server(verifier: GrantbookTokenVerifier, *, issuer: str, url: str) -> MCPServer:
    """Two tools. `url` is where the server is reached, `issuer` the identity provider that agents are sent to."""
    auth = AuthSettings(
        issuer_url=issuer,  # type: ignore[arg-type]  # pydantic makes a URL of it
        resource_server_url=url,  # type: ignore[arg-type]
        required_scopes=["mail.read"],
        validate_token_resource=False,  # the verifier checks the audience
    )
    server = MCPServer("mail", token_verifier=verifier, auth=auth)

    @server.tool()
    def subjects() -> list[str]:
        """The subjects of your unread mail."""
        return LETTERS

    @server.tool()
    def whoami() -> str:
        """Whose mail this is."""
        token = get_access_token()
        return "nobody" if token is None or token.subject is None else token.subject

    return server


async def serve(port: int, issuer: str, nats_url: str, grantbook: str, idp_token: str) -> None:
    """Serve until told to stop."""
    url = f"http://127.0.0.1:{port}/mcp"
    tokens = JwtVerifier(issuer=issuer, audience=url, jwks_url=f"{issuer}/jwks")
    async with (
        RevocationFeed(nats_url, LIFETIME, subscriber="demo-mail", instance=f"port-{port}") as feed,
        ActivityReporter(grantbook, idp_token) as activity,
    ):
        server = mail_server(GrantbookTokenVerifier(tokens, feed, activity), issuer=issuer, url=url)
        app = server.streamable_http_app()
        await uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning")).serve()
    await tokens.aclose()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--port", type=click.IntRange(1, 65_535), default=8095, show_default=True)
@click.option("--issuer", default="http://127.0.0.1:8090", show_default=True, help="The identity provider.")
@click.option("--grantbook", envvar="GRANTBOOK_URL", required=True, help="Base URL of Grantbook ($GRANTBOOK_URL).")
def main(port: int, issuer: str, grantbook: str) -> None:
    """An MCP server that asks Grantbook's feed on each call.

    $GRANTBOOK_NATS_URL is where the feed is, $GRANTBOOK_IDP_TOKEN reports use.
    """
    try:
        nats_url, idp_token = os.environ["GRANTBOOK_NATS_URL"], os.environ["GRANTBOOK_IDP_TOKEN"]
    except KeyError as missing:
        sys.exit(f"Set {missing.args[0]}: `. .grantbook/dev.env` and export it")
    if urlsplit(issuer).scheme not in {"http", "https"}:
        sys.exit("--issuer is a URL")
    asyncio.run(serve(port, issuer, nats_url, grantbook, idp_token))


if __name__ == "__main__":
    main()
