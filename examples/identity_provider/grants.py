"""How the authorization server answers, in the terms of Authlib: clients, the two grants, revocation, introspection."""

import contextlib
import re
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from authlib.oauth2.rfc6749 import ClientMixin
from authlib.oauth2.rfc6749.authenticate_client import authenticate_client_secret_basic
from authlib.oauth2.rfc6749.errors import (
    InvalidClientError,
    InvalidGrantError,
    InvalidRequestError,
    InvalidScopeError,
    OAuth2Error,
    UnauthorizedClientError,
    UnsupportedResponseTypeError,
)
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant, RefreshTokenGrant
from authlib.oauth2.rfc6749.util import extract_basic_authorization
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from authlib.oauth2.rfc9207 import IssuerParameter

from examples.identity_provider.register import Register
from examples.identity_provider.store import Credential, Store
from examples.identity_provider.tokens import ACCESS_SECONDS, Signer

GRANT_LIFETIME: Final = timedelta(days=30)
METHODS: Final = ["none", "client_secret_basic", "client_secret_post"]
LOOPBACK: Final = {"localhost", "127.0.0.1", "::1"}
SUSPENDED: Final = "The client is suspended."
"""Of `invalid_grant`. After `invalid_client` and `unauthorized_client` agents register anew, past the suspension."""
_UNFIT: Final = re.compile(r"[^!-~]|[#\\]|\A[^/?]*//[^/?]*@")
"""What parsers of URIs disagree about, or a redirect URI must not have: all but visible ASCII, a fragment, a user."""
_ON_LOOPBACK: Final = re.compile(r"(http://(?:localhost|127\.0\.0\.1|\[::1\]))(?::[0-9]{1,5})?((?:[/?].*)?)")


class InvalidTarget(OAuth2Error):  # type: ignore[misc]  # Authlib has no types
    """RFC 8707 section 2: not a resource of ours, or not the one that was agreed to."""

    error = "invalid_target"


class ClientSuspended(OAuth2Error):  # type: ignore[misc]
    """Nobody is asked for consent, or sent back, for the sake of a client that an admin cut off."""

    error = "access_denied"


class RegisteredClient(ClientMixin):  # type: ignore[misc]  # Authlib has no types
    """A client as Grantbook has it. Nothing about it is kept here, so nothing can be out of date."""

    def __init__(self, register: Register, registration: dict[str, Any], scopes: frozenset[str]) -> None:
        self.client_id: str = registration["client_id"]
        self.registration = registration
        self._register = register
        self._scopes = scopes

    @property
    def is_suspended(self) -> bool:
        """An admin has cut it off for a while."""
        return self.registration.get("status") == "suspended"

    def get_client_id(self) -> str:
        """Its id."""
        return self.client_id

    def get_default_redirect_uri(self) -> str | None:
        """None: a request names its redirect URI (OAuth 2.1)."""
        return None

    def get_allowed_scope(self, scope: str | None) -> str | None:
        """What is asked for, and nothing where nothing is. None for what is unknown, or more than it registered."""
        asked = scope.split(" ") if scope else []
        registered = self.registration.get("scope")
        allowed = self._scopes if registered is None else self._scopes.intersection(registered.split(" "))
        return " ".join(dict.fromkeys(asked)) if allowed.issuperset(asked) else None

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        """The very string that was registered (RFC 9700 section 2.1); on loopback any port (RFC 8252 section 7.3)."""
        if _UNFIT.search(redirect_uri):
            return False
        registered = self.registration.get("redirect_uris", [])
        portless = _without_port(redirect_uri)
        return redirect_uri in registered or (portless is not None and portless in map(_without_port, registered))

    def check_client_secret(self, client_secret: str) -> bool:
        """Grantbook has the hash."""
        return self._register.is_secret(self.client_id, client_secret)

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        """The one that it registered, and no weaker one."""
        del endpoint
        return bool(method == self.registration["token_endpoint_auth_method"])

    def check_response_type(self, response_type: str) -> bool:
        """Whether it registered it."""
        return response_type in self.registration.get("response_types", [])

    def check_grant_type(self, grant_type: str) -> bool:
        """Whether it registered it."""
        return grant_type in self.registration["grant_types"]


def _without_port(uri: str) -> str | None:
    """A loopback redirect URI without its port; None for any other."""
    found = _ON_LOOPBACK.fullmatch(uri)
    return None if found is None else found[1] + found[2]


