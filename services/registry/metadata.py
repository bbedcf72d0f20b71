"""RFC 7591 client metadata: raw JSON to checked `ClientMetadata`, and back to what a client is answered. Pure.

One validator serves every way in: registration, update, metadata documents, admins. So an update is never laxer. The
list of members is closed: others are ignored, and neither stored nor echoed, so no extra member gains power. Values
that do not fit are refused, never fixed up; but for names, which are kept in Unicode's NFC.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from appraisal import names, uris
from appraisal.names import NameRefused
from appraisal.uris import Uri, UriRefused
from grantbook.events import ClientMetadata

MAX_MEMBERS: Final = 512
"""Of one registration, unknown ones included."""
MAX_REDIRECT_URIS: Final = 32
MAX_SCOPE_CHARACTERS: Final = 4_096
MAX_CONTACTS: Final = 10
MAX_CONTACT_CHARACTERS: Final = 320
MAX_SOFTWARE_ID_CHARACTERS: Final = 256
MAX_SOFTWARE_VERSION_CHARACTERS: Final = 128
MAX_LIST_ENTRIES: Final = 16
"""Of `grant_types` and `response_types`, before repetitions are dropped."""
MAX_LOCALIZED: Final = 64
MAX_LANGUAGE_TAG_CHARACTERS: Final = 64
MAX_JWKS_KEYS: Final = 20
MAX_JWK_MEMBER_CHARACTERS: Final = 4_096
MAX_JWK_LIST_ENTRIES: Final = 8
MAX_STATEMENT_CHARACTERS: Final = 16_384

GRANT_TYPES: Final = ("authorization_code", "refresh_token")
RESPONSE_TYPES: Final = ("code",)
SECRET_METHODS: Final = ("client_secret_basic", "client_secret_post")
AUTH_METHODS: Final = ("none", *SECRET_METHODS, "private_key_jwt")
DEFAULT_AUTH_METHOD: Final = "client_secret_basic"
APPLICATION_TYPES: Final = ("web", "native")

_DISPLAYED_URIS: Final = ("client_uri", "logo_uri", "tos_uri", "policy_uri")
_LOCALIZED: Final = ("client_name", *_DISPLAYED_URIS)
_LANGUAGE_TAG: Final = re.compile(r"[A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8})*\Z")
"""RFC 5646 section 2.1, without its registry."""
_SCOPE: Final = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]+(?: [\x21\x23-\x5B\x5D-\x7E]+)*\Z")
"""RFC 6749 section 3.3: scope-tokens with one space between."""
_SURROGATE: Final = re.compile(rb"\\u[dD]")
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+\Z")
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls, line separators, bidirectional embeddings, overrides and isolates, and halves of surrogate pairs: what
would make a name show as another, or not encode at all."""

_PRIVATE_KEY_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"})
_REQUIRED_OF_KEY: Final = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_CURVES: Final = {
    "EC": frozenset({"P-256", "P-384", "P-521", "secp256k1"}),
    "OKP": frozenset({"Ed25519", "Ed448", "X25519", "X448"}),
}
"""RFC 7518 section 6.2.1.1, RFC 8037 section 2, RFC 8812 section 3.1."""
_NOT_OF_PUBLIC_KEYS: Final = re.compile(r"none\Z|HS[0-9]|A[0-9]|dir\Z", re.IGNORECASE)
"""Algorithms without a key, or with a shared one (RFC 7518 sections 3.1 and 4.1)."""
_BASE64URL_OF_KEY: Final = frozenset({"n", "e", "x", "y", "x5t", "x5t#S256"})
_TEXT_OF_KEY: Final = frozenset({"kty", "use", "alg", "kid", "crv"})
_LISTS_OF_KEY: Final = frozenset({"key_ops", "x5c"})
"""`x5u` is not among them: a URL inside of a key is one more thing that somebody may be made to fetch."""


SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["redirect_uris"],
    "maxProperties": MAX_MEMBERS,
    "properties": {
        "redirect_uris": {
            "type": "array",
            "items": {"type": "string", "maxLength": uris.MAX_URI_CHARACTERS},
            "minItems": 1,
            "maxItems": MAX_REDIRECT_URIS,
        },
        "token_endpoint_auth_method": {"enum": list(AUTH_METHODS), "default": DEFAULT_AUTH_METHOD},
        "grant_types": {"type": "array", "items": {"enum": list(GRANT_TYPES)}, "default": ["authorization_code"]},
        "response_types": {"type": "array", "items": {"enum": list(RESPONSE_TYPES)}, "default": list(RESPONSE_TYPES)},
        "application_type": {"enum": list(APPLICATION_TYPES)},
        "client_name": {"type": "string", "maxLength": names.MAX_NAME_CHARACTERS},
        **{name: {"type": "string", "maxLength": uris.MAX_URI_CHARACTERS} for name in (*_DISPLAYED_URIS, "jwks_uri")},
        "scope": {"type": "string", "maxLength": MAX_SCOPE_CHARACTERS},
        "contacts": {
            "type": "array",
            "items": {"type": "string", "maxLength": MAX_CONTACT_CHARACTERS},
            "maxItems": MAX_CONTACTS,
        },
        "jwks": {
            "type": "object",
            "required": ["keys"],
            "properties": {"keys": {"type": "array", "items": {"type": "object"}, "maxItems": MAX_JWKS_KEYS}},
        },
        "software_id": {"type": "string", "maxLength": MAX_SOFTWARE_ID_CHARACTERS},
        "software_version": {"type": "string", "maxLength": MAX_SOFTWARE_VERSION_CHARACTERS},
        "software_statement": {"type": "string", "maxLength": MAX_STATEMENT_CHARACTERS},
    },
}
"""A registration request (RFC 7591 section 2) as JSON Schema, for the API's documentation. `check` is what decides."""


class MetadataRefused(Exception):
    """The metadata is not registered. `error` is a code of RFC 7591 section 3.2.2, or `invalid_request`.

    `description` is printable ASCII, and repeats nothing that was sent.
    """

    def __init__(self, error: str, description: str) -> None:
        super().__init__(error, description)
        self.error: Final = error
        self.description: Final = description


Claims = Callable[[str], dict[str, object]]
"""The claims of a software statement that is approved here. Raises `MetadataRefused` for any other."""


def members_of(body: bytes) -> dict[str, object]:
    """The members of a registration request (RFC 7591 section 3.1). Raises `MetadataRefused`.

    A member that is given twice is refused (RFC 8259 section 4): which one counts is what two readers may differ on.
    """
    try:
        members = _decoder.decode(body.decode())
        if _SURROGATE.search(body):
            json.dumps(members, ensure_ascii=False).encode()  # half of a pair is no character, and does not encode
    except RecursionError:
        raise MetadataRefused("invalid_request", "the body is nested too deeply") from None
    except ValueError:
        raise MetadataRefused("invalid_request", "the body is not JSON in UTF-8") from None
    if not isinstance(members, dict):
        raise _refused("the body is not a JSON object")
    if len(members) > MAX_MEMBERS:
        raise _refused(f"the body has more than {MAX_MEMBERS} members")
    return members


def _unrepeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise MetadataRefused("invalid_request", "an object of the body has a member twice")
    return members


def _no_number(_: str) -> None:
    raise ValueError  # NaN and Infinity are Python's, not JSON's


_decoder: Final = json.JSONDecoder(object_pairs_hook=_unrepeated, parse_constant=_no_number)


