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
"""Length as a reader counts it: in grapheme clusters (UAX 29)."""
MAX_NAME_CHARACTERS: Final = 2_400
"""Length in code points. One grapheme may be of many: a family of four is seven, and marks stack without end."""
MAX_MARKS_IN_A_ROW: Final = 8
"""More marks on one letter than any language needs cover the lines around it."""

_NEVER_SHOWN: Final = regex.compile(
    r"[\p{Cc}\p{Cf}\p{Cn}\p{Co}\p{Cs}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}"
    r"\u2800\ufffc\U00016fe4\U0001d159]"
)
"""Controls, formats (bidirectional ones among them), unassigned, private, halves of pairs, separators of lines, what is
ignored when shown (fillers, tags, selectors), and four that are blank though no property says so: the braille blank,
the object replacement, the Khitan filler, the null notehead."""
_PICTURE: Final = r"(?!\p{Cn})\p{Extended_Pictographic}(?:[\ufe0e\ufe0f]|\p{Emoji_Modifier})?"
_SEEN: Final = regex.compile(
    # Between pictures a joiner makes one picture of them; a selector chooses how a picture is drawn (UTS 51).
    rf"{_PICTURE}(?:\u200d{_PICTURE})*|[0-9#*]\ufe0f\u20e3"
    # RFC 5892 appendix A.1 and A.2: after a virama both joiners choose its form.
    r"|(?<=\p{ccc=9})[\u200c\u200d]"
    # Appendix A.1: between letters that join, the non-joiner keeps them apart, as Persian needs it.
    r"|(?<=[\p{jt=L}\p{jt=D}]\p{jt=T}*)\u200c(?=\p{jt=T}*[\p{jt=R}\p{jt=D}])"
)
"""Where characters that show nothing themselves change what is seen, as languages and pictures need it."""
_STACKED: Final = regex.compile(rf"\p{{M}}{{{MAX_MARKS_IN_A_ROW + 1}}}")
_SPACES: Final = regex.compile(r"\p{Zs}*\Z")
_GRAPHEME: Final = regex.compile(r"\X")

_SCRIPTS: Final = tuple(
    """
    Arabic Armenian Bengali Bopomofo Canadian_Aboriginal Cherokee Coptic Cyrillic Deseret Devanagari Ethiopic Georgian
    Glagolitic Gothic Greek Gujarati Gurmukhi Han Hangul Hebrew Hiragana Kannada Katakana Khmer Lao Latin Lisu Malayalam
    Mongolian Myanmar Nko Ogham Oriya Runic Sinhala Syriac Tamil Telugu Thaana Thai Tibetan Tifinagh Vai Yi
    """.split()  # noqa: SIM905  as a list it would fill a page
)
_ANOTHER_SCRIPT: Final = frozenset({"another"})
"""All scripts that are not listed count as one: hardly a font has two of them."""
_OF_SCRIPT: Final = {name: regex.compile(rf"\p{{Script_Extensions={name}}}") for name in _SCRIPTS}
_OF_NO_SCRIPT: Final = regex.compile(r"[\p{Script=Common}\p{Script=Inherited}\p{Script=Unknown}]")
_WRITTEN_TOGETHER: Final = (
    frozenset({"Latin", "Han", "Hiragana", "Katakana"}),
    frozenset({"Latin", "Han", "Bopomofo"}),
    frozenset({"Latin", "Han", "Hangul"}),
    *(frozenset({name}) for name in (*_SCRIPTS, *_ANOTHER_SCRIPT)),
)
"""UTS 39 section 5.2, Highly Restrictive: one script, or what people who mean no harm write together."""

_NOT_SPELLED: Final = regex.compile(r"[^\p{L}\p{M}\p{N}]|\p{Default_Ignorable_Code_Point}")
_NOT_LOOKED_AT: Final = regex.compile(r"[^\p{L}\p{N}|!$@]|\p{Default_Ignorable_Code_Point}")
_NO_LETTER: Final = regex.compile(r"[^\p{L}\p{N}]")
MAX_REMEMBERED_CHARACTERS: Final = 8_192


class NameRefused(ValueError):
    """The name is not taken. The message is ASCII, says why, and repeats nothing of the name."""