def basic(query_client: Any, request: Any) -> RegisteredClient | None:
    """RFC 6749 section 2.3.1. Authlib fails on a header that is not Base64 of UTF-8."""
    try:
        extract_basic_authorization(request.headers)
    except ValueError:
        raise InvalidClientError("The credentials cannot be read.", status_code=401) from None
    found: RegisteredClient | None = authenticate_client_secret_basic(query_client, request)
    return found


class Provider:
    """What the grants below work with. Of `resources` the first is the default."""

    def __init__(
        self,
        register: Register,
        store: Store,
        signer: Signer,
        *,
        scopes: frozenset[str],
        resources: tuple[str, ...],
    ) -> None:
        self.register = register
        self.store = store
        self.signer = signer
        self.scopes = scopes
        self.resources = resources

    def client(self, client_id: str) -> RegisteredClient | None:
        """The client as Grantbook has it now; None where there is none, or it was deleted."""
        registration = self.register.client(client_id)
        return None if registration is None else RegisteredClient(self.register, registration, self.scopes)

    def resource(self, asked: list[str]) -> str:
        """What tokens are asked for (RFC 8707 section 2.1). Raises `InvalidTarget`."""
        if not asked:
            return self.resources[0]
        if len(asked) != 1 or asked[0] not in self.resources:
            raise InvalidTarget("The resource is none of ours.")
        return asked[0]

    def tokens(self, credential: Credential, request: Any, scope: str, *, refreshable: bool) -> dict[str, Any]:
        """Use a code or refresh token up: an access token, and a refresh token beside.

        Raises `InvalidTarget`, and `InvalidGrantError` where the grant stands no longer.

        The order matters. Fix `iat`, look at the grant, release the token: a revocation in between is seen either
        here or by whoever is shown the token. And use the credential up last: should Grantbook be away, an honest
        client sends the same request again, and must not be taken for a thief.
        """
        if any(each != credential.resource for each in request.payload.datalist["resource"]):
            raise InvalidTarget("The user agreed to another resource.")
        issued_at = int(time.time())
        if not self.register.stands(credential.client_id, credential.grant_id):
            raise InvalidGrantError("The grant has ended.")
        token: dict[str, Any] = {
            "token_type": "Bearer",
            "access_token": self.signer.access_token(
                client_id=credential.client_id,
                grant_id=credential.grant_id,
                user_id=credential.user_id,
                scope=scope,
                audience=credential.resource,
                issued_at=issued_at,
            ),
            "expires_in": ACCESS_SECONDS,
            "scope": scope,
        }
        if refreshable:
            token["refresh_token"] = secrets.token_urlsafe(32)
            self.store.put(
                "refresh",
                token["refresh_token"],
                client_id=credential.client_id,
                grant_id=credential.grant_id,
                user_id=credential.user_id,
                scope=credential.scope,
                resource=credential.resource,
            )
        if not self.store.use(credential):
            # Of two at once this is the second. What was made above is known to nobody.
            self.used_twice(credential)
            raise InvalidGrantError
        return token

    def good(self, kind: str, secret: str, client: RegisteredClient) -> Credential | None:
        """A code or refresh token of this client that was not used before. Raises `InvalidGrantError` if suspended."""
        found = self.store.find(kind, secret)
        if found is None or not found.check_client(client):
            return None
        if client.is_suspended:
            raise InvalidGrantError(SUSPENDED)
        if found.used:
            self.used_twice(found)
            return None
        return found

    def used_twice(self, credential: Credential) -> None:
        """Somebody has what they should not: nobody keeps it (RFC 9700 section 4.14, RFC 6749 section 4.1.2)."""
        self.register.revoke(credential.client_id, credential.grant_id, "reuse_detected")

    @contextlib.contextmanager
    def telling_suspended(self, kind: str, secret: str) -> Iterator[None]:
        """Grantbook confirms no secret of a suspended client, so it cannot authenticate; that must not be the answer.

        Only who shows a code or refresh token of such a client is told: an id alone is known to many.
        """
        try:
            yield
        except InvalidClientError:
            owner = self.store.owner(kind, secret)
            client = None if owner is None else self.client(owner)
            if client is not None and client.is_suspended:
                raise InvalidGrantError(SUSPENDED) from None
            raise


def asking(provider: Provider, sent: Any) -> RegisteredClient:
    """Who sends an authorization request, having checked where answers go. Its errors are for the user to see."""
    client = provider.client(sent.client_id) if len(sent.datalist["client_id"]) == 1 else None
    if client is None:
        raise InvalidClientError("There is no such client.")
    if len(sent.datalist["redirect_uri"]) != 1 or not client.check_redirect_uri(sent.redirect_uri):
        raise InvalidRequestError("The redirect URI is not one that the client registered.")
    if client.is_suspended:
        raise ClientSuspended
    return client


