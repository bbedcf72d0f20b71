"""Which names get in, what is mixed, and what looks alike."""

import unicodedata
from contextlib import suppress

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from appraisal import names
from appraisal.names import NameRefused

TAKEN = [
    *["Claude Code (octoperf)", "LM Studio", "a", "!", "1", " a ", "C:\\ <b>&amp;", "Agent \U0001f916", "\u3000a"],
    *["Caf\u00e9", "\u05d0\u05d9\u05e9", "\u0633\u0644\u0627\u0645", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35"],
    *["\u4eba\u5de5\u667a\u80fd", "\u30af\u30ed\u30fc\u30c9", "\ud074\ub85c\ub4dc"],
    *["\u0928\u092e\u0938\u094d\u0924\u0947"],
    # pictures: with a skin, in text style, of several people, a flag, a keycap
    *["\U0001f44d\U0001f3fd", "\u2764\ufe0f", "\u2122\ufe0e", "\U0001f1e9\U0001f1ea", "1\ufe0f\u20e3"],
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    *["\U0001f575\U0001f3fb\u200d\u2642\ufe0f", "\U0001f3f3\ufe0f\u200d\U0001f308", "\u2764\ufe0f\u200d\U0001f525"],
    # RFC 5892 appendix A: Sinhala and Devanagari after a virama, Persian between letters that join
    *["\u0dc1\u0dca\u200d\u0dbb\u0dd3", "\u0915\u094d\u200c\u0937", "\u0646\u0627\u0645\u0647\u200c\u0627\u06cc"],
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
]  # fmt: skip

REFUSED = {
    "nothing but spaces": ["", " ", "   ", "\u00a0", "\u3000", "\u2003 \u202f"],
    "control": ["a\x00", "a\n", "\ta", "\x1b[2J", "a\x7f", "a\x85", "a\x9b"],
    "bidirectional": [
        f"a{each}b"
        for each in "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    ],
    "lines": ["a\u2028b", "a\u2029b"],
    "invisible": [
        f"Clau{each}de"
        for each in "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b\u180e\u200b\u200c\u200d\u2060\u2061\u2064\u206a"
        "\u2800\u3164\ufe00\ufe0e\ufe0f\ufeff\uffa0\ufff9\ufffc\U00016fe4\U0001d159\U0001d173"
        "\U000e0001\U000e0041\U000e007f\U000e0100"
    ],
    "alone": ["\u2800", "\u3164", "\u200b", "\ufeff", "\u200d", "\ufe0f", "\u115f"],
    "pictures that hide something": [
        *["\U0001f916\u200d", "\u200d\U0001f916", "\U0001f916\u200d\u200d\U0001f916", "\U0001f916\ufe0f\ufe0f"],
        *["\U0001f916\u200da", "a\ufe0f\u20e3", "1\ufe0f", "1\ufe0e", "\U0001f3f4\U000e0067\U000e007f"],
    ],
    "joiners": ["\u0dc1\u200d\u0dbb", "\u094d\u200d\u200d", "\u0627\u200c\u0627", "a\u200c\u06cc", "\u06cc\u200ca"],
    "unassigned": ["a\u0378", "a\uffff", "a\ufdd0", "a\U0001faff", "a\U0001f8ff", "a\U0010ffff", "a\U000fffff"],
    "private": ["a\ue000", "a\U000f0000", "\uf8ff"],
    "surrogates": ["\ud800", "a\udc00", "\ud83d\ude00"],
    "length": ["a" * 201, "\U0001f468\u200d" * 400, "a\u0301" * 501, "\U0001f916" * 201, "e" + "\u0301" * 1_000],
    "stacked": ["z" + "\u0335" * 9, "a" + "\u0302\u0323" * 6],
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN, ids=ascii)
def test_names_of_all_languages_and_pictures_are_taken(name: str) -> None:
    """Users who read no English: what their language needs is no attack."""
    assert names.check(name) == name


@pytest.mark.parametrize(("why", "name"), [(why, name) for why, each in REFUSED.items() for name in each], ids=ascii)
def test_names_that_hide_something_are_refused(why: str, name: str) -> None:
    """Users on a consent page: they see all that is there, and in its order. Logs: the message is plain ASCII."""
    with pytest.raises(NameRefused) as refused:
        names.check(name)
    message = str(refused.value)
    assert message.isascii()
    assert message.isprintable()
    assert why not in {"private", "unassigned", "surrogates"} or name not in message


def test_a_name_is_kept_in_its_composed_form() -> None:
    """Admins who search: one spelling of what looks the same."""
    assert names.check("Cafe\u0301") == "Caf\u00e9"


def test_a_mark_that_moves_when_composed_hides_no_joiner() -> None:
    """Whoever reads a log anew: what was taken once is taken again."""
    moves = "\u0915\u0951\u094d\u200d\u0937"
    with pytest.raises(NameRefused):
        names.check(names.check(moves.replace("\u200d", ""))[:3] + "\u200d\u0937")
    with pytest.raises(NameRefused):
        names.check(moves)


@pytest.mark.parametrize(
    ("length", "one"),
    [(200, "a"), (200, "\U0001f916"), (200, "\U0001f44d\U0001f3fd"),
     (200, "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466")]
)  # fmt: skip
def test_length_is_counted_as_readers_count(length: int, one: str) -> None:
    """Agents with a picture in their name: it is one character, whatever it is made of."""
    assert names.check(one * length) == one * length
    with pytest.raises(NameRefused):
        names.check(one * (length + 1))


@pytest.mark.parametrize(
    ("text", "mixed"),
    [
        *[("", False), ("Claude", False), ("1 - !", False), ("Caf\u00e9 \U0001f916", False), ("\u00b5 \u2122", False)],
        *[("\u041a\u043b\u043e\u0434", False), ("\u03b1\u03b2\u03b3", False), ("\u05d0\u05d1 \u05d2", False)],
        # written together
        *[("Claude \u30af\u30ed\u30fc\u30c9 \u4eba\u5de5 \u3042", False), ("Claude \ud074\ub85c\ub4dc \u4eba", False)],
        *[("AI \u3105\u3106 \u4eba", False), ("\U0001e900\U0001e901", False)],
        *[("\u0928\u092e\u0938\u094d\u0924\u0947", False)],
        # not so
        *[("\u0421laude", True), ("Cl\u0430ude", True), ("Claud\u0435 Code", True), ("\u03b1gent", True)],
        *[("Claude \u041a\u043b\u043e\u0434", True), ("\u13dflaude", True), ("\u03f9laude", True)],
        *[("\u3042 \u3105", True), ("\ud074 \u30af", True)],
        *[("\u05d0\u0628", True), ("a\U0001e900", True), ("a\u0915\u094d", True), ("\u4eba \u0410", True)],
        # of several scripts, but not of this one
        ("\u0964 a", False),
        ("\u0964\u0915\u0995", True),
    ],
    ids=ascii,
)  # fmt: skip
def test_scripts_are_mixed_where_nobody_mixes_them(text: str, mixed: bool) -> None:
    """Users of two alphabets: neither flagged without need, nor fooled by a letter of the other one."""
    assert names.is_mixed_script(text) is mixed


@pytest.mark.parametrize(
    ("alike", "other"),
    [
        *[("\u0421laude", "Claude"), ("C1aude", "claude"), ("CIaude", "Claude")],
        *[("C|aude", "Claude"), ("C!aude", "Claude")],
        *[("cl\u0430ud\u0435", "Claude"), ("\u1d04\u029f\u1d00\u1d1c\u1d05\u1d07", "Claude")],
        *[("C-l_a.u d\u00b7e", "Claude")],
        *[("\uff23\uff4c\uff41\uff55\uff44\uff45", "Claude"), ("\U0001d402laude", "Claude"), ("\u24b8laude", "Claude")],
        *[("\U0001f152\U0001f15b\U0001f150\U0001f164\U0001f153\U0001f154", "Claude"), ("Cl\u00e1\u1ee5de", "Claude")],
        *[("C\u0142au\u0111e", "Claude"), ("\u13df\u216caude", "Claude")],
        *[("Clau\u200bde", "Claude")],
        *[("0penAI", "OpenAI"), ("\u05e1penAI", "OpenAI"), ("\u039f\u03c1enAI", "OpenAI")],
        *[("Ch@tGPT", "ChatGPT"), ("\u0405l\u0430ck", "Slack"), ("Curs0r", "Cursor")],
        *[("N\u043et\u0456\u043en", "Notion")],
    ],
    ids=ascii,
)  # fmt: skip
def test_what_looks_alike_has_one_skeleton(alike: str, other: str) -> None:
    """Users who see a name for a second."""
    assert names.skeleton(alike) == names.skeleton(other)
    assert names.skeleton("C-l_a.u d\u0435") == "claude"


@pytest.mark.parametrize(
    ("one", "other"), [("Claude", "Claudia"), ("Cursor", "Curator"), ("Zed", "Zen"), ("a", "\u30af")]
)
def test_what_does_not_look_alike_has_two_skeletons(one: str, other: str) -> None:
    """Honest agents: a name of their own stays their own."""
    assert names.skeleton(one) != names.skeleton(other)


def test_what_is_spelled_alike_keeps_its_marks() -> None:
    """Admins: an accent that somebody added is another spelling; another width of letters is none."""
    assert names.spelling("Cl\u00e1ude") != names.spelling("Claude")
    assert names.spelling("\uff23laude \u2764\ufe0f") == names.spelling("CLAUDE") == "claude"


# Letters, marks, joiners, selectors, pictures, blanks: what the rules are about, in any order.
TROUBLE = st.text(
    alphabet=st.one_of(
        st.characters(),
        st.sampled_from("aI1|m \u0301\u0323\u0335\u094d\u0915\u0dca\u0645\u0627\u06cc\u200c\u200d\ufe0e\ufe0f\u20e3"),
        st.sampled_from("\ufb2c\U0001f916\U0001f44d\U0001f3fd\U0001d160\u212b\u1e9b\u0344\u0345\u1fd3\u0421\u03b1"),
    ),
    max_size=40,
)  # fmt: skip


@given(TROUBLE)
def test_any_text_is_a_name_or_refused_and_checking_twice_is_checking_once(text: str) -> None:
    """Registrations: nothing but the refusal is ever raised, and a name that is sent back unchanged stays so."""
    with suppress(NameRefused):
        once = names.check(text)
        assert names.check(once) == once
        assert unicodedata.is_normalized("NFC", once)
        assert not regex.search(r"[\p{Cc}\p{Cs}\p{Co}\p{Cn}\u202a-\u202e\u2066-\u2069\u200e\u200f\u200b]", once)


@given(st.text(alphabet=st.characters(max_codepoint=0x7F), max_size=names.MAX_NAME_GRAPHEMES - 1))
def test_plain_names_are_judged_as_all_others_are(text: str) -> None:
    """Everyone: what is decided at a glance is what the rules would say. Beside a letter of another kind they do."""

    def taken(name: str) -> bool:
        with suppress(NameRefused):
            return names.check(name) == name
        return False

    assert taken(text) == (taken(text + "\u00e9") and text.strip(" ") != "")


@given(TROUBLE)
def test_a_skeleton_has_itself_for_skeleton(text: str) -> None:
    """Whoever compares two names: it does not matter how often one was looked at."""
    once = names.skeleton(text)
    assert names.skeleton(once) == once
    assert names.skeleton(text.upper() if text.isascii() else text) == once
    assert isinstance(names.is_mixed_script(text), bool)


def test_every_character_can_be_looked_at() -> None:
    """Admins: a name that a page can hold is one that the rules can judge, each of its characters."""
    for number in range(0x110000):
        looks = names.skeleton(chr(number))
        assert names.skeleton(looks) == looks
