"""Seconds of CPU time that each cleaning step takes for adversarial text.

python -m benchmarks.cleaners [MB]     (1 by default)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from trainer.data.cleaning import CLEANERS

# Units that are repeated; "{}" stands for the repetition where something is before or behind it.
UNITS = {
    "letters": "a", "spaces": " ", "line ends": "\n", "zero width": "\u200b\ufeff", "no-break": "\u00a0",
    "angle": "<", "closing angle": ">", "open tag": "<a", "open tag and space": "<a ", "one open tag": "<a {x}",
    "closing tag": "</", "comment": "<!--", "comment half closed": "<!--->", "comment with dashes": "<!---",
    "comments behind one": "--><!--", "tag in tag": "<a<b>", "closed once": "-->{<!-- }", "bang": "<!",
    "ampersand": "&", "number": "&#1", "open number": "&#", "long number": "&#{1}", "long zeros": "&#{0}1;",
    "hexadecimal": "&#x", "long hexadecimal": "&#x{f}", "names": "&notit", "long name": "&{a}", "nested": "&amp;amp;",
    "www": "www.", "www and letter": "www.a", "www once": "www.{a}", "dashed www": "-www.x", "http": "http://",
    "http and letter": "http://a", "address end": "http://a{)}", "colons": "ftp:", "long s": "httpſ://",
    "at": "@", "a@": "a@", "a.a@": "a.a@", "mailbox": "{a.}@", "dashed mailbox": "{a-}@", "spaced mailbox": "{a.} @",
    "host": "x@{a.}", "dashed host": "x@{a-}", "long host": "x@{ab.}1", "digits": "x@{a1.}", "letters host": "x@a.{b}_",
    "many hosts": "x@a.bb", "no mailbox": "\u00e9a@b.com", "underscores": "_@a.bc_",
    "marks": "a{\u0301\u0316}", "only marks": "\u0316\u0301", "three marks": "\u0315\u0301\u0316",
    "marks that decompose": "\u0f71\u0f73", "double marks": "\u0344\u0316", "marks and letter": "e\u0316\u0301",
    "voiced": "か\u3099", "jamo": "\u1100\u1161", "jamo with tail": "\u1100\u1161\u11a8", "syllables": "각",
    "ligature": "\ufdfa", "fraction": "½", "accents": "ǖ", "spacing accent": "\u00b4\u0316", "musical": "\U0001d160",
    "sigma": "Σ", "sigma and dots": "Σ.", "one sigma": "Σ{.}Σ", "dotted I": "İ", "sharp S": "ẞ", "emoji": "👩\u200d",
    "right to left": "\u202e\u05d0", "surrogate": "\ud800", "NUL": "\0",
}  # fmt: skip


def text_of(unit: str, size: int) -> str:
    """About `size` bytes of UTF-8 of a unit."""
    before, _, rest = unit.partition("{")
    core, _, after = rest.partition("}") if rest else (before, "", "")
    before = before if rest else ""
    return before + core * (size // len(core.encode("utf-8", "surrogatepass"))) + after


def seconds(step: Callable[[str], str], text: str) -> float:
    begun = time.process_time()
    step(text)
    return time.process_time() - begun


def main() -> None:
    size = int(float(sys.argv[1] if len(sys.argv) > 1 else 1) * 1_000_000)
    for name, step in CLEANERS.items():
        found = {title: seconds(step, text_of(unit, size)) for title, unit in UNITS.items()}
        worst = max(found, key=found.__getitem__)
        print(f"{name:24s} worst {found[worst]:6.3f} s ({worst})  all {sum(found.values()):6.2f} s", flush=True)


if __name__ == "__main__":
    main()
