"""The registry as an http client sees it: paths, tokens, and a registration to begin with."""

from typing import Any

from httpx import AsyncClient

from door import roles

REGISTER = "/auth/connect/register"
PUBLIC = {"redirect_uris": ["http://localhost:1234/callback"], "token_endpoint_auth_method": "none"}
GRANT = {"user_id": "ada", "username": "ada@example.com", "scopes": ["read"], "expires_at": "2099-01-01T00:00:00Z"}
Http = AsyncClient
TOKENS: dict[roles.Role, str] = {role: f"token-of-{role}-0123456789abcdef" for role in roles.ROLES}


def as_(role: roles.Role) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[role]}"}


async def registered(http: Http, **more: Any) -> dict[str, Any]:
    answer = await http.post(REGISTER, json=PUBLIC | more)
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body
