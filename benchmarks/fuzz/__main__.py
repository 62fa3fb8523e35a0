"""Hostile input: no traceback, no hang, no bomb, no code executed, and no row lost without being counted.

    python -m benchmarks.fuzz --cases 10000 --seed 1 [--folder runs/fuzz] [--json FILE] [--only KIND]

Cases are drawn by hypothesis, see kinds.py. Each runs in a forked process with limits, see child.py and guard.py. At
least 200 are complete command lines. With atheris, the parsers also get inputs that reach new branches of them
(coverage.py). Batches that have been played are in FOLDER, and the same command continues. One that failed is played
again.

Exit code 0: every case held. A failure is printed with the smallest input that was found, and saved in FOLDER.
`--replay FILE` runs such an input again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Run the cases. Return 0 if all held."""
    from benchmarks.fuzz.campaign import play, play_again

    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="of all kinds together (default 10,000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/fuzz"), help="default runs/fuzz")
    parser.add_argument("--minutes", type=float, help="begin no batch after so many minutes")
    parser.add_argument("--json", type=Path, help="write the table and the failures")
    parser.add_argument("--only", action="append", metavar="KIND", help="these kinds only; may be repeated")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run a saved input again")
    parser.add_argument("--no-coverage", action="store_true", help="leave out atheris")
    options = parser.parse_args(argv)
    options.folder = options.folder.resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    return play_again(options) if options.replay else play(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
