"""MkDocs hook: link the first use of each term of ours on a page to the glossary."""

from __future__ import annotations

import posixpath
import re
from typing import Any

TERMS = ("recipe", "run directory", "lane", "bookmark", "ledger", "gate")
# Parts of a page in which a term stays as it is: fenced code, comments, headings, table heads, links, inline code.
PROTECTED = re.compile(
    r"(^```.*?^```|^---\n.*?^---|<!--.*?-->|<[^>\n]+>|^#.*?$|!?\[[^\]]*\]\([^)]*\)|`[^`\n]*`)", re.M | re.S
)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Add the links to a page, the glossary excepted."""
    return markdown if page.file.src_uri == "glossary.md" else link_terms(markdown, page.file.src_uri)


def link_terms(markdown: str, source: str) -> str:
    """Link the first use of each term of ours to the glossary."""
    glossary = posixpath.relpath("glossary.md", posixpath.dirname(source) or ".")
    parts = PROTECTED.split(markdown)
    for term in TERMS:
        pattern = re.compile(rf"(?<![\w./-])({term}|{term.removesuffix('y')}(?:s|ies))(?![\w/=-])", re.I)
        for index in range(0, len(parts), 2):
            parts[index], found = pattern.subn(rf"\0[\1]({glossary}#{term.replace(' ', '-')})\0", parts[index], count=1)
            if found:  # the link itself is protected from the next terms
                parts[index : index + 1] = parts[index].split("\0")
                break
    return "".join(parts)
