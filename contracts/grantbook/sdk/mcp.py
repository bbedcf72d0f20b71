"""An MCP server's access tokens, for the official MCP SDK. Needs `pip install 'grantbook[mcp]'`.

server = MCPServer("mail", token_verifier=GrantbookTokenVerifier(verifier, feed), auth=AuthSettings(...))
"""

from mcp.server.auth.provider import AccessToken

from grantbook.sdk.asgi import Reports, Verifier
from grantbook.sdk.revocations import Revocations
from grantbook.sdk.tokens import TokenRefused


class GrantbookTokenVerifier:
    """A `TokenVerifier` of the MCP SDK: a token counts that verifies, and whose grant has not ended.

    With `activity`, each use is reported as a `tool_call`. What the token says is in `AccessToken.claims`.
    """

    def __init__(self, verifier: Verifier, feed: Revocations, activity: Reports | None = None) -> None:
        self._verifier = verifier
        self._feed = feed
        self._activity = activity

    async def verify_token(self, token: str) -> AccessToken | None:
        """The token, or None where it must not be honoured: the SDK answers 401 then."""
        try:
            access = await self._verifier.verify(token)
        except TokenRefused:
            return None
        if self._feed.is_revoked(access.client_id, access.grant_id, access.user_id, access.issued_at):
            return None
        if self._activity is not None:
            self._activity.report(access.client_id, access.grant_id, "tool_call")
        audience = access.claims.get("aud")
        return AccessToken(
            token=token,
            client_id=access.client_id,
            scopes=list(access.scopes),
            expires_at=int(access.expires_at),
            resource=audience if isinstance(audience, str) else None,
            subject=access.user_id,
            claims=access.claims,
        )