def scope_asked(provider: Provider, client: RegisteredClient, sent: Any) -> str:
    """The scope of an authorization request, having checked what else is asked. Its errors are for the client."""
    if any(len(values) > 1 for name, values in sent.datalist.items() if name != "resource"):
        raise InvalidRequestError("A parameter came more than once.")
    if not sent.response_type:
        raise InvalidRequestError("There is no response_type.")
    if sent.response_type != "code":
        raise UnsupportedResponseTypeError(sent.response_type)
    if not client.check_response_type("code"):
        raise UnauthorizedClientError("The client did not register this response_type.")
    provider.resource(sent.datalist["resource"])
    scope = client.get_allowed_scope(sent.scope)
    if scope is None:
        raise InvalidScopeError
    return scope


class JudgedLater(AuthorizationCodeGrant):  # type: ignore[misc]
    """Without what Authlib refuses before it knows where the error may go: `asking` and `scope_asked` see to that."""

    @classmethod
    def check_authorization_endpoint(cls, request: Any) -> bool:
        """Whatever its response type."""
        del request
        return True

    @staticmethod
    def validate_no_multiple_request_parameter(request: Any) -> None:
        """However often its parameters come."""


def code_grant(provider: Provider) -> type[AuthorizationCodeGrant]:
    """Authorization code (RFC 6749 section 4.1), with PKCE by an extension of Authlib's."""

    class Grant(JudgedLater):
        TOKEN_ENDPOINT_AUTH_METHODS = METHODS

        def validate_authorization_request(self) -> str:
            """RFC 6749 section 4.1.2.1: the errors of the first part are shown, those of the second sent back.

            Authlib puts what was sent into its descriptions, and then fails on characters that these must not have.
            """
            sent = self.request.payload
            self.request.client = asking(provider, sent)
            try:
                self.request.scope = scope_asked(provider, self.request.client, sent)
                self.execute_hook("after_validate_authorization_request_payload", None)  # PKCE's
            except OAuth2Error as error:
                error.redirect_uri = sent.redirect_uri
                raise
            return str(sent.redirect_uri)

        def save_authorization_code(self, code: str, request: Any) -> None:
            """Consent was given: `request.user` is the grant that Grantbook made of it."""
            provider.store.put(
                "code",
                code,
                client_id=request.client.client_id,
                grant_id=request.user.grant_id,
                user_id=request.user.user_id,
                scope=request.scope,
                resource=provider.resource(request.payload.datalist["resource"]),
                redirect_uri=request.payload.redirect_uri,
                code_challenge=request.payload.data["code_challenge"],
            )

        def authenticate_token_endpoint_client(self) -> RegisteredClient:
            """The client, if it is who it says."""
            with provider.telling_suspended("code", self.request.form.get("code", "")):
                client: RegisteredClient = super().authenticate_token_endpoint_client()
            return client

        def query_authorization_code(self, code: str, client: RegisteredClient) -> Credential | None:
            """What the code is good for."""
            return provider.good("code", code, client)

        def authenticate_user(self, authorization_code: Credential) -> Credential:
            """PKCE was checked: the code says whose it is."""
            return authorization_code

        def generate_token(self, user: Credential, scope: str, include_refresh_token: bool, **_: Any) -> dict[str, Any]:  # noqa: FBT001  Authlib's
            """The tokens, for the code."""
            return provider.tokens(user, self.request, scope, refreshable=include_refresh_token)

        def delete_authorization_code(self, authorization_code: Credential) -> None:
            """It stays, as used."""

    return Grant


