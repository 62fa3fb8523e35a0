"""Print a table of the known security problems of pinned packages. Exit code 0: none, 1: some, 3: nothing was checked.

    python .ci/audit.py constraints.txt

pip-audit asks the advisory service of PyPI about each pin. It ends with 1 both for problems and for its own errors.
This program distinguishes them by the output.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

NOT_CHECKED = 3


def main(pins: str) -> int:
    command = [sys.executable, "-m", "pip_audit", "--requirement", pins, "--disable-pip", "--no-deps"]
    done = subprocess.run([*command, "--format", "json", "--progress-spinner", "off"], capture_output=True, text=True)
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = done.stderr.strip().splitlines()[-1:] or ["no output"]
        print(f"audit: the advisory service was not reached, NOTHING WAS CHECKED: {reason[0][:300]}", file=sys.stderr)
        return NOT_CHECKED
    skipped = [package for package in packages if "skip_reason" in package]
    found = [(package, problem) for package in packages for problem in package.get("vulns", ())]
    for package, problem in found:
        fixed = ", ".join(problem["fix_versions"]) or "no release"
        print(f"{package['name']:24s} {package['version']:14s} {problem['id']:22s} fixed in: {fixed}")
        text = " ".join(problem.get("description", "").split())
        print(textwrap.fill(text[:240], 116, initial_indent="    ", subsequent_indent="    "))
    for package in skipped:
        print(f"{package['name']:24s} not checked: {package['skip_reason']}")
    checked = len(packages) - len(skipped)
    print(f"audit: {checked} packages checked, {len(found)} known problems, {len(skipped)} not checked")
    if found:
        return 1
    if checked == 0:
        print("audit: NOTHING WAS CHECKED: the index here has no advisories", file=sys.stderr)
    return 0 if checked else NOT_CHECKED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
