"""Names that strangers choose: what nobody can see is refused, what misleads is kept and found."""

import unicodedata

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from appraisal import names
from appraisal.names import NameRefused


@pytest.mark.parametrize(
    "name",
    [
        "a\x00b",
        "a\nb",
        "a\x9fb",
        "a\u202eb",
        "a\u2066b\u2069",
        "a\u200eb",
        "a\u061cb",
        "a\u200bb",
        "a\u2060b",
        "a\ufeffb",
        "a\u00adb",
        "a\u034fb",
        "a\u180eb",
        "a\u115fb",
        "\u3164",
        "\uffa0",
        "\u2800",
        "a\U000e0041",
        "a\ufe0f",
        "a\u200db",
        "\u200c",
        "a\u2028b",
        "a\ud800",
        "a\ue000",
        "a\u0378",
        "a\uffff",
        "   ",
        "\u3000",
        "a" * 201,
        "a" + "\u0301" * 20,
        "\U0001f468\u200d" * 400,
    ],
    ids=ascii,
)
def test_what_nobody_can_see_or_count_is_refused(name: str) -> None:
    """Admins: the name on the page is the name in the log, all of it, and one line high."""
    with pytest.raises(NameRefused) as refused:
        names.check(name)
    assert str(refused.value).isascii()


@pytest.mark.parametrize(
    "name",
    [
        "Claude Code (octoperf)",
        "\u00c4gent \u2014 X\u2122",
        "\u65e5\u672c\u8a9e\u306e\u30a8\u30fc\u30b8\u30a7\u30f3\u30c8",
        "\ud55c\uad6d\uc5b4",
        "Agent \u05d0\u05d1",
        "\u0e44\u0e17\u0e22",
        "\u0915\u094d\u200d\u0937",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\u2764\ufe0f \u260e\ufe0e",
        "\U0001f3f3\ufe0f\u200d\U0001f308",
        "\U0001f469\U0001f3fd\u200d\U0001f4bb",
        "1\ufe0f\u20e3",
        "\U0001f1e9\U0001f1ea",
        "a" * 200,
        "\U0001f468\u200d\U0001f469\u200d\U0001f467" * 150,
    ],
    ids=ascii,
)
def test_names_in_any_script_and_pictures_are_kept(name: str) -> None:
    """People whose agent is not called in Latin letters; length is what they would count."""
    assert names.check(name) == name


def test_a_name_is_kept_in_nfc() -> None:
    """Admins who search: one way to write it."""
    assert names.check("Cafe\u0301") == "Caf\u00e9"


@given(st.text())
def test_checking_is_total_and_settles(text: str) -> None:
    """Everyone: any text is taken or refused, and what was taken is taken again as it is."""
    try:
        taken = names.check(text)
    except NameRefused:
        return
    assert names.check(taken) == taken
    assert unicodedata.is_normalized("NFC", taken)
    assert not regex.search(r"[\p{Cc}\p{Cs}\p{Co}\p{Cn}\u202a-\u202e\u2066-\u2069\u200e\u200f\u200b]", taken)


@pytest.mark.parametrize(
    ("name", "mixed"),
    [
        ("Claude", False),
        ("Cl\u0430ude", True),
        ("\u03f9laude", True),
        ("Claude \u0434\u043b\u044f", True),
        ("Claude \u52a9\u624b", False),
        ("\u30af\u30ed\u30fc\u30c9 Claude", False),
        ("Claude \ud074\ub85c\ub4dc", False),
        ("\u041f\u0440\u0438\u0432\u0435\u0442", False),
        ("\u0645\u06cc\u200c\u062e", False),
        ("123 -- ()", False),
        ("", False),
    ],
)
def test_scripts_that_are_not_written_together_are_a_mix(name: str, mixed: bool) -> None:
    """Admins: UTS 39, Highly Restrictive."""
    assert names.is_mixed_script(name) is mixed


@pytest.mark.parametrize(
    "name",
    [
        "claude",
        "CLAUDE",
        "Cl\u0430ude",
        "\u0421l\u0430ud\u0435",
        "C1aude",
        "C|aude",
        "\uff23\uff4c\uff41\uff55\uff44\uff45",
        "c-l.a_u d e",
        "Cl\u00e1ude",
    ],
)
def test_what_looks_alike_has_one_skeleton(name: str) -> None:
    """Admins: the eye reads all of these as one name."""
    assert names.skeleton(name) == "claude"


@given(st.text(max_size=50))
def test_skeletons_and_scripts_are_total(text: str) -> None:
    """Operators: no name breaks the lists; a skeleton is its own."""
    names.is_mixed_script(text)
    assert names.skeleton(names.skeleton(text)) == names.skeleton(text)
