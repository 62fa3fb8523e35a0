"""What the survey counted besides rows, as lines of a report: cut rows, unknown tokens, rows that are also in train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.report.page import count, percent


def data_facts(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of what was counted, from "data" of the manifest; the value is empty where there is nothing."""
    return [
        ("Rows cut to max_length", _cut_rows(data)),
        ("Unknown tokens", _unknown_tokens(data)),
        ("Rows also in train", _shared_rows(data)),
    ]


def _cut_rows(data: Mapping[str, Any]) -> str:
    """'train 350 of 700 (src 340, trg 350)', of each split with cut rows."""
    parts = []
    for split, facts in data.items():
        tokens = facts.get("tokens") or {}
        if tokens.get("cut_rows") and facts.get("rows"):
            roles = ", ".join(f"{role} {count(rows)}" for role, rows in tokens.get("cut", {}).items())
            share = percent(tokens["cut_rows"] / facts["rows"])
            parts.append(f"{split} {count(tokens['cut_rows'])} of {count(facts['rows'])} ({share}; {roles})")
    return ", ".join(parts)


def _unknown_tokens(data: Mapping[str, Any]) -> str:
    """'train trg 18.7%', of each split and role that has some."""
    shares = (
        (split, role, share)
        for split, facts in data.items()
        for role, share in ((facts.get("tokens") or {}).get("unknown") or {}).items()
    )
    return ", ".join(f"{split} {role} {share:.2%}" for split, role, share in shares if share > 0)


def _shared_rows(data: Mapping[str, Any]) -> str:
    """'test 48 of 60', of each split that shares inputs with train."""
    return ", ".join(
        f"{split} {count(facts['in_train'])} of {count(facts['rows'])}"
        for split, facts in data.items()
        if facts.get("in_train")
    )
