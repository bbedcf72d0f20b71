"""Personal data sealed with a key of its person, so that a person can be erased from a log that cannot change.

AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce. The id of the key is bound as associated data: a value sealed
for one person opens with no other's key. Purging the key from the bucket `grantbook_user_keys` erases the person.
"""

from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Struct

from grantbook import subjects

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12


class Sealed(Struct, frozen=True):
    """A sealed value: the id of its key, the nonce, and the ciphertext with its tag. Bytes are base64 in JSON."""

    key: str
    nonce: bytes
    ciphertext: bytes


class Note(Struct, frozen=True, omit_defaults=True):
    """What a gate keeps sealed: the acting account's id, and the free text that it gave."""

    by_id: str | None = None
    detail: str | None = None


class CannotUnseal(Exception):
    """The key is not the one that sealed the value, or the value was altered."""


def user_key_id(user_id: str) -> str:
    """Id of the data key of a user: of a person that grants were issued by."""
    return f"user.{subjects.token(user_id)}"


def actor_key_id(kind: str, actor_id: str) -> str:
    """Id of the data key of one who acts on the register: an admin, the identity provider."""
    return f"actor.{subjects.token(f'{kind}:{actor_id}')}"


def seal(plaintext: bytes, *, key_id: str, key: bytes, nonce: bytes) -> Sealed:
    """Seal `plaintext` with the 32-byte `key` named `key_id`. `nonce` is 12 random bytes, never used twice."""
    return Sealed(key=key_id, nonce=nonce, ciphertext=AESGCM(key).encrypt(nonce, plaintext, key_id.encode()))


def unseal(sealed: Sealed, key: bytes) -> bytes:
    """The plaintext. Raises `CannotUnseal` when `key` did not seal it."""
    try:
        return AESGCM(key).decrypt(sealed.nonce, sealed.ciphertext, sealed.key.encode())
    except (InvalidTag, ValueError) as error:
        raise CannotUnseal(sealed.key) from error


def seal_note(note: Note, *, key_id: str, key: bytes, nonce: bytes) -> Sealed:
    """Seal a gate's note."""
    return seal(msgspec.json.encode(note), key_id=key_id, key=key, nonce=nonce)


def unseal_note(sealed: Sealed, key: bytes) -> Note:
    """The note of a gate. Raises `CannotUnseal`."""
    try:
        return msgspec.json.decode(unseal(sealed, key), type=Note)
    except msgspec.MsgspecError as error:
        raise CannotUnseal(sealed.key) from error
