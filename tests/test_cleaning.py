"""Each cleaning step, and the rows that count as bad."""

from __future__ import annotations

import contextlib
import signal
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cleaners import UNITS, text_of
from trainer.data.cleaning import (
    CLEANERS,
    BadRow,
    clean_row,
    cleaner,
    fold_whitespace,
    lowercase,
    normalize_compatibility,
    normalize_unicode,
    replace_emails,
    replace_urls,
    strip_tags,
    unescape_html,
)
from trainer.data.roles import MAX_CHARACTERS, Label, Text
from trainer.data.sources import Row
from trainer.errors import UsageError

REVIEWS = [
    "unescape_html",
    "strip_tags",
    "replace_urls",
    "replace_emails",
    "normalize_unicode",
    "fold_whitespace",
    "lowercase",
]


@pytest.mark.parametrize(
    ("step", "text", "cleaned"),
    [
        (unescape_html, "Tom &amp; Jerry &#39;s &nbsp;AT&T", "Tom & Jerry 's \u00a0AT&T"),
        (strip_tags, "good.<br /><br />But <i>bad</i>", "good.  But  bad "),
        (strip_tags, "a < b > c, <3 and 1<2", "a < b > c, <3 and 1<2"),
        (strip_tags, "seen <!-- a > b\n --> twice", "seen   twice"),
        (strip_tags, "<!-- a --><b> 3 --> 2 <!-- open <i>x", "   3 --> 2 <!-- open  x"),
        (unescape_html, "&#" + "1" * 5000 + ";&#" + "0" * 5000 + "65;&#x" + "f" * 5000 + ";", "\ufffdA\ufffd"),
        (unescape_html, "&#00000065x &#0128512; &#00000000 &#99999999", "Ax \U0001f600 \ufffd \ufffd"),
        (replace_urls, "see https://a.org/x?y=1&z=2. Or (www.b.co.uk)!", "see URL. Or (URL)!"),
        (replace_urls, "HTTP://X.Y/, ftp://files.org/a", "URL, URL"),
        (replace_urls, "a www. sentence about http: nothing", "a www. sentence about http: nothing"),
        (replace_emails, "write to j.doe+x@mail.example.org.", "write to EMAIL."),
        (replace_emails, "rated 5@10, @home", "rated 5@10, @home"),
        (replace_emails, "\u00e9a@b.com@c.de, a@b@c.de, \u00e9-x@c.de", "\u00e9a@EMAIL, a@EMAIL, \u00e9EMAIL"),
        (normalize_unicode, "a\u0308 x² ½ ﬁ", "ä x² ½ ﬁ"),
        (normalize_compatibility, "x² ﬁ", "x2 fi"),
        (normalize_unicode, "e" + "\u0301\u0316" * 40, "\u00e9" + "\u0316" * 40 + "\u0301" * 39),
        (fold_whitespace, " a\u0085b\u00a0c\u2028d\u200be\ufefff\t\r\n g ", "a b c d e f g"),
        (lowercase, "GROẞ ÄÖ Straße", "groß äö straße"),
    ],
)
def test_each_step(step, text, cleaned):
    assert step(text) == cleaned


def test_the_recipe_for_reviews():
    review = "I LOVED it!&lt;br /&gt;<br />Mail me: Me@Home.COM\u00a0or  http://www.imdb.com/title/tt1/ &quot;now&quot;"
    assert cleaner(REVIEWS)(review) == 'i loved it! mail me: email or url "now"'


MARKS = st.lists(st.sampled_from("\u0301\u0316\u0315\u0344\u0f71\u0f73\u3099\u1161\u1100か각\ufdfaé\U0001d160 a"))


@given(MARKS.map(lambda parts: "".join(parts) * 8))
def test_long_runs_of_marks_are_normalized_as_python_does(text):
    assert normalize_unicode(text) == unicodedata.normalize("NFC", text)
    assert normalize_compatibility(text) == unicodedata.normalize("NFKC", text)


@pytest.mark.parametrize("name", list(CLEANERS))
def test_steps_take_linear_time(name):
    """A quadratic step needs a minute or more for 250 kB; a linear one some hundredths of a second."""
    for title, unit in UNITS.items():
        text = text_of(unit, 250_000)
        with time_limit(3.0, f"{name} of {title}"):
            CLEANERS[name](text)