def check(
    members: Mapping[str, object], *, claims: Claims | None = None, default_auth_method: str = DEFAULT_AUTH_METHOD
) -> ClientMetadata:
    """The metadata that these members say (RFC 7591 section 2), defaults filled in. Raises `MetadataRefused`.

    `claims` reads software statements (section 2.3), whose claims win over the members beside them. Without it every
    statement is refused.
    """
    statement = _statement(members)
    if statement is not None:
        if claims is None:
            raise MetadataRefused("unapproved_software_statement", "software_statement: its issuer is not trusted here")
        said = claims(statement)
        # A member in another language is the same member: what is vouched for is not renamed beside it.
        unsaid = {name: value for name, value in members.items() if name.partition("#")[0] not in said}
        members = {**unsaid, **said}
    grant_types = _grant_types(members)
    response_types = _response_types(members)
    redirect_uris, any_native = _redirect_uris(members)
    method = _one_of(members, "token_endpoint_auth_method", AUTH_METHODS) or default_auth_method
    jwks = _jwks(members)
    jwks_uri = _uri(members, "jwks_uri")
    if jwks is not None and jwks_uri is not None:
        raise _refused("jwks and jwks_uri: at most one of them")
    if method == "private_key_jwt" and jwks is None and jwks_uri is None:
        raise _refused("private_key_jwt needs jwks or jwks_uri")
    application_type = _one_of(members, "application_type", APPLICATION_TYPES)
    if any_native or application_type is None:
        # A redirect to the machine itself, or to an app, is what makes a client native (RFC 8252 section 7).
        application_type = "native" if any_native else "web"
    return ClientMetadata(
        redirect_uris=redirect_uris,
        token_endpoint_auth_method=method,
        grant_types=grant_types,
        response_types=response_types,
        application_type=application_type,
        client_name=_name(members),
        client_uri=_uri(members, "client_uri"),
        logo_uri=_uri(members, "logo_uri"),
        scope=_scope(members),
        contacts=_contacts(members),
        tos_uri=_uri(members, "tos_uri"),
        policy_uri=_uri(members, "policy_uri"),
        jwks_uri=jwks_uri,
        jwks=jwks,
        software_id=_text(members, "software_id", MAX_SOFTWARE_ID_CHARACTERS),
        software_version=_text(members, "software_version", MAX_SOFTWARE_VERSION_CHARACTERS),
        software_statement=statement,
        localized=_localized(members),
    )


def render(metadata: ClientMetadata) -> dict[str, object]:
    """The metadata as RFC 7591 members with final values; `name#language` beside the others, unset ones absent."""
    members: dict[str, object] = {
        name: list(value) if isinstance(value, tuple) else value
        for name in _RENDERED
        if (value := getattr(metadata, name)) is not None and value != ()
    }
    return members | metadata.localized


_RENDERED: Final = tuple(name for name in ClientMetadata.__struct_fields__ if name != "localized")


def needs_secret(metadata: ClientMetadata) -> bool:
    """Whether the client authenticates with a secret, and so is given one (RFC 7591 section 3.2.1)."""
    return metadata.token_endpoint_auth_method in SECRET_METHODS


def _refused(description: str) -> MetadataRefused:
    return MetadataRefused("invalid_client_metadata", description)


def _given(members: Mapping[str, object], name: str) -> object | None:
    """The member's value. Null and the empty string are as if absent."""
    value = members.get(name)
    return None if value == "" else value


def _checked_text(name: str, value: object, limit: int) -> str:
    if not isinstance(value, str):
        raise _refused(f"{name}: a string was expected")
    if len(value) > limit:
        raise _refused(f"{name}: longer than {limit} characters")
    if _UNPRINTABLE.search(value):
        raise _refused(f"{name}: with a control or bidirectional-override character")
    if uris.runs_script(value):
        # Contacts and ids of software are often shown as links.
        raise _refused(f"{name}: with a scheme that a browser runs or reads")
    return value


def _name(members: Mapping[str, object]) -> str | None:
    value = _given(members, "client_name")
    return None if value is None else _checked_name("client_name", value)


def _checked_name(member: str, value: object) -> str:
    if not isinstance(value, str):
        raise _refused(f"{member}: a string was expected")
    try:
        name = names.check(value)
    except NameRefused as refusal:
        raise _refused(f"{member}: {refusal}") from None
    if uris.runs_script(name):
        raise _refused(f"{member}: with a scheme that a browser runs or reads")
    return name