def check(name: str) -> str:
    """The name in Unicode's NFC. Raises `NameRefused`."""
    if name.isascii() and name.isprintable() and name.strip() and len(name) <= MAX_NAME_GRAPHEMES:
        return name  # as most are: nothing of what follows could be in it
    if len(name) > MAX_NAME_CHARACTERS:
        raise NameRefused(f"longer than {MAX_NAME_CHARACTERS} code points")
    # Judged is what is kept: the normal form orders marks anew. It hides nothing, what is never shown has no other.
    name = unicodedata.normalize("NFC", name)
    if len(name) > MAX_NAME_CHARACTERS:
        raise NameRefused(f"longer than {MAX_NAME_CHARACTERS} code points")
    if _NEVER_SHOWN.search(_SEEN.sub("", name)):
        raise NameRefused("with a control, bidirectional, invisible or unassigned character")
    if len(_GRAPHEME.findall(name)) > MAX_NAME_GRAPHEMES:
        raise NameRefused(f"longer than {MAX_NAME_GRAPHEMES} characters")
    if _STACKED.search(name):
        raise NameRefused(f"with more than {MAX_MARKS_IN_A_ROW} marks on one letter")
    if _SPACES.match(name):
        raise NameRefused("of nothing but spaces")
    return name


def is_mixed_script(text: str) -> bool:
    """Whether letters of scripts stand in it that are not written together (UTS 39 section 5.2)."""
    if text.isascii():
        return False
    found = {scripts for scripts in map(scripts_of, set(text)) if scripts}
    return not any(all(scripts & together for scripts in found) for together in _WRITTEN_TOGETHER)


@lru_cache(maxsize=MAX_REMEMBERED_CHARACTERS)
def scripts_of(character: str) -> frozenset[str]:
    """The scripts that a character is used in (UAX 24); none for what all scripts use."""
    if character.isascii():
        return frozenset({"Latin"}) if character.isalpha() else frozenset()
    if _OF_NO_SCRIPT.match(character):
        return frozenset()
    return frozenset(name for name, of in _OF_SCRIPT.items() if of.match(character)) or _ANOTHER_SCRIPT


def spelling(text: str) -> str:
    """The text as it is spelled, for comparing: letters, marks and digits alone, without case or compatible forms."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _NOT_SPELLED.sub("", folded)


def skeleton(text: str) -> str:
    """The text as it looks to a reader in a hurry, for comparing (as UTS 39 section 4, and bolder).

    Every letter is the Latin one that it is taken for; marks, spaces and punctuation are dropped. Two texts that look
    alike have one skeleton, which is no text to show.
    """
    # Looked at before it is folded: a capital may look like a Latin one whose small letter does not.
    looked = unicodedata.normalize("NFD", text).translate(_LOOKS)
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", looked).casefold())
    return _NOT_LOOKED_AT.sub("", folded).translate(_LOOKS).translate(_TAKEN_FOR)


def _looks() -> dict[int, str]:
    """What characters beyond ASCII look like, of Latin letters and digits in lower case."""
    looks: dict[int, str] = {}
    for marked, alike in confusables_data.items():
        character = marked.replace("\u200e", "")  # which the list puts around what is written from right to left
        if len(character) > 1 or character.isascii():
            continue
        # A bar through a letter, or a hook beside it, is a mark to a reader.
        seen = (_NO_LETTER.sub("", unicodedata.normalize("NFKD", each["c"])).casefold() for each in alike)
        latin = sorted((each for each in seen if each and each.isascii()), key=lambda each: (len(each), each.isdigit()))
        if latin:
            looks[ord(character)] = latin[0]
    # Small capitals and letters on dark ground are letters to everyone but to the list.
    small = dict(zip("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnoprstuvwyz", strict=True))
    looks |= {ord(capital): letter for capital, letter in small.items()}
    for first in (0x1F150, 0x1F170, 0x1F1E6):  # negative circled, negative squared, regional indicators
        looks |= {first + offset: chr(ord("a") + offset) for offset in range(26)}
    for marked, alike in confusables_data.items():
        character = marked.replace("\u200e", "")
        capitals = [small[each["c"]] for each in alike if each["c"] in small]
        if len(character) == 1 and capitals:
            looks.setdefault(ord(character), capitals[0])
    return looks


_LOOKS: Final = _looks()
_TAKEN_FOR: Final = str.maketrans(
    # `I` and `l` are one in many fonts, so `i` is too.
    {"0": "o", "1": "l", "3": "e", "4": "a", "5": "s", "7": "t", "8": "b", "i": "l"}
    | {"|": "l", "!": "l", "$": "s", "@": "a"}
)
"""What ASCII is taken for. Nothing on the right stands on the left: looking twice is looking once."""
