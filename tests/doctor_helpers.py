"""Helpers for the tests of `rankzero doctor`."""

from __future__ import annotations

from collections.abc import Callable

from launch.findings import Check, Findings

RANK_CHECKS = ("ranks", "all-reduce")


def check(function: Callable[..., None], *words: object) -> Check:
    """Run one check function and return its result."""
    findings = Findings("check")
    function(findings, *words)
    return findings.check()