def _text(members: Mapping[str, object], name: str, limit: int) -> str | None:
    value = _given(members, name)
    return None if value is None else _checked_text(name, value, limit)


def _one_of(members: Mapping[str, object], name: str, allowed: tuple[str, ...]) -> str | None:
    value = _given(members, name)
    if value is None:
        return None
    if not isinstance(value, str) or value not in allowed:
        raise _refused(f"{name}: one of {', '.join(allowed)} was expected")
    return value


def _some_of(members: Mapping[str, object], name: str, allowed: tuple[str, ...]) -> tuple[str, ...] | None:
    value = _given(members, name)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > MAX_LIST_ENTRIES or not all(each in allowed for each in value):
        raise _refused(f"{name}: a list of {' and '.join(allowed)} was expected")
    return tuple(dict.fromkeys(value))


def _grant_types(members: Mapping[str, object]) -> tuple[str, ...]:
    found = _some_of(members, "grant_types", GRANT_TYPES)
    if found is None:
        return ("authorization_code",)
    if "authorization_code" not in found:
        # Nothing else can start a grant here: a refresh token alone would have nothing to come from.
        raise _refused("grant_types: authorization_code is needed")
    return found


def _response_types(members: Mapping[str, object]) -> tuple[str, ...]:
    found = _some_of(members, "response_types", RESPONSE_TYPES)
    if found == ():
        raise _refused("response_types: authorization_code needs code (RFC 7591 section 2.1)")
    return RESPONSE_TYPES if found is None else found


def _redirect_uris(members: Mapping[str, object]) -> tuple[tuple[str, ...], bool]:
    """The redirect URIs, and whether one of them leads to an app on the user's machine rather than to a server."""
    value = _given(members, "redirect_uris")
    if not isinstance(value, list) or not 0 < len(value) <= MAX_REDIRECT_URIS:
        raise MetadataRefused("invalid_redirect_uri", f"redirect_uris: 1 to {MAX_REDIRECT_URIS} URIs were expected")
    any_native = False
    for each in value:
        try:
            any_native |= _is_native(each)
        except UriRefused as refusal:
            raise MetadataRefused("invalid_redirect_uri", f"redirect_uris: one is {refusal}") from None
    return tuple(value), any_native


def _is_native(value: object) -> bool:
    if not isinstance(value, str):
        raise UriRefused("no string")
    if "*" in value:
        raise UriRefused("with a wildcard")
    uri = uris.parse(value)
    if uri.has_fragment:
        raise UriRefused("with a fragment")
    if uri.scheme == "https":
        return False
    if uri.scheme == "http":
        if not uris.is_loopback(uri.host):
            raise UriRefused("http, which only loopback hosts may use")
        return True
    return True


def _uri(members: Mapping[str, object], name: str) -> str | None:
    value = _given(members, name)
    return None if value is None else _checked_uri(name, value)