def refresh_grant(provider: Provider) -> type[RefreshTokenGrant]:
    """Refresh (RFC 6749 section 6): each token once; a second use ends the grant."""

    class Grant(RefreshTokenGrant):  # type: ignore[misc]
        TOKEN_ENDPOINT_AUTH_METHODS = METHODS
        INCLUDE_NEW_REFRESH_TOKEN = True

        def authenticate_token_endpoint_client(self) -> RegisteredClient:
            """The client, if it is who it says."""
            with provider.telling_suspended("refresh", self.request.form.get("refresh_token", "")):
                client: RegisteredClient = super().authenticate_token_endpoint_client()
            return client

        def authenticate_refresh_token(self, refresh_token: str) -> Credential | None:
            """What the token is good for."""
            return provider.good("refresh", refresh_token, self.request.client)

        def authenticate_user(self, refresh_token: Credential) -> Credential:
            """It says whose it is."""
            return refresh_token

        def generate_token(self, user: Credential, scope: str, include_refresh_token: bool, **_: Any) -> dict[str, Any]:  # noqa: FBT001  Authlib's
            """The tokens, for the refresh token; and the grant lives on."""
            # Authlib has compared the words; send back no odd space between them.
            words = " ".join(dict.fromkeys(scope.split()))
            made = provider.tokens(user, self.request, words, refreshable=include_refresh_token)
            provider.register.refreshed(user.client_id, user.grant_id, datetime.now(UTC) + GRANT_LIFETIME)
            return made

        def revoke_old_credential(self, refresh_token: Credential) -> None:
            """It was used up already."""

    return Grant


class Presented:
    """A token that was presented for revocation or introspection."""

    def __init__(self, claims: dict[str, Any], *, standing: bool) -> None:
        self.claims = claims
        self.standing = standing

    def check_client(self, client: RegisteredClient) -> bool:
        """Whether it was given to this client."""
        return bool(self.claims["client_id"] == client.client_id)

    def is_expired(self) -> bool:
        """Told by `is_revoked`, too: neither counts."""
        return not self.standing

    def is_revoked(self) -> bool:
        """Whether its grant has ended."""
        return not self.standing


def presented(provider: Provider, token: str) -> Presented | None:
    """One of our access or refresh tokens; None for any other."""
    claims = provider.signer.claims(token)
    if claims is None:
        found = provider.store.find("refresh", token)
        if found is None:
            return None
        claims = {
            "client_id": found.client_id,
            "grant_id": found.grant_id,
            "sub": found.user_id,
            "scope": found.scope,
            "exp": int(found.expires_at),
            "used": found.used,
        }
    alive = claims["exp"] > time.time() and not claims.pop("used", False)
    return Presented(claims, standing=alive and provider.register.stands(claims["client_id"], claims["grant_id"]))


def revocation(provider: Provider) -> type[RevocationEndpoint]:
    """RFC 7009: either token ends the grant, at Grantbook, and so everywhere."""

    class Endpoint(RevocationEndpoint):  # type: ignore[misc]
        CLIENT_AUTH_METHODS = METHODS

        def query_token(self, token_string: str, token_type_hint: str | None) -> Presented | None:
            """The token; the hint is not needed."""
            del token_type_hint
            return presented(provider, token_string)

        def revoke_token(self, token: Presented, request: Any) -> None:
            """End its grant."""
            del request
            provider.register.revoke(token.claims["client_id"], token.claims["grant_id"], "token_revoked")

    return Endpoint


def introspection(provider: Provider) -> type[IntrospectionEndpoint]:
    """RFC 7662: the state of the grant as Grantbook has it now. For clients about their own tokens."""

    class Endpoint(IntrospectionEndpoint):  # type: ignore[misc]
        CLIENT_AUTH_METHODS = METHODS

        def query_token(self, token_string: str, token_type_hint: str | None) -> Presented | None:
            """The token; the hint is not needed."""
            del token_type_hint
            return presented(provider, token_string)

        def check_permission(self, token: Presented, client: RegisteredClient, request: Any) -> bool:
            """Of its own tokens only."""
            del request
            return token.check_client(client)

        def introspect_token(self, token: Presented) -> dict[str, Any]:
            """What RFC 7662 section 2.2 has; nothing but `active` of one that does not count."""
            return {"active": True, **token.claims} if token.standing else {"active": False}

    return Endpoint


class Pkce(CodeChallenge):  # type: ignore[misc]
    """RFC 7636, for every client, and with S256 alone (OAuth 2.1 section 4.1.1)."""

    SUPPORTED_CODE_CHALLENGE_METHOD = ("S256",)

    def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
        """Authlib lets requests without a challenge through, and takes one without a method for `plain`."""
        said = grant.request.payload.data
        if not said.get("code_challenge") or not said.get("code_challenge_method"):
            raise InvalidRequestError("PKCE is needed, with code_challenge_method=S256.")
        super().validate_code_challenge(grant, redirect_uri)


class Issuer(IssuerParameter):  # type: ignore[misc]
    """RFC 9207: every authorization response says whose it is."""

    def __init__(self, issuer: str) -> None:
        self._issuer = issuer

    def get_issuer(self) -> str:
        """Ours."""
        return self._issuer
