"""The base of all sections of a recipe, and types of values."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Patterns = str | list[str] | dict[str, str]
Written = str | int | float | bool  # a text as a YAML file may have it: 1, true
WrittenText = str | int | None


class Section(BaseModel):
    """Base of all sections: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)
