"""Client names: chosen by strangers, read by people who decide by them.

Refused is what nobody can see, and what changes how the rest is shown. What can be seen but misleads, a mix of scripts
or letters that look like others, is kept, and flagged. Properties of characters are those of the `regex` package, so
that a name is judged alike whatever Unicode version this Python knows.
"""

import unicodedata
from functools import lru_cache
from typing import Final

import regex
from confusable_homoglyphs.confusables import confusables_data  # type: ignore[import-untyped]

MAX_NAME_GRAPHEMES: Final = 200
"""Length as a reader counts it (UAX 29)."""
MAX_NAME_CHARACTERS: Final = 1_000
"""Length in code points: a grapheme may be stacked as high as somebody likes."""
MAX_MARKS_IN_A_ROW: Final = 8
"""More marks on one letter than any language needs cover the lines around it."""


_NEVER_SHOWN: Final = regex.compile(
    r"[\p{Cc}\p{Cf}\p{Cn}\p{Co}\p{Cs}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\p{Noncharacter_Code_Point}\u2800]"
)
"""Controls, formats (bidirectional ones among them), unassigned, private, halves of pairs, separators of lines, what is
ignored when shown, and the braille blank."""
_PICTURE: Final = r"\p{Extended_Pictographic}(?:[\ufe0e\ufe0f]|\p{Emoji_Modifier})?"
_SEEN: Final = regex.compile(
    # Between pictures a joiner makes one picture of them; a selector chooses how a character is drawn.
    rf"{_PICTURE}(?:\u200d{_PICTURE})*|[\p{{Emoji}}][\ufe0e\ufe0f]\u20e3?"
    # RFC 5892 appendix A.2 and A.1: after a virama both joiners choose its form.
    r"|(?<=\p{ccc=9})[\u200c\u200d]"
    # Appendix A.1: between letters that join, the non-joiner keeps them apart.
    r"|(?<=[\p{jt=L}\p{jt=D}]\p{jt=T}*)\u200c(?=\p{jt=T}*[\p{jt=R}\p{jt=D}])"
)
_STACKED: Final = regex.compile(rf"\p{{M}}{{{MAX_MARKS_IN_A_ROW + 1}}}")
_SPACE: Final = regex.compile(r"[\p{Zs}]*\Z")
_GRAPHEME: Final = regex.compile(r"\X")

_SCRIPTS: Final = tuple(
    """
    Arabic Armenian Bengali Bopomofo Canadian_Aboriginal Cherokee Coptic Cyrillic Deseret Devanagari Ethiopic Georgian
    Glagolitic Gothic Greek Gujarati Gurmukhi Han Hangul Hebrew Hiragana Kannada Katakana Khmer Lao Latin Lisu Malayalam
    Mongolian Myanmar Nko Ogham Oriya Runic Sinhala Syriac Tamil Telugu Thaana Thai Tibetan Tifinagh Vai Yi
    """.split()  # noqa: SIM905  as a list it would fill a page
)
_OF_SCRIPT: Final = {name: regex.compile(rf"\p{{Script_Extensions={name}}}") for name in _SCRIPTS}
_OF_NO_SCRIPT: Final = regex.compile(r"[\p{Script=Common}\p{Script=Inherited}]")
_HIGHLY_RESTRICTIVE: Final = (
    frozenset({"Latin", "Han", "Hiragana", "Katakana"}),
    frozenset({"Latin", "Han", "Bopomofo"}),
    frozenset({"Latin", "Han", "Hangul"}),
)
"""UTS 39 section 5.2: what is written together by people who mean no harm."""

_NOT_READ: Final = regex.compile(r"[^\p{L}\p{N}|$@]")
_LIKE_LATIN: Final = {"0": "o", "1": "l", "|": "l", "3": "e", "5": "s", "$": "s", "@": "a", "i": "l", "\u0131": "l"}
"""What stands for a letter to a reader in a hurry. `i` and `l` are one, as `I` and `l` are in many fonts."""
MAX_REMEMBERED: Final = 8_192


class NameRefused(ValueError):
    """The name is not taken. The message says why, and repeats nothing of it."""


def check(name: str) -> str:
    """The name in Unicode's NFC. Raises `NameRefused`."""
    if len(name) > MAX_NAME_CHARACTERS:
        raise NameRefused(f"longer than {MAX_NAME_CHARACTERS} code points")
    # Before anything is normalised: halves of pairs and the unassigned have no normal form.
    if _NEVER_SHOWN.search(_SEEN.sub("", name)):
        raise NameRefused("with a control, bidirectional, invisible or unassigned character")
    name = unicodedata.normalize("NFC", name)
    if len(_GRAPHEME.findall(name)) > MAX_NAME_GRAPHEMES:
        raise NameRefused(f"longer than {MAX_NAME_GRAPHEMES} characters")
    if _STACKED.search(name):
        raise NameRefused(f"with more than {MAX_MARKS_IN_A_ROW} marks on one letter")
    if _SPACE.match(name):
        raise NameRefused("of nothing but spaces")
    return name


def is_mixed_script(text: str) -> bool:
    """Whether letters of several scripts stand in it that are not written together (UTS 39, Highly Restrictive)."""
    possible: set[str] | None = None
    found: set[str] = set()
    for character in text:
        scripts = _scripts(character)
        if not scripts:
            continue
        found |= scripts if len(scripts) == 1 else set()
        possible = set(scripts) if possible is None else possible & scripts
    if not possible and possible is not None:
        return not any(found <= together for together in _HIGHLY_RESTRICTIVE)
    return False


@lru_cache(maxsize=MAX_REMEMBERED)
def _scripts(character: str) -> frozenset[str]:
    """The scripts that a character is used in; none for those of all scripts."""
    if character.isascii():
        return frozenset({"Latin"}) if character.isalpha() else frozenset()
    if _OF_NO_SCRIPT.match(character):
        return frozenset()
    # One of a script that is not listed is its own: mixed with any other.
    return frozenset(name for name, of in _OF_SCRIPT.items() if of.match(character)) or frozenset({character})


def plain(text: str) -> str:
    """The text as it is spelled, for comparing: letters and digits alone, without case, marks or compatible forms."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return _NOT_READ.sub("", folded)


def skeleton(text: str) -> str:
    """The text as it looks, for comparing (as UTS 39 section 4): each letter is the Latin one that it is taken for."""
    # Looked at before it is folded: a capital may look like a Latin one whose small letter does not.
    looked = "".join(map(_look, unicodedata.normalize("NFD", text)))
    return _NOT_READ.sub("", "".join(map(_look, plain(looked))))


@lru_cache(maxsize=MAX_REMEMBERED)
def _look(character: str) -> str:
    if character in _LIKE_LATIN:
        return _LIKE_LATIN[character]
    if character.isascii():
        return character
    for alike in confusables_data.get(character, ()):
        text = str(alike["c"]).casefold()
        if text.isascii() and text.isalnum() and len(text) == 1:
            return _LIKE_LATIN.get(text, text)
    return character
