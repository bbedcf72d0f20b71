"""Products that people know by name, and where their agents are known to be redirected to.

The list is `known_products.json` beside this module. It says what the products' own documentation, their open source,
and registrations seen in the wild show; it is to be extended. A product that is missing is merely not looked after; a
host that is missing costs honest clients a flag, never more.
"""

from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec
import regex
from msgspec import Struct

from appraisal import names
from appraisal.uris import Uri, is_loopback

MAX_REMEMBERED_NAMES: Final = 8_192
MAX_REMEMBERED_WORDS: Final = 4_096
"""Names that differ have words in common: a product, a version, a number."""
MAX_REMEMBERED_LETTERS: Final = 64
"""A longer name or word is none that many have, and one of marks alone would be kept for ever."""
_WEB: Final = frozenset({"http", "https"})

_LETTER: Final = (
    r"[\p{L}\p{M}\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189\U0001f1e6-\U0001f1ff]"
)
_WORDS: Final = regex.compile(rf"\p{{N}}+|[|!$@]|{_LETTER}(?:(?!\p{{Lu}}\p{{Ll}}){_LETTER}(?<!\p{{Ll}}\p{{Lu}}))*")
"""Words end where capitals begin: `MyMCPClaude` has three. Digits, and signs that are taken for letters, are words of
their own, since they may belong to a name (`C1aude`) or come after it (`Claude2`). Letters in circles and squares are
letters."""


class Product(Struct, frozen=True, forbid_unknown_fields=True):
    """One product, as the list has it."""

    name: str
    spellings: tuple[str, ...] = ()
    """Words that claim it wherever they stand in a client's name."""
    alone: tuple[str, ...] = ()
    """Words of everyday language, which claim it only if the client's name has no others."""
    hosts: tuple[str, ...] = ()
    """Each with its subdomains: so none on which strangers have pages."""
    schemes: tuple[str, ...] = ()
    loopback: bool = False
    """Whether it also runs on the user's own machine, and takes redirects there."""

    def is_known_at(self, uri: Uri) -> bool:
        """Whether the product's agents are known to be redirected there."""
        if uri.scheme not in _WEB:
            return uri.scheme in self.schemes
        if is_loopback(uri.host):
            return self.loopback
        return any(uri.host == host or (uri.host or "").endswith(f".{host}") for host in self.hosts)


class Claim(Struct, frozen=True):
    """A product whose name a client's name has in it. `spelled` is false where it only looks so."""

    product: Product
    spelled: bool


KNOWN: Final = msgspec.json.decode(
    (Path(__file__).parent / "known_products.json").read_bytes(), type=tuple[Product, ...]
)


class _Index(Struct, frozen=True):
    anywhere: dict[str, list[Product]]
    alone: dict[str, list[Product]]
    beginnings: frozenset[str]


def claimed(name: str) -> tuple[Claim, ...]:
    """The products whose names stand in a client's name as words of their own: in `Claude (work)`, not in `Claudette`.

    Words may be written apart or together, in any case and in letters that look alike. In the order of the list.
    """
    return (_remembered_claims if len(name) <= MAX_REMEMBERED_LETTERS else _claims)(name)


def _claims(name: str) -> tuple[Claim, ...]:
    words = _WORDS.findall(name)
    judged = [(_judged if len(each) <= MAX_REMEMBERED_LETTERS else _judgement)(each) for each in words]
    spelled = _found([spelling for spelling, _ in judged], _SPELLED)
    looking = _found([look for _, look in judged], _LOOKING)
    found = spelled | looking
    return tuple(Claim(each, each.name in spelled) for each in KNOWN if each.name in found) if found else ()


_remembered_claims: Final = lru_cache(maxsize=MAX_REMEMBERED_NAMES)(_claims)


def _found(words: list[str], index: _Index) -> set[str]:
    """Names of the products that some words in a row make."""
    words = [each for each in words if each]
    found = {each.name for each in index.alone.get("".join(words), ())}
    for start in range(len(words)):
        together = ""
        for word in words[start:]:
            together += word
            if together not in index.beginnings:
                break
            found |= {each.name for each in index.anywhere.get(together, ())}
    return found


def _judgement(word: str) -> tuple[str, str]:
    """How a word is spelled, and how it looks."""
    return names.spelling(word), _look(word)


_judged: Final = lru_cache(maxsize=MAX_REMEMBERED_WORDS)(_judgement)


def _look(text: str) -> str:
    """How it looks, where letters may also be two others side by side: `Gernini`, `VVindsurf`, `Claucle`."""
    return names.skeleton(text).replace("m", "rn").replace("w", "vv").replace("d", "cl")


def _index(spellings: dict[str, tuple[list[str], list[str]]]) -> _Index:
    """Looked up by words without the spaces between. By product: what claims it anywhere, and what alone."""
    anywhere: dict[str, list[Product]] = {}
    alone: dict[str, list[Product]] = {}
    for product in KNOWN:
        for index, texts in zip((anywhere, alone), spellings[product.name], strict=True):
            for each in texts:
                index.setdefault(each, []).append(product)
    beginnings = frozenset(each[:end] for each in anywhere for end in range(1, len(each) + 1))
    return _Index(anywhere, alone, beginnings)


_SPELLED: Final = _index(
    {each.name: ([*map(names.spelling, each.spellings)], [*map(names.spelling, each.alone)]) for each in KNOWN}
)
_LOOKING: Final = _index({each.name: ([*map(_look, each.spellings)], [*map(_look, each.alone)]) for each in KNOWN})