def _checked_uri(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _refused(f"{name}: a string was expected")
    try:
        uri = uris.parse(value)
    except UriRefused as refusal:
        raise _refused(f"{name}: it is {refusal}") from None
    return _web(name, value, uri)


def _web(name: str, value: str, uri: Uri) -> str:
    if name == "jwks_uri":
        if uri.scheme != "https" or uri.has_fragment:
            raise _refused("jwks_uri: https without a fragment was expected")
    elif uri.scheme not in {"http", "https"}:
        raise _refused(f"{name}: http or https was expected")
    return value


def _scope(members: Mapping[str, object]) -> str | None:
    scope = _text(members, "scope", MAX_SCOPE_CHARACTERS)
    if scope is not None and not _SCOPE.match(scope):
        raise _refused("scope: tokens of RFC 6749 section 3.3 with one space between were expected")
    return scope


def _contacts(members: Mapping[str, object]) -> tuple[str, ...]:
    value = _given(members, "contacts")
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_CONTACTS:
        raise _refused(f"contacts: a list of at most {MAX_CONTACTS} strings was expected")
    return tuple(_checked_text("contacts", each, MAX_CONTACT_CHARACTERS) for each in value if each != "")


def _statement(members: Mapping[str, object]) -> str | None:
    value = _given(members, "software_statement")
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_STATEMENT_CHARACTERS:
        raise MetadataRefused("invalid_software_statement", "software_statement: a signed JWT was expected")
    return value


def _localized(members: Mapping[str, object]) -> dict[str, str]:
    """The `name#language` members (RFC 7591 section 2.2), each checked like the member that it translates."""
    found: dict[str, str] = {}
    for tagged, value in members.items():
        if "#" not in tagged or value is None or value == "":
            continue
        name, _, language = tagged.partition("#")
        if name not in _LOCALIZED:
            continue
        if len(language) > MAX_LANGUAGE_TAG_CHARACTERS or not _LANGUAGE_TAG.match(language):
            raise _refused(f"{name}: a language tag of RFC 5646 was expected after the #")
        if name == "client_name":
            found[tagged] = _checked_name(name, value)
        else:
            found[tagged] = _checked_uri(name, value)
    if len(found) > MAX_LOCALIZED:
        raise _refused(f"more than {MAX_LOCALIZED} members with a language tag")
    return found


def _jwks(members: Mapping[str, object]) -> dict[str, Any] | None:
    """The client's public keys (RFC 7517 section 5), with the members that verifying a signature needs."""
    value = _given(members, "jwks")
    if value is None:
        return None
    keys = value.get("keys") if isinstance(value, dict) else None
    if not isinstance(keys, list) or not 0 < len(keys) <= MAX_JWKS_KEYS:
        raise _refused(f"jwks: an object whose keys are 1 to {MAX_JWKS_KEYS} keys was expected")
    return {"keys": [_public_key(each) for each in keys]}


def _public_key(key: object) -> dict[str, Any]:
    if not isinstance(key, dict):
        raise _refused("jwks: each key is an object")
    if key.get("kty") == "oct" or not _PRIVATE_KEY_MEMBERS.isdisjoint(key):
        raise _refused("jwks: public keys were expected; treat one that was sent with private members as leaked")
    given = {name: value for name, value in key.items() if name in _OF_KEY and value is not None and value != ""}
    kty = given.get("kty")
    if not isinstance(kty, str) or kty not in _REQUIRED_OF_KEY:
        raise _refused(f"jwks: kty is one of {', '.join(_REQUIRED_OF_KEY)}")
    if any(name not in given for name in _REQUIRED_OF_KEY[kty]):
        raise _refused(f"jwks: a key of kty {kty} needs {' and '.join(_REQUIRED_OF_KEY[kty])}")
    checked = {name: _checked_key_member(name, value) for name, value in given.items()}
    if kty in _CURVES and checked["crv"] not in _CURVES[kty]:
        raise _refused(f"jwks: crv of a key of kty {kty} is one of {', '.join(sorted(_CURVES[kty]))}")
    if _NOT_OF_PUBLIC_KEYS.match(str(checked.get("alg", ""))):
        raise _refused("jwks: alg is one that a public key is for")
    return checked


_OF_KEY: Final = _BASE64URL_OF_KEY | _TEXT_OF_KEY | _LISTS_OF_KEY


def _checked_key_member(name: str, value: object) -> str | list[str]:
    if name in _LISTS_OF_KEY:
        if not isinstance(value, list) or len(value) > MAX_JWK_LIST_ENTRIES:
            raise _refused(f"jwks: {name} is a list of at most {MAX_JWK_LIST_ENTRIES} strings")
        return [_checked_text(f"jwks: {name}", each, MAX_JWK_MEMBER_CHARACTERS) for each in value]
    text = _checked_text(f"jwks: {name}", value, MAX_JWK_MEMBER_CHARACTERS)
    if name in _BASE64URL_OF_KEY and not _BASE64URL.match(text):
        raise _refused(f"jwks: {name} is base64url")
    return text
