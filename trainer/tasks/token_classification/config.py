"""The `task` section of a token classification recipe."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from trainer.recipe.section import Written
from trainer.recipe.sections import Fraction, LossSection
from trainer.tasks.token_classification.schemes import OUTSIDE, tag_names


class TokenClassificationConfig(LossSection):
    """`task` section of a token classification recipe."""

    kind: Literal["token_classification"] = "token_classification"
    labels: dict[str, str] = Field(
        description="entity types without B- and I-: a list, or type in the files: name", min_length=1
    )
    rows: Literal["tokens", "text"] = Field(
        "tokens", description="tokens: the roles are tokens and tags; text: the roles are text and spans"
    )
    scheme: Literal["auto", "iob1"] = Field(
        "auto",
        description="of the tags; auto: BIO, BIOES or BILOU; iob1: I- begins an entity, and B- only one that follows "
        "another of its type, as in CoNLL-2003 (rows: tokens)",
    )
    align: Literal["first", "all"] = Field(
        "first", description="pieces of a word that have a label in training: its first one, or all"
    )
    overlap: Fraction = Field(
        0.25, description="share of a window that is in the next one, too (rows longer than data.max_length)"
    )

    @field_validator("labels", mode="before", json_schema_input_type=dict[str, Written] | list[Written])
    @classmethod
    def _as_mapping(cls, value: Any) -> Any:
        """Turn a list into a mapping."""
        if isinstance(value, list):
            names = [str(name) for name in value]
            if len(set(names)) < len(names):
                raise ValueError(f"labels lists {max(names, key=names.count)!r} twice; list each type once")
            value = dict(zip(names, names, strict=True))
        return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else value

    @field_validator("labels")
    @classmethod
    def _types(cls, labels: dict[str, str]) -> dict[str, str]:
        for name in [*labels, *labels.values()]:
            if name == OUTSIDE or name[:2] in ("B-", "I-", "E-", "S-") or not name.strip():
                types = dict.fromkeys(n[2:] for n in labels if n[1:2] == "-")
                raise ValueError(f"labels has {name!r}; list the types alone, such as {[*types] or ['PER', 'LOC']}")
        return labels

    @property
    def types(self) -> list[str]:
        """The entity types in the order of their ids."""
        return list(dict.fromkeys(self.labels.values()))

    @property
    def names(self) -> list[str]:
        """The tags in the order of their ids: O, then B-TYPE and I-TYPE of each type."""
        return tag_names(self.types)
