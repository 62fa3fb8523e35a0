"""Random faults against runs of two ranks: after each round the same command has to end the run as if nothing had been.

    python -m benchmarks.faults --runs 1000 --seed 1 [--folder runs/faults] [--json FILE]

A round has one to three faults at random instants, under DDP, ZeRO-2 and FSDP2 in turn; see kinds.py. Afterwards the
same command runs until it ends. It has to finish unaided, with the weights, optimizer state, scores and ledger of the
undisturbed run, nothing published without a passed gate, and no process, shared memory or temporary file left.

Exit code 0: every round held. Rounds are lines of FOLDER/rounds.jsonl; the same command continues after the last one.
What is drawn follows from the seed and the number of the round. The instants follow from the speed of the machine, too.
On another machine, which does not have the folder, --after FILE continues after the rounds of FILE, an earlier --json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.faults import sandbox


def main(argv: Sequence[str]) -> int:
    """Play the rounds. Return 0 if all of them held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=25, help="rounds, with those that the folder has (default 25)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"), help="default runs/faults")
    parser.add_argument("--json", type=Path, help="write the table, the failed rounds and what was left out")
    parser.add_argument("--after", type=Path, help="an earlier --json: begin after its rounds, and add them")
    parser.add_argument("--minutes", type=float, help="begin no round after so many minutes")
    parser.add_argument("--only", type=int, help="play this round alone, and print what it is")
    parser.add_argument("--kind", action="append", help="draw this kind only; may be repeated")
    options = parser.parse_args(argv)
    options.earlier = json.loads(options.after.read_text()) if options.after else None
    if options.earlier and options.earlier["seed"] != options.seed:
        parser.error(f"--after {options.after}: its seed is {options.earlier['seed']}, and --seed is {options.seed}")
    options.folder = options.folder.resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    lacking = sandbox.enter(options.folder, argv)  # starts this program again
    from benchmarks.faults.campaign import play_rounds, prepare, report

    place, missing = prepare(options.folder, lacking)
    try:
        played = play_rounds(options, place, missing)
    finally:
        if place.hosts:
            place.hosts.end()
    return report(options, played, missing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
