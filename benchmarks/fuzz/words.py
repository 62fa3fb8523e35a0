"""Values that programs stumble over, and strategies that draw from them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from benchmarks.fuzz.guard import CANARY

CODE = f"open('{CANARY}','w')"
TEXTS = (
    "", " ", ".", "..", "../x", "/", "~", "-", "--help", "-1", "*", "**", "?", "[", "[!a]", "{a,b}", "a/b", "a\\b",
    "a:b",
    "a::b", "file://", "://", "memory://x", "simplecache::file://x", "zip://*::x.zip", "a=b", "a.b", "%s%n",
    "{0.__class__}",
    "${HOME}", "$(touch fuzz_canary)", "`touch fuzz_canary`", "; touch fuzz_canary", "| touch fuzz_canary",
    "'", '"', "''", '""', "\\", "\0", "\n", "\r", "\r\n", "\t", "\x1b[31m", "\x7f", "\x85", "\u2028", "\ufeff",
    "\u200b", "\u202e",
    "é", "e\u0301", "ß", "İ", "日本語", "👩‍👩‍👧", "\udcff", "\ud800", "²", "٣", "½", "NaN", "nan", "inf", "-inf",
    "1e999",    "1e-999",
    "0", "-0", "1", "01", "1_000", "0x10", "1.0", "true", "True", "yes", "no", "null", "None", "~null", "9" * 20,
    "9" * 5000,
    "CON", "x" * 300, "x" * 5000, "__import__('os').system('touch fuzz_canary')", CODE, f"os:{CANARY}",
    "=cmd|' /C calc'!A0",
    "<script>", "{{ 7 * 7 }}", "%(x)s", "train", "validation", "test", "text", "label", "weight", "default",
    "__class__",
)  # fmt: skip
# JSON, not always valid.
JSONS = (
    "null", "true", "false", "0", "-0", "-1", "1", "1.5", "1e308", "1e999", "-1e999", "NaN", "Infinity", "-Infinity",
    "9" * 20,
    "9" * 400, "9" * 5000, "-" + "9" * 30, "[]", "{}", '""', "[[]]", "[null]", "[1]", '["x"]', '{"": ""}',
    '{"x": null}', "[[1, 2], [3]]",
    '"\\ud800"', '"\\u0000"', '"../../x"', '"/etc/passwd"', '"é"', json.dumps("x" * 3000), json.dumps(CODE),
    "[" * 2000 + "]" * 2000,
    "[" * 200000, '{"a":' * 3000 + "1" + "}" * 3000, '"' + CANARY + ':Thing"', '"os:system"', "2147483648",
    "-9223372036854775809",
    "18446744073709551616", "0.1e", "01", "'x'", "{", "[1,]", '{"a": 1, "a": 2}', '"\t"', '["a", 1, null, {}]',
    '{"0": "a", "1": "b"}',
)  # fmt: skip

SURROGATES = st.characters()  # all code points, half a surrogate pair included


def text(most: int = 20) -> st.SearchStrategy[str]:
    """Draw a text: one of those above, or any characters."""
    return st.one_of(st.sampled_from(TEXTS), st.text(SURROGATES, max_size=most))


def scalar() -> st.SearchStrategy[Any]:
    """Draw a JSON value that is no list or object."""
    numbers = st.one_of(st.integers(), st.sampled_from([0, 1, 2, -1, 2**31, 2**63, 2**64, 10**30]))
    return st.one_of(st.none(), st.booleans(), numbers, st.floats(width=32), text())


def value(leaves: int = 6) -> st.SearchStrategy[Any]:
    """Draw any JSON value."""
    return st.recursive(
        scalar(), lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text(8), inner, max_size=3)),
        max_leaves=leaves,
    )  # fmt: skip


def json_text() -> st.SearchStrategy[str]:
    """Draw the JSON of a value, or a text that looks like JSON."""
    return st.one_of(st.sampled_from(JSONS), value().map(json.dumps))


def damaged(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Draw bytes that are cut, changed, repeated or have others put in."""
    junk = st.one_of(
        st.binary(max_size=6),
        st.sampled_from(
            [b"\xff", b"\0", b"\r", b"\n", b"\n\n", b'"', b'""', b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80"]
        ),
    )
    change = st.tuples(st.integers(0, 1 << 16), st.integers(0, 8), junk)
    return st.builds(_changed, content, st.lists(change, max_size=3))


def _changed(content: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for at, size, junk in changes:
        at %= len(content) + 1
        content = content[:at] + junk + content[at + size :]
    return content