@contextlib.contextmanager
def time_limit(seconds, what):
    """Fails when the body takes more seconds of this process's CPU time, as soon as Python code runs."""

    def stop(*_):
        raise AssertionError(f"{what} takes more than {seconds} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def test_steps_run_in_the_order_given():
    assert cleaner(["unescape_html", "strip_tags"])("&lt;b&gt;") == " "
    assert cleaner(["strip_tags", "unescape_html"])("&lt;b&gt;") == "<b>"
    assert cleaner([])(" As is ") == " As is "


def test_unknown_steps_are_named_all_at_once():
    with pytest.raises(UsageError, match=r"'lowercas' \(did you mean 'lowercase'\?\), 'zzz'; known: unescape_html"):
        cleaner(["lowercas", "zzz"])


@given(st.text())
def test_steps_neither_fail_nor_do_more_the_second_time(text):
    for name, step in CLEANERS.items():
        if name not in ("unescape_html", "strip_tags"):  # "&amp;amp;" and "<<b>b>" have layers
            assert step(step(text)) == step(text), name
    folded = fold_whitespace(text)
    assert not any(char.isspace() and char != " " for char in folded)
    assert "  " not in folded
    assert unicodedata.is_normalized("NFC", normalize_unicode(text))


# -- rows --------------------------------------------------------------------------------------------------------------

COLUMNS = {"src": "de", "trg": "en"}
PAIR = {"src": Text(), "trg": Text(target=True)}
LABELED = {"text": Text(), "label": Label(("0", "1", "-1", "neg", "pos"))}
CLEAN = cleaner(["normalize_unicode", "fold_whitespace"])


def row(**values: object) -> Row:
    return Row((0, 17), values)


def test_a_good_row_is_cleaned_by_role():
    found = clean_row(row(de=" Ein\u00a0Hund ", en="A dog", extra=None), PAIR, COLUMNS, CLEAN)
    assert found == {"src": "Ein Hund", "trg": "A dog"}
    assert clean_row(row(src="a", trg="b"), PAIR, {}, CLEAN) == {"src": "a", "trg": "b"}


@pytest.mark.parametrize(("label", "text"), [(0, "0"), (True, "1"), ("neg", "neg"), (" pos ", "pos"), (-1, "-1")])
def test_labels_may_be_numbers_and_are_not_cleaned(label, text):
    found = clean_row(row(text="Fine", label=label), LABELED, {}, str.upper)
    assert found == {"text": "FINE", "label": text}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"de": "x"}, 'column "en": is missing; columns here: de'),
        ({"de": "x", "en": None}, 'column "en": is null'),
        ({"de": "x", "en": 5}, 'column "en": is not text but int: 5'),
        ({"de": ["x"], "en": "y"}, 'column "de": is not text but list'),
        ({"de": "x", "en": ""}, 'column "en": is empty'),
        ({"de": "\u00a0\u200b", "en": "y"}, 'column "de": is empty after cleaning'),
        ({"de": "a\0b", "en": "y"}, 'column "de": holds a NUL character at 1'),
        ({"de": "\ud800", "en": "y"}, 'column "de": holds half a surrogate pair'),
        ({"de": "x", "en": "y" * MAX_CHARACTERS}, 'column "en": is too long: 1000000 characters'),
    ],
)
def test_bad_rows_name_row_column_and_reason(values, says):
    found = clean_row(Row((3, 17), values), PAIR, COLUMNS, CLEAN)
    assert isinstance(found, BadRow)
    assert found.id == (3, 17)
    assert found.describe("train.jsonl").startswith(f"train.jsonl:17 (row 18), {says}")


def test_a_row_that_cannot_be_read_is_counted_by_its_kind():
    found = clean_row(Row((0, 4), {}, "not JSON: Expecting value"), PAIR, COLUMNS, CLEAN)
    assert isinstance(found, BadRow)
    assert found.reason == "not JSON"
    assert found.describe("a.jsonl") == "a.jsonl:4 (row 5): not JSON: Expecting value"


def test_a_text_of_spaces_is_empty_even_when_no_step_folds_them():
    assert isinstance(clean_row(row(text=" \n"), {"text": Text()}, {}, cleaner([])), BadRow)


def test_a_label_that_is_a_fraction_is_none():
    assert isinstance(clean_row(row(text="x", label=0.5), LABELED, {}, CLEAN), BadRow)


def test_an_error_of_a_step_stays_with_its_row():
    def fails(text):
        raise ValueError(f"cannot take {text}")

    found = clean_row(row(text="x"), {"text": Text()}, {}, fails)
    assert isinstance(found, BadRow)
    assert found.describe("a.csv") == 'a.csv:17 (row 18), column "text": cannot be cleaned: ValueError: cannot take x'


@given(st.dictionaries(st.sampled_from(["de", "en"]), st.one_of(st.none(), st.text(), st.integers(), st.floats())))
def test_a_row_is_clean_or_bad_never_both(values):
    found = clean_row(Row((0, 0), values), PAIR, COLUMNS, CLEAN)
    if isinstance(found, BadRow):
        assert found.describe("f")
    else:
        assert set(found) == {"src", "trg"}
        assert all(text.strip() and text.encode() for text in found.values())
