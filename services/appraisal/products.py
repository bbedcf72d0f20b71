"""Products that people know by name, and where their agents are known to be redirected to.

The list beside this module, `known_products.json`, has what the products' own documentation and public registrations
show. It is to be extended: a product that is missing is merely not looked after, and a host that is missing costs its
clients a flag. `spellings` are what a name may say, `hosts` count with their subdomains, and `loopback` says whether
the product also runs on the user's own machine.
"""

from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec
import regex
from msgspec import Struct

from appraisal import names
from appraisal.uris import Uri, is_loopback

MAX_WORDS: Final = 64
"""Of a name, so many words are looked at."""
MAX_REMEMBERED_NAMES: Final = 4_096

_BETWEEN_WORDS: Final = regex.compile(r"[\s\-_./\\()\[\]{}:;,+#&*'\"]+|(?<=\p{Ll})(?=\p{Lu})")
_NUMBERED: Final = regex.compile(r"(?<=\p{L}{3})[0-9]+$")


class Product(Struct, frozen=True):
    """One product, as the list has it."""

    name: str
    spellings: tuple[str, ...]
    hosts: tuple[str, ...]
    schemes: tuple[str, ...]
    loopback: bool

    def is_known_at(self, uri: Uri) -> bool:
        """Whether the product's agents are known to be redirected there."""
        if uri.scheme not in {"http", "https"}:
            return uri.scheme in self.schemes
        if is_loopback(uri.host):
            return self.loopback
        return any(uri.host == host or (uri.host or "").endswith(f".{host}") for host in self.hosts)


class Claim(Struct, frozen=True):
    """A product whose name a client's name has in it; `spelled` is false where it only looks so."""

    product: Product
    spelled: bool


KNOWN: Final = msgspec.json.decode(
    (Path(__file__).parent / "known_products.json").read_bytes(), type=tuple[Product, ...]
)
_SPELLED: Final = {names.plain(each): product for product in KNOWN for each in product.spellings}
_LOOKING: Final = {names.skeleton(each): product for product in KNOWN for each in product.spellings}
_LONGEST: Final = max(map(len, _LOOKING))


@lru_cache(maxsize=MAX_REMEMBERED_NAMES)
def claimed(name: str) -> tuple[Claim, ...]:
    """The products whose names stand in a client's name as words of their own: `Claude (work)`, and not `Claudette`.

    Words may be written apart or together, in any case and in letters that look alike.
    """
    words = [_NUMBERED.sub("", each) for each in _BETWEEN_WORDS.split(name)[:MAX_WORDS] if each]
    spelled = {each.name for each in _found([names.plain(each) for each in words], _SPELLED)}
    looking = _found([names.skeleton(each) for each in words], _LOOKING)
    return tuple(Claim(each, each.name in spelled) for each in dict.fromkeys(looking))


def _found(words: list[str], known: dict[str, Product]) -> list[Product]:
    """Products that some words in a row make."""
    found: list[Product] = []
    for start in range(len(words)):
        together = ""
        for word in words[start:]:
            together += word
            if len(together) > _LONGEST:
                break
            if together in known:
                found.append(known[together])
    return found
