import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grantbook import sealed
from grantbook.sealed import CannotUnseal, Note, Sealed

KEY = bytes(range(32))
NONCE = bytes(range(12))


def seal(plaintext: bytes = b"ann@example.com") -> Sealed:
    return sealed.seal(plaintext, key_id="user.ann", key=KEY, nonce=NONCE)


@given(st.binary(max_size=500), st.binary(min_size=32, max_size=32), st.binary(min_size=12, max_size=12))
def test_what_was_sealed_opens_with_its_key(plaintext: bytes, key: bytes, nonce: bytes) -> None:
    """Protects names from being lost, through JSON and back."""
    value = sealed.seal(plaintext, key_id="user.ann", key=key, nonce=nonce)
    assert plaintext == b"" or len(plaintext) < 4 or plaintext not in value.ciphertext
    read = msgspec.json.decode(msgspec.json.encode(value), type=Sealed)
    assert sealed.unseal(read, key) == plaintext


@given(st.integers(0, 31), st.integers(1, 255))
def test_another_key_opens_nothing(place: int, change: int) -> None:
    """Protects people from whoever holds somebody else's key."""
    other = bytearray(KEY)
    other[place] ^= change
    with pytest.raises(CannotUnseal):
        sealed.unseal(seal(), bytes(other))


@pytest.mark.parametrize("key", [b"", b"short", bytes(31), bytes(33)])
def test_what_is_no_key_opens_nothing(key: bytes) -> None:
    """Protects readers from a damaged bucket."""
    with pytest.raises(CannotUnseal):
        sealed.unseal(seal(), key)


@given(st.data())
def test_an_altered_value_does_not_open(data: st.DataObject) -> None:
    """Protects readers from names that somebody changed in the log."""
    value = seal()
    name = data.draw(st.sampled_from(["nonce", "ciphertext"]))
    content = bytearray(getattr(value, name))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CannotUnseal):
        sealed.unseal(msgspec.structs.replace(value, **{name: bytes(content)}), KEY)


@pytest.mark.parametrize("changed", [{"key": "user.eve"}, {"ciphertext": b""}, {"nonce": b""}, {"nonce": bytes(500)}])
def test_a_value_moved_to_another_person_does_not_open(changed: dict[str, object]) -> None:
    """Protects one person's name from being shown as another's, and readers from malformed values."""
    with pytest.raises(CannotUnseal):
        sealed.unseal(msgspec.structs.replace(seal(), **changed), KEY)


def test_the_bytes_are_those_of_aes_256_gcm() -> None:
    """Protects readers in other languages, and everything sealed so far."""
    assert seal().ciphertext.hex() == "266cb85ba09da376fd2df2a5d28615fb8d1e96e8c8bbab698790cc9c50c37a"


def test_notes_open_as_notes_and_nothing_else_does() -> None:
    """Protects readers of gates from a sealed value that is no note."""
    note = Note(by_id="kim", detail="left the company")
    value = sealed.seal_note(note, key_id="actor.x", key=KEY, nonce=NONCE)
    assert sealed.unseal_note(value, KEY) == note
    with pytest.raises(CannotUnseal):
        sealed.unseal_note(seal(b"[]"), KEY)


def test_keys_are_named_for_their_person_and_never_for_two() -> None:
    """Protects one kind of person from being erased with another of the same id."""
    assert sealed.user_key_id("ann") == "user.ann"
    names = {
        sealed.user_key_id("ann"),
        sealed.actor_key_id("admin", "ann"),
        sealed.actor_key_id("idp", "ann"),
        sealed.actor_key_id("admin:a", "nn"),
    }
    assert len(names) == 4
